//! Operators, as Python has them, on whole numbers and texts.

use minijinja::machinery::ast::{BinOpKind, CompareOpKind, UnaryOpKind};

use super::value::{Budget, Fault, Value};

pub(super) fn unary(operator: &UnaryOpKind, value: &Value) -> Result<Value, Fault> {
    match operator {
        UnaryOpKind::Not => Ok(Value::Bool(!value.is_true())),
        UnaryOpKind::Neg => whole(value.number()?.checked_neg()),
    }
}

/// The result, where the left side alone has it.
pub(super) fn decided(operator: BinOpKind, left: &Value) -> Option<Value> {
    let decides = match operator {
        BinOpKind::ScAnd => !left.is_true(),
        BinOpKind::ScOr => left.is_true(),
        _ => false,
    };
    decides.then(|| left.clone())
}

pub(super) fn binary(
    budget: &Budget,
    operator: BinOpKind,
    left: &Value,
    right: &Value,
) -> Result<Value, Fault> {
    let compared = match operator {
        BinOpKind::ScAnd | BinOpKind::ScOr => return Ok(right.clone()),
        BinOpKind::Concat => {
            let (left, right) = (left.shown()?, right.shown()?);
            return concat(budget, &left, &right);
        }
        BinOpKind::Add | BinOpKind::Sub | BinOpKind::Mul | BinOpKind::FloorDiv | BinOpKind::Rem => {
            return arithmetic(budget, operator, left, right);
        }
        BinOpKind::Eq => CompareOpKind::Eq,
        BinOpKind::Ne => CompareOpKind::Ne,
        BinOpKind::Lt => CompareOpKind::Lt,
        BinOpKind::Lte => CompareOpKind::Lte,
        BinOpKind::Gt => CompareOpKind::Gt,
        BinOpKind::Gte => CompareOpKind::Gte,
        BinOpKind::In => CompareOpKind::In,
        BinOpKind::Div | BinOpKind::Pow => {
            return Err(Fault::new(
                "computes with fractions, which is not supported",
            ));
        }
    };
    compare(budget, compared, left, right).map(Value::Bool)
}

fn arithmetic(
    budget: &Budget,
    operator: BinOpKind,
    left: &Value,
    right: &Value,
) -> Result<Value, Fault> {
    match (operator, left, right) {
        (BinOpKind::Add, Value::Text(left), Value::Text(right)) => concat(budget, left, right),
        (BinOpKind::Add, Value::List(left), Value::List(right)) => {
            budget.pay(left.items.len() + right.items.len())?;
            budget.list([&left.items[..], &right.items[..]].concat())
        }
        (_, Value::Number(left), Value::Number(right)) => whole(match operator {
            BinOpKind::Add => left.checked_add(*right),
            BinOpKind::Sub => left.checked_sub(*right),
            BinOpKind::Mul => left.checked_mul(*right),
            // Downwards, as Python divides.
            BinOpKind::FloorDiv => left.checked_div_euclid(*right).filter(|_| *right > 0),
            _ => left.checked_rem_euclid(*right).filter(|_| *right > 0),
        }),
        _ => Err(Fault::new(format!(
            "{} and {} are no two numbers, texts or lists to compute with",
            left.kind(),
            right.kind()
        ))),
    }
}

fn concat(budget: &Budget, left: &str, right: &str) -> Result<Value, Fault> {
    budget.pay(left.len() + right.len())?;
    budget.text([left, right].concat())
}

fn whole(number: Option<i64>) -> Result<Value, Fault> {
    let fault = || Fault::new("computes a number that cannot be");
    number.map(Value::Number).ok_or_else(fault)
}

pub(super) fn compare(
    budget: &Budget,
    operator: CompareOpKind,
    left: &Value,
    right: &Value,
) -> Result<bool, Fault> {
    budget.pay(left.size() + right.size())?;
    let order = || match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(left.cmp(right)),
        (Value::Text(left), Value::Text(right)) => Ok(left.cmp(right)),
        _ => Err(Fault::new(format!(
            "{} and {} have no order",
            left.kind(),
            right.kind()
        ))),
    };
    Ok(match operator {
        CompareOpKind::Eq => same(left, right)?,
        CompareOpKind::Ne => !same(left, right)?,
        CompareOpKind::Lt => order()?.is_lt(),
        CompareOpKind::Lte => order()?.is_le(),
        CompareOpKind::Gt => order()?.is_gt(),
        CompareOpKind::Gte => order()?.is_ge(),
        CompareOpKind::In => within(budget, left, right)?,
        CompareOpKind::NotIn => !within(budget, left, right)?,
    })
}

fn same(left: &Value, right: &Value) -> Result<bool, Fault> {
    match (left, right) {
        (Value::Undefined, Value::Undefined) | (Value::None, Value::None) => Ok(true),
        (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
        (Value::Number(left), Value::Number(right)) => Ok(left == right),
        (Value::Text(left), Value::Text(right)) => Ok(left == right),
        // They may share parts again and again, so that comparing them takes longer than making them did.
        (Value::List(_), Value::List(_)) | (Value::Map(_), Value::Map(_)) => {
            Err(left.refused("cannot be compared with another"))
        }
        _ => Ok(false),
    }
}

fn within(budget: &Budget, part: &Value, of: &Value) -> Result<bool, Fault> {
    match of {
        Value::Undefined => Ok(false),
        Value::Text(text) => Ok(text.contains(part.text()?)),
        Value::Map(map) => {
            let key = part.key()?;
            Ok(map.items.iter().any(|(name, _)| *name == key))
        }
        Value::List(list) => {
            // Each comparison goes through the part again.
            budget.pay(list.items.len().saturating_mul(part.size()))?;
            for item in &list.items {
                if same(part, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(other.refused("holds nothing")),
    }
}
