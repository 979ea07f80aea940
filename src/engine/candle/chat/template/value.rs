//! What templates compute with, and what pays for it.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// How deep lists and maps may hold each other: they are taken apart by recursion.
const DEEPEST: usize = 32;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    reason: Cow<'static, str>,
    line: Option<u16>,
}

impl Fault {
    pub(super) fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason: reason.into(),
            line: None,
        }
    }

    /// The innermost line stays.
    pub(super) fn at(mut self, line: u16) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// A value. Copies share what it holds, and nothing in it changes but a namespace, which nothing may hold.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Number(i64),
    Text(Rc<str>),
    List(Rc<Holding<Value>>),
    /// In the order of its making.
    Map(Rc<Holding<(Rc<str>, Value)>>),
    Namespace(Rc<Namespace>),
}

pub(super) type Namespace = RefCell<BTreeMap<String, Value>>;

/// Items, and how deep they nest.
#[derive(Debug)]
pub(super) struct Holding<T> {
    pub(super) items: Vec<T>,
    depth: usize,
}

impl Value {
    pub(super) fn count(n: usize) -> Self {
        Self::Number(i64::try_from(n).unwrap_or(i64::MAX))
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "an undefined value",
            Self::None => "none",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Namespace(_) => "a namespace",
        }
    }

    pub(super) fn refused(&self, what: &str) -> Fault {
        Fault::new(format!("{} {what}", self.kind()))
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(b) => *b,
            Self::Number(n) => *n != 0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Map(map) => !map.items.is_empty(),
            Self::Namespace(_) => true,
        }
    }

    /// As Python writes it, since transformers' templates run there.
    pub(super) fn shown(&self) -> Result<Cow<'_, str>, Fault> {
        Ok(match self {
            Self::Undefined => "".into(),
            Self::None => "None".into(),
            Self::Bool(true) => "True".into(),
            Self::Bool(false) => "False".into(),
            Self::Number(n) => n.to_string().into(),
            Self::Text(text) => Cow::Borrowed(text),
            _ => return Err(self.refused("cannot be written out")),
        })
    }

    pub(super) fn text(&self) -> Result<&str, Fault> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(self.refused("is no text")),
        }
    }

    pub(super) fn number(&self) -> Result<i64, Fault> {
        match self {
            Self::Number(n) => Ok(*n),
            _ => Err(self.refused("is no number")),
        }
    }

    pub(super) fn key(&self) -> Result<Rc<str>, Fault> {
        match self {
            Self::Text(text) => Ok(Rc::clone(text)),
            _ => Err(self.refused("is no key of a map")),
        }
    }

    pub(super) fn end_of_slice(&self) -> Result<Option<i64>, Fault> {
        match self {
            Self::None => Ok(None),
            other => other.number().map(Some),
        }
    }

    /// Bytes or items: what an operation that looks through all of it costs.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::List(list) => list.items.len(),
            Self::Map(map) => map.items.len(),
            _ => 0,
        }
    }

    /// A namespace can be changed later, so what held one could come to hold itself.
    fn depth(&self) -> Result<usize, Fault> {
        match self {
            Self::List(list) => Ok(list.depth),
            Self::Map(map) => Ok(map.depth),
            Self::Namespace(_) => Err(self.refused("can be held by nothing but a name")),
            _ => Ok(0),
        }
    }
}

/// What a template may still make.
pub(super) struct Budget {
    left: Cell<usize>,
}

impl Budget {
    pub(super) fn new(all: usize) -> Self {
        Self {
            left: Cell::new(all),
        }
    }

    /// To be called before what is paid for is made.
    pub(super) fn pay(&self, price: usize) -> Result<(), Fault> {
        let left = self.left.get().checked_sub(price);
        let left = left.ok_or_else(|| Fault::new("computes more than a chat template may"))?;
        self.left.set(left);
        Ok(())
    }

    /// A text that is there: only as long as what was paid for already, or as an operand.
    pub(super) fn text(&self, text: String) -> Result<Value, Fault> {
        self.pay(text.len())?;
        Ok(Value::Text(text.into()))
    }

    pub(super) fn write(&self, out: &mut String, text: &str) -> Result<(), Fault> {
        self.pay(text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn holding<T>(
        &self,
        items: Vec<T>,
        held: impl Fn(&T) -> &Value,
    ) -> Result<Rc<Holding<T>>, Fault> {
        self.pay(1 + items.len())?;
        let mut depth = 0;
        for item in &items {
            depth = depth.max(1 + held(item).depth()?);
        }
        if depth > DEEPEST {
            return Err(Fault::new(format!("lists nest deeper than {DEEPEST}")));
        }
        Ok(Rc::new(Holding { items, depth }))
    }

    pub(super) fn list(&self, items: Vec<Value>) -> Result<Value, Fault> {
        self.holding(items, |item| item).map(Value::List)
    }

    /// Of several pairs with the same key the last counts.
    pub(super) fn map(&self, pairs: Vec<(Rc<str>, Value)>) -> Result<Value, Fault> {
        self.holding(pairs, |(_, value)| value).map(Value::Map)
    }

    pub(super) fn keep(&self, names: &Namespace, name: &str, value: Value) -> Result<(), Fault> {
        self.pay(1 + name.len())?;
        value.depth()?;
        names.borrow_mut().insert(name.to_owned(), value);
        Ok(())
    }

    /// What a loop goes through.
    pub(super) fn items(&self, of: &Value) -> Result<Vec<Value>, Fault> {
        self.pay(of.size())?;
        match of {
            Value::Undefined => Ok(Vec::new()),
            Value::List(list) => Ok(list.items.clone()),
            Value::Map(map) => Ok(map
                .items
                .iter()
                .map(|(key, _)| Value::Text(Rc::clone(key)))
                .collect()),
            Value::Text(text) => {
                let letter = |c: char| Value::Text(c.to_string().into());
                Ok(text.chars().map(letter).collect())
            }
            other => Err(other.refused("cannot be gone through")),
        }
    }

    pub(super) fn attribute(&self, of: &Value, name: &str) -> Result<Value, Fault> {
        self.pay(of.size() + name.len())?;
        match of {
            Value::Undefined => Err(Fault::new(format!("{name} is asked of an undefined value"))),
            Value::Map(map) => {
                let found = map.items.iter().rev().find(|(key, _)| **key == *name);
                Ok(found.map_or(Value::Undefined, |(_, value)| value.clone()))
            }
            Value::Namespace(names) => {
                let found = names.borrow().get(name).cloned();
                Ok(found.unwrap_or(Value::Undefined))
            }
            _ => Ok(Value::Undefined),
        }
    }

    pub(super) fn item(&self, of: &Value, key: &Value) -> Result<Value, Fault> {
        self.pay(of.size())?;
        match (of, key) {
            (_, Value::Text(name)) => self.attribute(of, name),
            (Value::List(list), Value::Number(at)) => {
                let at = from_the_end(*at, list.items.len());
                let found = at.and_then(|at| list.items.get(at));
                Ok(found.cloned().unwrap_or(Value::Undefined))
            }
            (Value::Text(text), Value::Number(at)) => {
                let letter =
                    from_the_end(*at, text.chars().count()).and_then(|at| text.chars().nth(at));
                Ok(letter.map_or(Value::Undefined, |c| Value::Text(c.to_string().into())))
            }
            (Value::Undefined, _) => Err(of.refused("has no items")),
            _ => Ok(Value::Undefined),
        }
    }

    /// From, to, and by how many, as Python has it.
    pub(super) fn slice(&self, of: &Value, ends: [Option<i64>; 3]) -> Result<Value, Fault> {
        if !matches!(of, Value::List(_) | Value::Text(_)) {
            return Err(of.refused("cannot be sliced"));
        }
        let mut items = self.items(of)?;
        let [from, to, by] = ends;
        let by = by.unwrap_or(1);
        if by == 0 {
            return Err(Fault::new("a slice cannot go on by 0"));
        }
        let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
        let place = |end: i64| {
            if end < 0 {
                end.saturating_add(length)
            } else {
                end
            }
        };
        // Backwards the same is done from the other end.
        let (from, to) = if by > 0 {
            (from.map_or(0, place), to.map_or(length, place))
        } else {
            items.reverse();
            let other = |end| length - 1 - place(end).clamp(-1, length);
            (from.map_or(0, other), to.map_or(length, other))
        };
        let [from, to] = [from, to].map(|end| usize::try_from(end.clamp(0, length)).unwrap_or(0));
        let by = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
        let kept = items.into_iter().take(to).skip(from).step_by(by);
        match of {
            Value::Text(_) => {
                let letters: Vec<Value> = kept.collect();
                let letters = letters
                    .iter()
                    .map(Value::text)
                    .collect::<Result<String, _>>()?;
                self.text(letters)
            }
            _ => self.list(kept.collect()),
        }
    }
}

fn from_the_end(at: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    usize::try_from(if at < 0 { at.checked_add(length)? } else { at }).ok()
}
