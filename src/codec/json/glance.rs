//! A look at an object as most are, flat and without escapes: what the stream needs of it, in one pass, and nothing is built.

use super::super::{MAX_ATTRIBUTES, MAX_TIME_MS, MAX_USER_BYTES};
use super::tree::Json;
use super::{Pointer, Reader, time};

/// What [`Reader::read`] would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::codec) struct Glance<'a> {
    pub(in crate::codec) user: &'a str,
    /// The value's own event time; 0 where there is none.
    pub(in crate::codec) time_ms: i64,
}

/// Digits of a whole number that no 64 bits are too few for.
const DIGITS: usize = 18;

/// Texts up to here are within every limit but those of texts.
const SHORT: usize = 32;

impl Reader {
    /// Takes a value that [`Reader::read`] takes too, with the same user and time, and nothing in it over a limit; or says `None`: what
    /// is broken, nested, escaped, or in any other way unusual is for that one to judge.
    pub(in crate::codec) fn glance<'a>(
        &self,
        value: &'a [u8],
        key: Option<&'a [u8]>,
        max_text: usize,
    ) -> Option<Glance<'a>> {
        // Of the others nothing points into a flat object but at its fields, and takes whatever such a field holds.
        if max_text < SHORT || !self.inside {
            return None;
        }
        let mut rest = Rest::of(value)?;
        let (user_at, time_at) = (name(&self.user)?, name(&self.time)?);
        let (mut user, mut time_found) = (None, None);
        let mut fields = 0;
        rest.token(b'{')?;
        loop {
            let field = rest.text()?;
            rest.token(b':')?;
            let found = rest.value()?;
            let length = found.text().map_or(0, <[u8]>::len);
            fields += 1;
            if field.len().max(length) > max_text || fields > MAX_ATTRIBUTES {
                return None;
            }
            // Of two of one name the last one counts.
            if user_at == Some(field) && user.replace(found).is_some() {
                return None;
            }
            if time_at == Some(field) && time_found.replace(found).is_some() {
                return None;
            }
            if !rest.next_is(b',') {
                break;
            }
        }
        rest.token(b'}')?;
        rest.end()?;
        let user = match (user_at, user) {
            (None, _) => key?,
            (Some(_), Some(Found::Text(user) | Found::Whole(user))) => user,
            _ => return None,
        };
        if user.is_empty() || user.len() > MAX_USER_BYTES {
            return None;
        }
        let time_ms = match (&self.time, time_found) {
            (Some(pointer), Some(found)) => time(pointer, self.unit, Some(&found.json()?)).ok()?,
            _ => 0,
        };
        if time_ms > MAX_TIME_MS {
            return None;
        }
        Some(Glance {
            user: std::str::from_utf8(user).ok()?,
            time_ms,
        })
    }
}

/// The field that a pointer names, if there is a pointer; `None` where it points deeper.
fn name(pointer: &Option<Pointer>) -> Option<Option<&[u8]>> {
    match pointer {
        None => Some(None),
        Some(pointer) => match &*pointer.tokens {
            [name] if pointer.written.starts_with('/') => Some(Some(name.as_bytes())),
            _ => None,
        },
    }
}

/// A field's value.
#[derive(Debug, Clone, Copy)]
enum Found<'a> {
    Text(&'a [u8]),
    /// Digits.
    Whole(&'a [u8]),
    Bool(bool),
    Null,
}

impl<'a> Found<'a> {
    fn text(self) -> Option<&'a [u8]> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn json(self) -> Option<Json<'a>> {
        Some(match self {
            Self::Text(text) => Json::Text(std::str::from_utf8(text).ok()?.into()),
            Self::Whole(digits) => {
                let digits = std::str::from_utf8(digits).ok()?;
                Json::Number(digits.parse::<u64>().ok()?.into())
            }
            Self::Bool(truth) => Json::Bool(truth),
            Self::Null => Json::Null,
        })
    }
}

/// What was not looked at yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// `None` where it is no UTF-8, or has control characters: those between tokens would be white space, those in texts are forbidden.
    fn of(value: &'a [u8]) -> Option<Self> {
        // In one stretch without a way out, which the compiler makes wide operations of.
        let plain = |byte: u8| (b' '..0x80).contains(&byte);
        if !value.iter().fold(true, |all, &byte| all & plain(byte))
            && (std::str::from_utf8(value).is_err() || value.iter().any(|&byte| byte < b' '))
        {
            return None;
        }
        Some(Self(value))
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some((b' ', rest)) = self.0.split_first() {
            self.0 = rest;
        }
        self.0.first().copied()
    }

    fn next_is(&mut self, token: u8) -> bool {
        let is = self.peek() == Some(token);
        if is {
            self.0 = &self.0[1..];
        }
        is
    }

    fn token(&mut self, token: u8) -> Option<()> {
        self.next_is(token).then_some(())
    }

    fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A text in which nothing is escaped.
    fn text(&mut self) -> Option<&'a [u8]> {
        self.token(b'"')?;
        let end = memchr::memchr2(b'"', b'\\', self.0)?;
        let text = self.take(end);
        self.token(b'"')?;
        Some(text)
    }

    fn value(&mut self) -> Option<Found<'a>> {
        Some(match self.peek()? {
            b'"' => Found::Text(self.text()?),
            b'0'..=b'9' => {
                let digits = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
                let digits = self.take(digits);
                // What follows, if it is of the number, is none of the tokens that may follow.
                let whole = digits.len() <= DIGITS && (digits[0] != b'0' || digits.len() == 1);
                whole.then_some(Found::Whole(digits))?
            }
            b't' => self.word(b"true", Found::Bool(true))?,
            b'f' => self.word(b"false", Found::Bool(false))?,
            b'n' => self.word(b"null", Found::Null)?,
            _ => return None,
        })
    }

    fn word(&mut self, word: &[u8], found: Found<'a>) -> Option<Found<'a>> {
        (self.take(word.len()) == word).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{Config, Decoder, Format, JsonMapping, TimeUnit};
    use crate::event::Record;

    fn mapping(user: Option<&str>, time: Option<&str>, unit: TimeUnit) -> JsonMapping {
        JsonMapping {
            user: user.map(str::to_owned),
            time: time.map(str::to_owned),
            time_unit: unit,
            action: Some("/a".to_owned()),
            item_id: Some("/b/c".to_owned()),
            ..JsonMapping::default()
        }
    }

    /// Where a glance finds something, it is what the parser finds; and whether it finds anything.
    fn agrees(mapping: JsonMapping, value: &str, key: &str) -> bool {
        let record = Record {
            key: Some(key.as_bytes().to_vec().into()),
            value: Some(value.as_bytes().to_vec().into()),
            ..Record::default()
        };
        let reader = Reader::new(&mapping);
        let config = Config {
            format: Format::Json(Box::new(mapping)),
            max_text_bytes: 40,
            max_event_bytes: 1000,
        };
        let Some(glance) = reader.glance(value.as_bytes(), record.key.as_deref(), 40) else {
            return false;
        };
        // What has no time of its own has Kafka's here.
        let read = Decoder::new(config).interaction(&record, Some(77)).unwrap();
        let time_ms = if glance.time_ms > 0 {
            glance.time_ms
        } else {
            77
        };
        assert_eq!((glance.user, time_ms), (&*read.user_id, read.time_ms));
        true
    }

    fn plain(value: &str) -> bool {
        let at = mapping(Some("/u"), Some("/t"), TimeUnit::Milliseconds);
        agrees(at, value, "key")
    }

    #[test]
    fn flat_objects_are_taken_with_whatever_they_hold() {
        for value in [
            r#"{"u":"ann","t":1700000000000,"a":"liked","x":true,"y":false,"z":null,"n":0}"#,
            r#" { "u" : "ann" , "t" : 5 } "#,
            r#"{"u":12,"t":"5","a":3}"#,
            r#"{"u":"Zo\u00eb é","t":5}"#.replace("\\u00eb", "ë").as_str(),
            r#"{"u":"ann"}"#,
            r#"{"u":"ann","t":null,"x":1,"x":2}"#,
        ] {
            assert!(plain(value), "{value}");
        }
        let keyed = mapping(None, None, TimeUnit::Seconds);
        assert!(agrees(keyed, r#"{"u":"ann","t":5}"#, "bob"));
        let written = mapping(Some("/u"), Some("/t"), TimeUnit::Rfc3339);
        assert!(agrees(
            written,
            r#"{"u":"ann","t":"2026-01-01T00:00:00Z"}"#,
            ""
        ));
    }

    #[test]
    fn what_is_unusual_or_wrong_is_left_to_the_parser() {
        let long = "x".repeat(41);
        for value in [
            r#"{}"#,
            r#"{"u":"ann","t":5"#,
            r#"{"u":"ann","t":5} x"#,
            r#"{"u":"ann","t":5,}"#,
            r#"{"u":"ann" "t":5}"#,
            r#"{"u":"ann","t":05}"#,
            r#"{"u":"ann","t":5.5}"#,
            r#"{"u":"ann","t":5e3}"#,
            r#"{"u":"ann","t":-5}"#,
            r#"{"u":"ann","t":1234567890123456789}"#,
            r#"{"u":"ann","t":true}"#,
            r#"{"u":"ann","t":"soon"}"#,
            r#"{"u":"a\nn","t":5}"#,
            r#"{"u":"ann\u0041","t":5}"#,
            r#"{"\u0075":"ann","t":5}"#,
            r#"{"u":"","t":5}"#,
            r#"{"u":null,"t":5}"#,
            r#"{"u":true,"t":5}"#,
            r#"{"t":5}"#,
            r#"{"u":"ann","u":"bob","t":5}"#,
            r#"{"u":"ann","t":5,"t":6}"#,
            r#"{"u":"ann","t":5,"b":{"c":"d"}}"#,
            r#"{"u":"ann","t":5,"x":[1]}"#,
            r#"{"u":"ann","t":5,"x":nul}"#,
            r#"{"u":"ann","t":5,"x":nully}"#,
            r#"["u","ann"]"#,
            "{\"u\":\"a\u{1}n\",\"t\":5}",
            "{\"u\":\"ann\",\n\"t\":5}",
            &format!(r#"{{"u":"ann","t":5,"x":"{long}"}}"#),
            &format!(r#"{{"u":"ann","t":5,"{long}":1}}"#),
            &format!(r#"{{"u":"{}","t":5}}"#, "u".repeat(MAX_USER_BYTES + 1)),
            "",
        ] {
            assert!(!plain(value), "{value}");
        }
        let many: String = (0..=MAX_ATTRIBUTES)
            .map(|n| format!(r#","{n}":1"#))
            .collect();
        assert!(!plain(&format!(r#"{{"u":"ann"{many}}}"#)));
        for (user, time) in [
            (Some(""), None),
            (Some("/u/x"), None),
            (Some("/u"), Some("/t/x")),
        ] {
            let at = mapping(user, time, TimeUnit::Seconds);
            assert!(!agrees(at, r#"{"u":"ann","t":5}"#, "bob"));
        }
    }

    fn objects() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            Just("u".to_owned()),
            Just("t".to_owned()),
            Just("a".to_owned()),
            Just("b".to_owned()),
            "[a-z\\\\é]{0,3}"
        ];
        let value = prop_oneof![
            "\"[a-z0-9 é\\\\]{0,12}\"",
            any::<u32>().prop_map(|n| n.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f32>().prop_map(|n| n.to_string()),
            Just("true".to_owned()),
            Just("null".to_owned()),
            Just("{\"c\":1}".to_owned()),
            "[0-9ntf{\\[\"]{0,3}",
        ];
        let space = || " {0,1}";
        let field = (space(), name, space(), space(), value, space());
        let field = field.prop_map(|(a, n, b, c, v, d)| format!("{a}\"{n}\"{b}:{c}{v}{d}"));
        prop::collection::vec(field, 0..6).prop_map(|fields| format!("{{{}}}", fields.join(",")))
    }

    proptest! {
        #[test]
        fn what_a_glance_takes_the_parser_takes_alike(value in objects(), keyed: bool, seconds: bool) {
            let unit = if seconds { TimeUnit::Seconds } else { TimeUnit::Milliseconds };
            agrees(mapping((!keyed).then_some("/u"), Some("/t"), unit), &value, "key");
        }

        #[test]
        fn any_bytes_are_looked_at_without_harm(value in "[{}\":,a-z0-9 \\\\\\[\\]]{0,40}") {
            plain(&value);
        }
    }
}
