//! Takes typed values out of a table and notes every fault instead of stopping at the first.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::fault::{Fault, Place};
use super::secret::Secret;
use super::tree::{Entry, Table, Value};

/// The word that switches an optional key off.
const OFF: &str = "off";
/// The word that leaves a key's value to limn.
const AUTO: &str = "auto";

/// A key that there is, and how its default is written; `None`: it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub key: String,
    pub default: Option<String>,
}

/// What is noted while sections are read.
#[derive(Default)]
pub struct Notes {
    pub faults: RefCell<Vec<Fault>>,
    pub known: RefCell<Vec<Known>>,
}

/// One table being read. What was never asked for when it is dropped is an unknown key.
pub struct Section<'n> {
    notes: &'n Notes,
    path: String,
    table: Table,
    asked: Vec<String>,
}

impl<'n> Section<'n> {
    pub fn root(notes: &'n Notes, table: Table) -> Self {
        Self {
            notes,
            path: String::new(),
            table,
            asked: Vec::new(),
        }
    }

    /// The table of that name, empty where there is none.
    pub fn section(&mut self, name: &str) -> Section<'n> {
        self.asked.push(name.to_owned());
        let table = match self.table.remove(name) {
            Some(Entry {
                value: Value::Table(table),
                ..
            }) => table,
            Some(entry) => {
                self.fault(name, Some(&entry), &format!("wants a table [{name}]"));
                Table::new()
            }
            None => Table::new(),
        };
        Section {
            notes: self.notes,
            path: self.key(name),
            table,
            asked: Vec::new(),
        }
    }

    /// The key with its sections.
    pub fn key(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Notes a fault of a key without showing what was given.
    pub fn fault_unshown(&self, name: &str, place: Option<Place>, wanted: String) {
        self.notes.faults.borrow_mut().push(Fault {
            key: self.key(name),
            place,
            given: None,
            wanted,
        });
    }

    fn fault(&self, name: &str, entry: Option<&Entry>, wanted: &str) {
        self.notes.faults.borrow_mut().push(Fault {
            key: self.key(name),
            place: entry.map(|e| e.place.clone()),
            given: entry.map(|e| e.value.shown()),
            wanted: wanted.to_owned(),
        });
    }

    /// Where a key is given that was not read yet.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.table.get(name).map(|e| e.place.clone())
    }

    fn ask(&mut self, name: &str, default: Option<String>) -> Option<Entry> {
        self.asked.push(name.to_owned());
        self.notes.known.borrow_mut().push(Known {
            key: self.key(name),
            default,
        });
        self.table.remove(name)
    }

    /// Notes a fault of each of the keys that is given and not switched off: they mean something only with `kind`.
    pub fn other_kind(&self, names: &[&str], kind: &str) {
        for name in names {
            if let Some(Entry { value, place }) = self.table.get(*name)
                && text(value) != Some(OFF)
            {
                let place = place.clone();
                let wanted = format!("belongs to {kind}; remove it, or change the kind");
                self.fault_unshown(name, Some(place), wanted);
            }
        }
    }

    /// Everything else of the table, whatever its keys.
    pub fn rest(&mut self) -> Table {
        std::mem::take(&mut self.table)
    }

    fn take<T>(
        &mut self,
        name: &str,
        default: Option<String>,
        wanted: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let entry = self.ask(name, default)?;
        let parsed = parse(&entry.value);
        if parsed.is_none() {
            self.fault(name, Some(&entry), wanted);
        }
        parsed
    }

    /// A text that is not empty; `None` where it is not given.
    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        self.take(name, None, "wants a text that is not empty", not_empty)
    }

    /// A text that is not empty and must be given; `what` says what it is.
    pub fn required_text(&mut self, name: &str, what: &str) -> String {
        if !self.table.contains_key(name) {
            self.fault(name, None, &format!("is missing; wants {what}"));
        }
        self.take(name, None, &format!("wants {what}"), not_empty)
            .unwrap_or_default()
    }

    /// A text that is not empty.
    pub fn text(&mut self, name: &str, default: &str) -> String {
        let shown = quoted(default);
        let wanted = format!("wants a text that is not empty, such as {shown}");
        self.take(name, Some(shown), &wanted, not_empty)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A text that may be empty.
    pub fn any_text(&mut self, name: &str, default: &str) -> String {
        self.take(name, Some(quoted(default)), "wants a text", |v| {
            text(v).map(str::to_owned)
        })
        .unwrap_or_else(|| default.to_owned())
    }

    /// A text that passes `check`; `wanted` says which do.
    pub fn checked_text(
        &mut self,
        name: &str,
        default: &str,
        wanted: &str,
        check: impl Fn(&str) -> bool,
    ) -> String {
        self.take(name, Some(quoted(default)), wanted, |v| {
            text(v).filter(|t| check(t)).map(str::to_owned)
        })
        .unwrap_or_else(|| default.to_owned())
    }

    /// A text that passes `check`, or "off".
    pub fn text_or_off(
        &mut self,
        name: &str,
        default: Option<&str>,
        wanted: &str,
        check: impl Fn(&str) -> bool,
    ) -> Option<String> {
        self.take(
            name,
            Some(quoted(default.unwrap_or(OFF))),
            &format!("{wanted}, or \"off\""),
            |v| match text(v)? {
                OFF => Some(None),
                given => check(given).then(|| Some(given.to_owned())),
            },
        )
        .unwrap_or_else(|| default.map(str::to_owned))
    }

    /// One of a few names; the first is the default.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let names: Vec<_> = choices.iter().map(|(n, _)| quoted(n)).collect();
        let place = self.table.get(name).cloned();
        let found = self.take(name, names.first().cloned(), "", |v| {
            let given = text(v);
            Some(choices.iter().find(|(n, _)| Some(*n) == given))
        });
        match found {
            Some(Some((_, value))) => *value,
            Some(None) => {
                let given = place.as_ref().and_then(|e| text(&e.value)).unwrap_or("");
                let meant = suggestion(given, choices.iter().map(|(n, _)| *n))
                    .map(|n| format!(" (did you mean {n:?}?)"))
                    .unwrap_or_default();
                let wanted = format!("wants {}{meant}", names.join(" or "));
                self.fault(name, place.as_ref(), &wanted);
                choices[0].1
            }
            None => choices[0].1,
        }
    }

    /// A whole number.
    pub fn integer<T>(&mut self, name: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        let wanted = format!("wants a whole number {}", span(&range));
        self.take(name, Some(default.to_string()), &wanted, |v| {
            within(T::try_from(integer(v)?).ok()?, &range)
        })
        .unwrap_or(default)
    }

    /// A whole number, or "off", which is the default.
    pub fn integer_or_off<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        self.integer_or(OFF, name, range)
    }

    /// A whole number, or "auto".
    pub fn integer_or_auto<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        self.integer_or(AUTO, name, range)
    }

    fn integer_or<T>(&mut self, word: &str, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        let wanted = format!("wants a whole number {}, or \"{word}\"", span(&range));
        self.take(name, Some(quoted(word)), &wanted, |v| {
            if text(v) == Some(word) {
                return Some(None);
            }
            within(T::try_from(integer(v)?).ok()?, &range).map(Some)
        })
        .flatten()
    }

    /// A number with a fraction.
    pub fn decimal(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let wanted = format!("wants a number {}", span(&range));
        self.take(name, Some(format!("{default:?}")), &wanted, |v| {
            within(decimal(v)?, &range)
        })
        .unwrap_or(default)
    }

    /// A duration with its unit.
    pub fn duration(
        &mut self,
        name: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let wanted = wanted_duration(&range);
        self.take(name, Some(quoted(&shown_duration(default))), &wanted, |v| {
            within(humantime::parse_duration(text(v)?).ok()?, &range)
        })
        .unwrap_or(default)
    }

    /// A duration with its unit, or "off".
    pub fn duration_or_off(
        &mut self,
        name: &str,
        default: Option<Duration>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let wanted = format!("{}, or \"off\"", wanted_duration(&range));
        let shown = default.map_or_else(|| OFF.to_owned(), shown_duration);
        self.take(name, Some(quoted(&shown)), &wanted, |v| match text(v)? {
            OFF => Some(None),
            given => within(humantime::parse_duration(given).ok()?, &range).map(Some),
        })
        .unwrap_or(default)
    }

    /// A number of bytes, with a unit or without.
    pub fn size(&mut self, name: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let wanted = wanted_size(&range);
        self.take(name, Some(quoted(&shown_size(default))), &wanted, |v| {
            within(bytes(v)?, &range)
        })
        .unwrap_or(default)
    }

    /// A number of bytes, or "auto".
    pub fn size_or_auto(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let wanted = format!("{}, or \"{AUTO}\"", wanted_size(&range));
        self.take(name, Some(quoted(AUTO)), &wanted, |v| {
            if text(v) == Some(AUTO) {
                return Some(None);
            }
            within(bytes(v)?, &range).map(Some)
        })
        .flatten()
    }

    /// A secret, from `{ env = "NAME" }`, `{ file = "path" }`, or the key's own environment variable. `variable` looks
    /// an environment variable up.
    pub fn secret(
        &mut self,
        name: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Secret> {
        let entry = self.ask(name, None)?;
        match secret(&entry.value, variable) {
            Ok(secret) => Some(secret),
            Err(wanted) => {
                self.fault_unshown(name, Some(entry.place), wanted);
                None
            }
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (name, entry) in &self.table {
            let (key, place) = (self.key(name), Some(entry.place.clone()));
            let wanted = match suggestion(name, self.asked.iter().map(String::as_str)) {
                Some(meant) => {
                    let meant = match &entry.place {
                        Place::Line(_) => self.key(meant),
                        Place::Environment(_) => variable_name(&self.key(meant)),
                    };
                    format!("there is no such key; did you mean {meant}?")
                }
                None if self.path.is_empty() => format!(
                    "there is no such section; there are {}",
                    self.asked.join(", ")
                ),
                None => format!("there is no such key; there are {}", self.asked.join(", ")),
            };
            // The value is not shown: a misspelt key may hold a secret.
            self.notes.faults.borrow_mut().push(Fault {
                key,
                place,
                given: None,
                wanted,
            });
        }
    }
}

/// Takes a secret out of what was given. The error says what would do, and nothing of the secret.
pub fn secret(value: &Value, variable: &dyn Fn(&str) -> Option<String>) -> Result<Secret, String> {
    const WANTED: &str =
        "a secret is not written here; wants { env = \"NAME\" } or { file = \"path\" }";
    let text = match value {
        Value::Variable(text) => text.clone(),
        Value::Table(table) if table.len() == 1 => match table.iter().next() {
            Some((key, entry)) if key == "env" => {
                let name = text(&entry.value).ok_or(WANTED)?;
                variable(name).ok_or_else(|| format!("the environment has no variable {name}"))?
            }
            Some((key, entry)) if key == "file" => {
                let path = text(&entry.value).ok_or(WANTED)?;
                std::fs::read_to_string(path)
                    .map_err(|e| format!("the file {path} cannot be read: {e}"))?
            }
            _ => return Err(WANTED.to_owned()),
        },
        _ => return Err(WANTED.to_owned()),
    };
    // Files, and what is pasted into variables, mostly end with a line break that is not meant.
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("the secret is empty".to_owned()),
        text => Ok(Secret::new(text.to_owned())),
    }
}

/// The environment variable that sets a key.
pub fn variable_name(key: &str) -> String {
    format!("LIMN_{}", key.to_uppercase().replace('.', "__"))
}

/// The nearest of the names, where one is near enough to be meant.
pub fn suggestion<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|&(distance, name)| distance <= (name.len() / 3).clamp(1, 4))
        .min()
        .map(|(_, name)| name)
}

/// A text as TOML writes it; JSON writes it alike.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn wanted_size(range: &RangeInclusive<u64>) -> String {
    format!(
        "wants a size such as \"64MiB\", or a number of bytes, from {} to {}",
        shown_size(*range.start()),
        shown_size(*range.end())
    )
}

fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(n) => u64::try_from(*n).ok(),
        other => size(text(other)?),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) | Value::Variable(text) => Some(text),
        _ => None,
    }
}

fn not_empty(value: &Value) -> Option<String> {
    text(value)
        .filter(|t| !t.trim().is_empty())
        .map(str::to_owned)
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        Value::Variable(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn decimal(value: &Value) -> Option<f64> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "the ranges asked for are small")]
        Value::Integer(number) => Some(*number as f64),
        Value::Number(text) | Value::Variable(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>) -> Option<T> {
    range.contains(&value).then_some(value)
}

fn span<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("from {} to {}", range.start(), range.end())
}

fn wanted_duration(range: &RangeInclusive<Duration>) -> String {
    format!(
        "wants a duration with its unit, such as \"5s\" or \"10m\", from {} to {}",
        shown_duration(*range.start()),
        shown_duration(*range.end())
    )
}

fn shown_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

fn shown_size(bytes: u64) -> String {
    UNITS
        .iter()
        .take(3)
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(name, unit)| format!("{}{name}", bytes / unit),
        )
}
