//! The file and the environment as one tree of values that know where they were given.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Place};

/// What environment variables of the configuration begin with.
const PREFIX: &str = "LIMN_";
/// What stands between a section and its key in an environment variable.
const DIVIDER: &str = "__";

/// A table: its entries by key.
pub type Table = BTreeMap<String, Entry>;

/// A value and where it was given.
#[derive(Clone)]
pub struct Entry {
    pub value: Value,
    pub place: Place,
}

/// A value as it was given. No `Debug`: it may be a secret.
#[derive(Clone)]
pub enum Value {
    /// A string of the file.
    Text(String),
    /// The text of an environment variable: any scalar may be meant.
    Variable(String),
    Integer(i64),
    /// An integer that has no place in 64 bits, or a number with a fraction: as it is written.
    Number(String),
    Bool(bool),
    Table(Table),
    /// Nothing that a key of limn takes, by its name in TOML.
    Other(&'static str),
}

impl Value {
    /// As a fault shows it. Keys that may hold secrets are never shown.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) | Self::Variable(text) => {
                let mut short: String = text.chars().take(60).collect();
                if short.len() < text.len() {
                    short.push('…');
                }
                format!("{short:?}")
            }
            Self::Integer(number) => number.to_string(),
            Self::Number(number) => number.clone(),
            Self::Bool(value) => value.to_string(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(name) => format!("a TOML {name}"),
        }
    }
}

/// Reads the file; every syntax fault is told.
pub fn parse(text: &str) -> Result<Table, Vec<Fault>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(document.get_ref(), text));
    }
    Err(errors
        .iter()
        .map(|error| Fault {
            key: String::new(),
            place: error.span().map(|span| Place::Line(line(text, &span))),
            given: None,
            // Never the line itself: it may hold a secret.
            wanted: format!("not TOML: {}", error.message()),
        })
        .collect())
}

fn table(table: &DeTable<'_>, text: &str) -> Table {
    table
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), entry(value, key.span(), text)))
        .collect()
}

fn entry(value: &Spanned<DeValue<'_>>, key: Range<usize>, text: &str) -> Entry {
    let value = match value.get_ref() {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .map_or_else(|_| Value::Number(i.to_string()), Value::Integer),
        DeValue::Float(f) => Value::Number(f.as_str().to_owned()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Table(inner) => Value::Table(self::table(inner, text)),
        other => Value::Other(other.type_str()),
    };
    Entry {
        value,
        place: Place::Line(line(text, &key)),
    }
}

fn line(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    before.iter().filter(|&&b| b == b'\n').count() + 1
}

/// Lays `LIMN_SECTION__KEY` variables over the file's values. Of two spellings of one key the later in the alphabet
/// stays; variables without a section are none of ours.
pub fn overlay(
    root: &mut Table,
    environment: impl IntoIterator<Item = (String, String)>,
    faults: &mut Vec<Fault>,
) {
    let mut variables: Vec<_> = environment
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX) && name.contains(DIVIDER))
        .collect();
    variables.sort();
    for (name, text) in variables {
        let path: Vec<String> = name[PREFIX.len()..]
            .split(DIVIDER)
            .map(str::to_lowercase)
            .collect();
        let place = Place::Environment(name);
        if path.iter().any(String::is_empty) {
            faults.push(Fault {
                key: path.join("."),
                place: Some(place),
                given: None,
                wanted: "a variable is named LIMN_SECTION__KEY".to_owned(),
            });
            continue;
        }
        put(root, &path, text, &place);
    }
}

fn put(table: &mut Table, path: &[String], text: String, place: &Place) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.insert(
            key.clone(),
            Entry {
                value: Value::Variable(text),
                place: place.clone(),
            },
        );
        return;
    }
    let entry = table.entry(key.clone()).or_insert_with(|| Entry {
        value: Value::Table(Table::new()),
        place: place.clone(),
    });
    // A deeper variable takes the place of a scalar: what the environment says goes.
    if !matches!(entry.value, Value::Table(_)) {
        *entry = Entry {
            value: Value::Table(Table::new()),
            place: place.clone(),
        };
    }
    if let Value::Table(inner) = &mut entry.value {
        put(inner, rest, text, place);
    }
}
