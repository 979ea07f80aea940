//! The filters, tests, functions and methods of chat templates.

use std::rc::Rc;

use minijinja::machinery::ast::CompareOpKind;

use super::operators::compare;
use super::value::{Budget, Fault, Namespace, Value};

#[derive(Default)]
pub(super) struct Arguments<'s> {
    pub(super) plain: Vec<Value>,
    pub(super) named: Vec<(&'s str, Value)>,
}

impl Arguments<'_> {
    /// The argument at that place, or of that name.
    fn get(&self, at: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(own, _)| *own == name);
        self.plain
            .get(at)
            .or_else(|| named().map(|(_, value)| value))
    }

    fn need(&self, at: usize) -> Result<&Value, Fault> {
        let missing = || Fault::new("an argument is missing");
        self.plain.get(at).ok_or_else(missing)
    }

    fn size(&self) -> usize {
        let named = self.named.iter().map(|(_, value)| value);
        self.plain.iter().chain(named).map(Value::size).sum()
    }
}

fn unknown(kind: &str, name: &str) -> Fault {
    Fault::new(format!("the {kind} {name} is not supported"))
}

pub(super) fn filter(
    budget: &Budget,
    name: &str,
    of: &Value,
    given: &Arguments<'_>,
) -> Result<Value, Fault> {
    budget.pay(of.size() + given.size())?;
    match name {
        "trim" => method(budget, "strip", of, given),
        "lower" | "upper" | "capitalize" | "replace" => method(budget, name, of, given),
        "items" => method(budget, "items", of, given),
        "safe" => Ok(of.clone()),
        "string" => budget.text(of.shown()?.into_owned()),
        "list" => budget.list(budget.items(of)?),
        "length" | "count" => match of {
            Value::Text(text) => Ok(Value::count(text.chars().count())),
            Value::List(_) | Value::Map(_) => Ok(Value::count(of.size())),
            other => Err(other.refused("has no length")),
        },
        "int" => match of {
            Value::Text(text) => Ok(Value::Number(text.trim().parse().unwrap_or(0))),
            Value::Bool(b) => Ok(Value::Number((*b).into())),
            other => other.number().map(Value::Number),
        },
        "first" => budget.item(of, &Value::Number(0)),
        "last" => budget.item(of, &Value::Number(-1)),
        "reverse" => budget.slice(of, [None, None, Some(-1)]),
        "join" => {
            let between = match given.get(0, "d") {
                Some(between) => between.shown()?,
                None => "".into(),
            };
            join(budget, &between, of, given.get(1, "attribute"))
        }
        "default" | "d" => {
            let also_false = given.get(1, "boolean").is_some_and(Value::is_true);
            let missing = matches!(of, Value::Undefined) || also_false && !of.is_true();
            let other = given.get(0, "default_value").cloned();
            Ok(if missing {
                other.map_or_else(|| budget.text(String::new()), Ok)?
            } else {
                of.clone()
            })
        }
        "tojson" => json(budget, of),
        "map" => {
            let Some(attribute) = given.get(usize::MAX, "attribute") else {
                return Err(Fault::new("map without attribute is not supported"));
            };
            let items = budget.items(of)?;
            let items = items.iter().map(|item| budget.item(item, attribute));
            budget.list(items.collect::<Result<_, _>>()?)
        }
        "select" | "reject" => choose(budget, of, given, 0, name == "select"),
        "selectattr" | "rejectattr" => choose(budget, of, given, 1, name == "selectattr"),
        _ => Err(unknown("filter", name)),
    }
}

/// What of the items passes a test, or does not; of the item itself, or of the attribute that the first argument names.
fn choose(
    budget: &Budget,
    of: &Value,
    given: &Arguments<'_>,
    attributes: usize,
    wanted: bool,
) -> Result<Value, Fault> {
    let rest = Arguments {
        plain: given.plain.iter().skip(attributes + 1).cloned().collect(),
        named: Vec::new(),
    };
    let mut kept = Vec::new();
    for item in budget.items(of)? {
        budget.pay(1 + rest.plain.len())?;
        let looked_at = match attributes {
            0 => item.clone(),
            _ => budget.item(&item, given.need(0)?)?,
        };
        let passes = match given.plain.get(attributes) {
            Some(name) => test(budget, name.text()?, &looked_at, &rest)?,
            None => looked_at.is_true(),
        };
        if passes == wanted {
            kept.push(item);
        }
    }
    budget.list(kept)
}

pub(super) fn test(
    budget: &Budget,
    name: &str,
    of: &Value,
    given: &Arguments<'_>,
) -> Result<bool, Fault> {
    let compared = |operator| compare(budget, operator, of, given.need(0)?);
    Ok(match name {
        "defined" => !matches!(of, Value::Undefined),
        "undefined" => matches!(of, Value::Undefined),
        "none" => matches!(of, Value::None),
        "string" => matches!(of, Value::Text(_)),
        "number" | "integer" => matches!(of, Value::Number(_)),
        "boolean" => matches!(of, Value::Bool(_)),
        "true" => matches!(of, Value::Bool(true)),
        "false" => matches!(of, Value::Bool(false)),
        "mapping" => matches!(of, Value::Map(_)),
        // In Python texts and maps are sequences by this test too.
        "iterable" | "sequence" => matches!(of, Value::Map(_) | Value::List(_) | Value::Text(_)),
        "odd" => of.number()?.rem_euclid(2) == 1,
        "even" => of.number()?.rem_euclid(2) == 0,
        "equalto" | "eq" | "==" => compared(CompareOpKind::Eq)?,
        "ne" | "!=" => compared(CompareOpKind::Ne)?,
        "lt" | "lessthan" | "<" => compared(CompareOpKind::Lt)?,
        "le" | "<=" => compared(CompareOpKind::Lte)?,
        "gt" | "greaterthan" | ">" => compared(CompareOpKind::Gt)?,
        "ge" | ">=" => compared(CompareOpKind::Gte)?,
        "in" => compared(CompareOpKind::In)?,
        _ => return Err(unknown("test", name)),
    })
}

pub(super) fn function(budget: &Budget, name: &str, given: &Arguments<'_>) -> Result<Value, Fault> {
    match name {
        "raise_exception" => Err(Fault::new(given.need(0)?.shown()?.into_owned())),
        // A date in the prompt would make every day's answers others than the day's before.
        "strftime_now" => budget.text("2026-01-01".to_owned()),
        "namespace" => {
            let names = Rc::new(Namespace::default());
            for (name, value) in &given.named {
                budget.keep(&names, name, value.clone())?;
            }
            Ok(Value::Namespace(names))
        }
        "dict" => {
            let pairs = given.named.iter();
            budget.pay(given.named.iter().map(|(name, _)| name.len()).sum())?;
            budget.map(
                pairs
                    .map(|(name, value)| ((*name).into(), value.clone()))
                    .collect(),
            )
        }
        "range" => {
            let ends = given.plain.iter().map(Value::number);
            let (from, to, by) = match ends.collect::<Result<Vec<_>, _>>()?[..] {
                [to] => (0, to, 1),
                [from, to] => (from, to, 1),
                [from, to, by] if by > 0 => (from, to, by),
                _ => return Err(Fault::new("a range of this kind is not supported")),
            };
            let mut numbers = Vec::new();
            let mut next = Some(from);
            while let Some(number) = next.filter(|number| *number < to) {
                budget.pay(1)?;
                numbers.push(Value::Number(number));
                next = number.checked_add(by);
            }
            budget.list(numbers)
        }
        _ => Err(unknown("function", name)),
    }
}

pub(super) fn method(
    budget: &Budget,
    name: &str,
    of: &Value,
    given: &Arguments<'_>,
) -> Result<Value, Fault> {
    budget.pay(1 + of.size() + given.size())?;
    if let Value::Map(map) = of {
        let pairs = map.items.iter();
        return match name {
            "get" => match budget.item(of, given.need(0)?)? {
                Value::Undefined => Ok(given.plain.get(1).cloned().unwrap_or(Value::None)),
                found => Ok(found),
            },
            "keys" => budget.list(budget.items(of)?),
            "values" => budget.list(pairs.map(|(_, value)| value.clone()).collect()),
            "items" => {
                let pair = |(key, value): &(Rc<str>, Value)| {
                    budget.list(vec![Value::Text(Rc::clone(key)), value.clone()])
                };
                budget.list(pairs.map(pair).collect::<Result<_, _>>()?)
            }
            _ => Err(unknown("method", name)),
        };
    }
    let Value::Text(text) = of else {
        return Err(of.refused(&format!("has no method {name}")));
    };
    let stripped = |left: bool, right: bool| -> Result<Value, Fault> {
        let signs = given.plain.first().map(Value::text).transpose()?;
        // Each letter at the ends is looked for among the signs.
        budget.pay(text.len().saturating_mul(signs.map_or(1, str::len)))?;
        let outside = |c: char| signs.map_or(c.is_whitespace(), |signs| signs.contains(c));
        let mut rest: &str = text;
        if left {
            rest = rest.trim_start_matches(outside);
        }
        if right {
            rest = rest.trim_end_matches(outside);
        }
        budget.text(rest.to_owned())
    };
    let argument = |at: usize| given.need(at)?.text();
    match name {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "startswith" => Ok(Value::Bool(text.starts_with(argument(0)?))),
        "endswith" => Ok(Value::Bool(text.ends_with(argument(0)?))),
        "upper" => budget.text(text.to_uppercase()),
        "lower" => budget.text(text.to_lowercase()),
        "capitalize" => {
            let mut letters = text.chars();
            let first = letters.next().into_iter().flat_map(char::to_uppercase);
            let rest = letters.as_str().to_lowercase();
            budget.text(first.chain(rest.chars()).collect())
        }
        "split" => split(budget, text, given),
        "replace" => {
            let (old, new) = (argument(0)?, argument(1)?);
            let places = text.matches(old).count();
            budget.pay(places.saturating_mul(new.len()))?;
            budget.text(text.replace(old, new))
        }
        "join" => join(budget, text, given.need(0)?, None),
        _ => Err(unknown("method", name)),
    }
}

fn split(budget: &Budget, text: &str, given: &Arguments<'_>) -> Result<Value, Fault> {
    let most = match given.get(1, "maxsplit") {
        Some(most) => usize::try_from(most.number()?).unwrap_or(usize::MAX - 1),
        None => usize::MAX - 1,
    };
    let mut parts = Vec::new();
    match given.get(0, "sep") {
        Some(Value::Text(sign)) if sign.is_empty() => {
            return Err(Fault::new("splits at an empty text"));
        }
        Some(Value::Text(sign)) => {
            for part in text.splitn(most.saturating_add(1), &**sign) {
                parts.push(budget.text(part.to_owned())?);
            }
        }
        None | Some(Value::None) if given.get(1, "maxsplit").is_none() => {
            for part in text.split_whitespace() {
                parts.push(budget.text(part.to_owned())?);
            }
        }
        _ => return Err(Fault::new("a split of this kind is not supported")),
    }
    budget.list(parts)
}

fn join(
    budget: &Budget,
    between: &str,
    of: &Value,
    attribute: Option<&Value>,
) -> Result<Value, Fault> {
    let mut text = String::new();
    for (at, item) in budget.items(of)?.into_iter().enumerate() {
        if at > 0 {
            budget.write(&mut text, between)?;
        }
        let item = match attribute {
            Some(name) => budget.item(&item, name)?,
            None => item,
        };
        budget.write(&mut text, &item.shown()?)?;
    }
    budget.text(text)
}

/// Of what nothing is in: lists and maps come with tools, of which there are none here.
fn json(budget: &Budget, of: &Value) -> Result<Value, Fault> {
    let json = match of {
        Value::None => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => (*n).into(),
        Value::Text(text) => (&**text).into(),
        other => return Err(other.refused("is not supported as JSON")),
    };
    budget.text(json.to_string())
}
