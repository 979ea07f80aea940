//! What is wrong with a configuration: each fault with its key, what was given and what would do.

use std::fmt;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, counted from 1.
    Line(usize),
    /// An environment variable, by its name.
    Environment(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key with its sections, such as `window.gap`; empty where the file as a whole is meant.
    pub key: String,
    /// Where it was given; `None` where it was not.
    pub place: Option<Place>,
    /// What was given. Never a secret.
    pub given: Option<String>,
    /// What would do.
    pub wanted: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
        }
        match (&self.place, self.key.is_empty()) {
            (Some(place), false) => write!(f, " ({place})")?,
            (Some(place), true) => write!(f, "{place}")?,
            (None, _) => {}
        }
        if self.place.is_some() || !self.key.is_empty() {
            f.write_str(": ")?;
        }
        if let Some(given) = &self.given {
            write!(f, "given {given}; ")?;
        }
        f.write_str(&self.wanted)
    }
}

/// All that is wrong, in the order in which it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// A single fault without a key: the file cannot be used at all.
    #[must_use]
    pub fn whole(wanted: String) -> Self {
        Self(vec![Fault {
            key: String::new(),
            place: None,
            given: None,
            wanted,
        }])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}
