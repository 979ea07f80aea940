//! A JSON value that borrows its texts from the bytes that it was read from.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Number;

/// A value; texts are borrowed where nothing in them is escaped.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Fields<'a>),
}

/// An object's fields by name, each name once: of several of one name the last one counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

impl<'a> Fields<'a> {
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Json<'a>> {
        let at = self.0.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }
}

impl<'a> IntoIterator for Fields<'a> {
    type Item = (Cow<'a, str>, Json<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Puts entries into the order of their names, and of those that share one leaves the last.
pub(super) fn last_of_each<V>(entries: &mut Vec<(Cow<'_, str>, V)>) {
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    // The sort is stable, so the last one comes last: it takes the place of those before it.
    entries.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            std::mem::swap(later, kept);
        }
        same
    });
}

impl Json<'_> {
    /// Compact JSON.
    pub(super) fn compact(&self) -> String {
        // Names are texts and numbers are numbers, so it does not fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Bool(truth) => to.serialize_bool(*truth),
            Self::Number(number) => number.serialize(to),
            Self::Text(text) => to.serialize_str(text),
            Self::Array(items) => to.collect_seq(items),
            Self::Object(fields) => {
                let mut map = to.serialize_map(Some(fields.0.len()))?;
                for (name, value) in &fields.0 {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        // The parser refuses what is out of range, and JSON has no other numbers that are none.
        Ok(Number::from_f64(number).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = from.next_entry()? {
            fields.push((name, value));
        }
        last_of_each(&mut fields);
        Ok(Json::Object(Fields(fields)))
    }
}

/// A field's name.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }

        from.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_read_and_written_as_serde_json_does(value in values()) {
            let text = value.to_string();
            let read: Json<'_> = serde_json::from_str(&text).unwrap();
            // Not the text itself: a number of many digits is read to within its last.
            let expected: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.compact(), expected.to_string());
        }

        #[test]
        fn bytes_are_taken_or_refused_as_serde_json_does(bytes in "[\\[\\]{}:,\"\\\\a1.e \u{e9}-]{0,24}") {
            let one = serde_json::from_slice::<Json<'_>>(bytes.as_bytes()).map(|v| v.compact());
            let other = serde_json::from_slice::<Value>(bytes.as_bytes()).map(|v| v.to_string());
            prop_assert_eq!(one.ok(), other.ok());
        }

        #[test]
        fn of_few_fields_and_of_many_the_last_of_a_name_counts(names in prop::collection::vec("[a-z]", 0..60)) {
            let fields = names.iter().enumerate().map(|(n, name)| format!("\"{name}\":{n}"));
            let text = format!("{{{}}}", fields.collect::<Vec<_>>().join(","));
            let expected: Value = serde_json::from_str(&text).unwrap();
            let mut read: Json<'_> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.compact(), expected.to_string());
            let Json::Object(fields) = &mut read else { panic!("an object") };
            for (name, value) in expected.as_object().unwrap() {
                let found = fields.get_mut(name).map(|found| found.compact());
                prop_assert_eq!(found, Some(value.to_string()));
            }
            prop_assert!(fields.get_mut("no such").is_none());
            let order: Vec<String> = fields.clone().into_iter().map(|(name, _)| name.into_owned()).collect();
            prop_assert_eq!(order, expected.as_object().unwrap().keys().cloned().collect::<Vec<_>>());
        }

        #[test]
        fn of_entries_of_one_name_the_last_is_left(names in prop::collection::vec("[a-d]", 0..12)) {
            let mut entries: Vec<(Cow<'_, str>, usize)> =
                names.iter().enumerate().map(|(n, name)| (name.as_str().into(), n)).collect();
            let expected: std::collections::BTreeMap<_, _> = entries.iter().cloned().collect();
            last_of_each(&mut entries);
            prop_assert_eq!(entries, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn texts_are_borrowed_unless_something_in_them_is_escaped() {
        let Json::Object(fields) = serde_json::from_str(r#"{"a":"plain","b\n":"\u0041"}"#).unwrap()
        else {
            panic!("an object");
        };
        let fields: Vec<_> = fields.into_iter().collect();
        assert!(matches!(
            &fields[0],
            (Cow::Borrowed("a"), Json::Text(Cow::Borrowed("plain")))
        ));
        assert!(
            matches!(&fields[1], (Cow::Owned(name), Json::Text(Cow::Owned(text))) if name == "b\n" && text == "A")
        );
    }
}
