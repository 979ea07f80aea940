//! An interaction as a JSON object with a field mapping.

mod glance;
mod tree;

use std::borrow::Cow;

use serde_json::Number;

use super::read::{Attribute, Item, Read};
pub(super) use glance::Glance;

use super::{JsonMapping, MAX_ATTRIBUTES, Reason, Rejected, TimeUnit, too_many_attributes};
use tree::{Fields, Json};

/// How deep objects may nest. The parser has a bound of its own; the walk does not lean on it.
const MAX_DEPTH: usize = 128;

/// Whole numbers up to here are told apart by a 64-bit float; above, two users could become one.
const MAX_WHOLE_FLOAT: f64 = 9_007_199_254_740_992.0;

/// A mapping with its pointers taken apart.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    user: Option<Pointer>,
    id: Option<Pointer>,
    time: Option<Pointer>,
    unit: TimeUnit,
    action: Option<Pointer>,
    item_id: Option<Pointer>,
    item_title: Option<Pointer>,
    item_category: Option<Pointer>,
    item_description: Option<Pointer>,
    text: Option<Pointer>,
    /// No pointer points at or into what another points at: each field can be taken away when it is read.
    apart: bool,
    /// No pointer points at the whole value.
    inside: bool,
}

/// A JSON pointer, as written and as its tokens.
#[derive(Debug, Clone)]
struct Pointer {
    written: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// A pointer that does not begin with a slash points nowhere, as RFC 6901 has it; the configuration refuses it.
    fn new(written: &str) -> Self {
        let tokens = written.split('/').skip(1);
        let tokens = tokens.map(|t| t.replace("~1", "/").replace("~0", "~"));
        Self {
            written: written.to_owned(),
            tokens: tokens.collect(),
        }
    }

    fn find<'v, 'a>(&self, root: &'v mut Json<'a>) -> Option<&'v mut Json<'a>> {
        if !self.written.is_empty() && !self.written.starts_with('/') {
            return None;
        }
        self.tokens.iter().try_fold(root, |at, token| match at {
            Json::Object(fields) => fields.get_mut(token),
            Json::Array(items) => items.get_mut(index(token)?),
            _ => None,
        })
    }

    fn wrong(&self, what: &str) -> Rejected {
        Rejected::new(Reason::Malformed, format!("{what} at {}", self.written))
    }
}

/// An array index as RFC 6901 writes it: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token == "0" || !token.starts_with(['0', '+']);
    plain.then(|| token.parse().ok()).flatten()
}

impl Reader {
    /// Takes the mapping's pointers apart.
    pub(super) fn new(mapping: &JsonMapping) -> Self {
        let pointer = |p: &Option<String>| p.as_deref().map(Pointer::new);
        let mut reader = Self {
            user: pointer(&mapping.user),
            id: pointer(&mapping.id),
            time: pointer(&mapping.time),
            unit: mapping.time_unit,
            action: pointer(&mapping.action),
            item_id: pointer(&mapping.item_id),
            item_title: pointer(&mapping.item_title),
            item_category: pointer(&mapping.item_category),
            item_description: pointer(&mapping.item_description),
            text: pointer(&mapping.text),
            apart: false,
            inside: false,
        };
        let mut all: Vec<&[String]> = reader.pointers().map(|p| &*p.tokens).collect();
        // In order, what points at or into what a pointer points at stands right behind it.
        all.sort_unstable();
        // What points at all of it stands before the others.
        let inside = all.first().is_none_or(|first| !first.is_empty());
        let apart = !all.windows(2).any(|pair| pair[1].starts_with(pair[0]));
        (reader.inside, reader.apart) = (inside, apart);
        reader
    }

    /// Reads the value, and the user from `key` where no pointer names one; what needs no unescaping is borrowed. An
    /// attribute's name or value over `max_text` is refused here, before nested names can add up; the caller checks
    /// everything else.
    pub(super) fn read<'a>(
        &self,
        value: &'a [u8],
        key: Option<&'a [u8]>,
        max_text: usize,
    ) -> Result<Read<'a>, Rejected> {
        let mut root = object(value)?;
        let user_id = self.user_in(&mut root, key)?;
        let mut get = |pointer: &Option<Pointer>| match pointer {
            Some(pointer) => self.text(pointer, &mut root),
            None => Ok(Cow::default()),
        };
        let item = Item {
            id: get(&self.item_id)?,
            title: get(&self.item_title)?,
            category: get(&self.item_category)?,
            description: get(&self.item_description)?,
        };
        let mut read = Read {
            user_id,
            id: get(&self.id)?,
            time_ms: 0,
            action: get(&self.action)?,
            item,
            text: get(&self.text)?,
            attributes: Vec::new(),
        };
        if let Some(pointer) = &self.time {
            let found = self.field(pointer, &mut root);
            read.time_ms = time(pointer, self.unit, found.as_ref())?;
        }
        if !self.apart {
            // Two pointers may name one field, so the fields are taken away only after all were read.
            for pointer in self.pointers() {
                if let Some(found) = pointer.find(&mut root) {
                    *found = Json::Null;
                }
            }
        }
        if let Json::Object(fields) = root {
            let mut attributes = Attributes {
                found: Vec::new(),
                max_text,
            };
            attributes.flatten("", fields, 0)?;
            read.attributes = attributes.end()?;
        }
        Ok(read)
    }

    /// The user alone.
    pub(super) fn user<'a>(
        &self,
        value: &'a [u8],
        key: Option<&'a [u8]>,
    ) -> Result<Cow<'a, str>, Rejected> {
        self.user_in(&mut object(value)?, key)
    }

    fn user_in<'a>(
        &self,
        root: &mut Json<'a>,
        key: Option<&'a [u8]>,
    ) -> Result<Cow<'a, str>, Rejected> {
        match &self.user {
            Some(pointer) => self.user_at(pointer, root),
            None => std::str::from_utf8(key.unwrap_or_default())
                .map_err(|_| Rejected::new(Reason::Malformed, "the key is not UTF-8"))
                .map(Cow::Borrowed),
        }
    }

    /// What a pointer points at. It is gone then, unless another may want it.
    fn field<'a>(&self, pointer: &Pointer, root: &mut Json<'a>) -> Option<Json<'a>> {
        let found = pointer.find(root)?;
        Some(if self.apart {
            std::mem::replace(found, Json::Null)
        } else {
            found.clone()
        })
    }

    /// A text; a number or truth value is taken as JSON writes it, null and nothing as empty.
    fn text<'a>(&self, pointer: &Pointer, root: &mut Json<'a>) -> Result<Cow<'a, str>, Rejected> {
        match self.field(pointer, root) {
            None | Some(Json::Null) => Ok(Cow::default()),
            Some(Json::Text(text)) => Ok(text),
            Some(Json::Number(number)) => Ok(number.to_string().into()),
            Some(Json::Bool(truth)) => Ok(truth.to_string().into()),
            Some(Json::Array(_)) => Err(pointer.wrong("an array instead of a text")),
            Some(Json::Object(_)) => Err(pointer.wrong("an object instead of a text")),
        }
    }

    /// A user: a text, or a whole number in decimal.
    fn user_at<'a>(
        &self,
        pointer: &Pointer,
        root: &mut Json<'a>,
    ) -> Result<Cow<'a, str>, Rejected> {
        match self.field(pointer, root) {
            None | Some(Json::Null) => Ok(Cow::default()),
            Some(Json::Text(text)) => Ok(text),
            Some(Json::Number(number)) => whole(&number)
                .map(Cow::Owned)
                .ok_or_else(|| pointer.wrong("a number that is not whole, or too large,")),
            Some(_) => Err(pointer.wrong("neither a text nor a whole number")),
        }
    }

    fn pointers(&self) -> impl Iterator<Item = &Pointer> {
        [
            &self.user,
            &self.id,
            &self.time,
            &self.action,
            &self.item_id,
            &self.item_title,
            &self.item_category,
            &self.item_description,
            &self.text,
        ]
        .into_iter()
        .flatten()
    }
}

/// The value, which must be an object.
fn object(value: &[u8]) -> Result<Json<'_>, Rejected> {
    // Checked at once, UTF-8 costs less than text by text; where it is none, the parser says at which place.
    let root: Result<Json<'_>, _> = match std::str::from_utf8(value) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(value),
    };
    let root = root.map_err(|error| {
        // Not the error's own words: they can quote the value.
        let (line, column) = (error.line(), error.column());
        let detail = format!("not JSON in UTF-8, at line {line}, column {column}");
        Rejected::new(Reason::Malformed, detail)
    })?;
    if matches!(root, Json::Object(_)) {
        return Ok(root);
    }
    let detail = "a JSON value, but not an object";
    Err(Rejected::new(Reason::Malformed, detail))
}

fn whole(number: &Number) -> Option<String> {
    if number.is_i64() || number.is_u64() {
        return Some(number.to_string());
    }
    let float = number.as_f64()?;
    let whole = float.fract() == 0.0 && float.abs() < MAX_WHOLE_FLOAT;
    #[allow(clippy::cast_possible_truncation)]
    whole.then(|| (float as i64).to_string())
}

/// The event time, rounded to the nearest millisecond; 0 where there is none.
fn time(pointer: &Pointer, unit: TimeUnit, found: Option<&Json<'_>>) -> Result<i64, Rejected> {
    let ms = match found {
        None | Some(Json::Null) => return Ok(0),
        Some(Json::Text(text)) if unit == TimeUnit::Rfc3339 => {
            let time: jiff::Timestamp = text
                .parse()
                .map_err(|_| pointer.wrong("no time as RFC 3339 has it"))?;
            round(time.as_nanosecond(), 1_000_000)
        }
        Some(_) if unit == TimeUnit::Rfc3339 => return Err(pointer.wrong("no text with a time")),
        Some(Json::Text(text)) => match text.trim().parse::<i128>() {
            Ok(whole) => scale(whole, unit),
            Err(_) => (text.trim().parse().ok()).and_then(|n| scale_float(n, unit)),
        },
        Some(Json::Number(number)) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => scale(whole.into(), unit),
            (None, Some(whole)) => scale(whole.into(), unit),
            (None, None) => number.as_f64().and_then(|n| scale_float(n, unit)),
        },
        Some(_) => return Err(pointer.wrong("neither a number nor a text with one")),
    };
    ms.ok_or_else(|| pointer.wrong("no time, or one out of range,"))
}

/// Whole units as milliseconds.
fn scale(number: i128, unit: TimeUnit) -> Option<i64> {
    match unit {
        TimeUnit::Seconds => i64::try_from(number.checked_mul(1000)?).ok(),
        TimeUnit::Milliseconds => i64::try_from(number).ok(),
        TimeUnit::Microseconds => round(number, 1000),
        TimeUnit::Nanoseconds | TimeUnit::Rfc3339 => round(number, 1_000_000),
    }
}

/// Units with a fraction as milliseconds.
fn scale_float(number: f64, unit: TimeUnit) -> Option<i64> {
    let ms = match unit {
        TimeUnit::Seconds => number * 1e3,
        TimeUnit::Milliseconds => number,
        TimeUnit::Microseconds => number / 1e3,
        TimeUnit::Nanoseconds | TimeUnit::Rfc3339 => number / 1e6,
    };
    // Infinities and what is no number fail here too.
    #[allow(clippy::cast_possible_truncation)]
    (ms.abs() < 1e18).then(|| ms.round() as i64)
}

fn round(number: i128, part: i128) -> Option<i64> {
    i64::try_from(number.checked_add(part / 2)?.div_euclid(part)).ok()
}

/// What no pointer named.
struct Attributes<'a> {
    found: Vec<Attribute<'a>>,
    max_text: usize,
}

impl<'a> Attributes<'a> {
    /// Takes nested objects' fields under dotted names, texts as they are, anything else as compact JSON; null is absent.
    fn flatten(&mut self, prefix: &str, fields: Fields<'a>, depth: usize) -> Result<(), Rejected> {
        if depth > MAX_DEPTH {
            let detail = format!("objects nested over {MAX_DEPTH} deep");
            return Err(Rejected::new(Reason::Malformed, detail));
        }
        for (field, value) in fields {
            let name = if depth == 0 {
                field
            } else {
                self.check("an attribute's name", prefix.len() + 1 + field.len())?;
                format!("{prefix}.{field}").into()
            };
            let text = match value {
                Json::Null => continue,
                Json::Object(fields) => {
                    self.flatten(&name, fields, depth + 1)?;
                    continue;
                }
                Json::Text(text) => text,
                other => other.compact().into(),
            };
            self.check("an attribute's value", text.len())?;
            self.found.push((name, text));
            if self.found.len() > 2 * MAX_ATTRIBUTES {
                self.settle()?;
            }
        }
        Ok(())
    }

    /// All of them by name.
    fn end(mut self) -> Result<Vec<Attribute<'a>>, Rejected> {
        self.settle()?;
        Ok(self.found)
    }

    /// Of two fields that got one name the later one counts.
    fn settle(&mut self) -> Result<(), Rejected> {
        tree::last_of_each(&mut self.found);
        if self.found.len() > MAX_ATTRIBUTES {
            return Err(too_many_attributes());
        }
        Ok(())
    }

    fn check(&self, what: &str, bytes: usize) -> Result<(), Rejected> {
        if bytes <= self.max_text {
            return Ok(());
        }
        let detail = format!("{what}: {bytes} bytes, {} are allowed", self.max_text);
        Err(Rejected::new(Reason::TextTooLong, detail))
    }
}

#[cfg(test)]
mod tests;
