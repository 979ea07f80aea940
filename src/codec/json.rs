//! A JSON value as an interaction, by the pointers of the configuration.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{JsonMapping, MAX_ATTRIBUTES, Reason, Rejected, TimeUnit, proto, too_many_attributes};

/// Milliseconds that a time may be from the Unix epoch: years -9999 to 9999, as RFC 3339 can write them.
const FURTHEST_MS: f64 = 253_402_300_799_999.0;

pub(super) fn interaction(
    mapping: &JsonMapping,
    value: &[u8],
    key: Option<&[u8]>,
) -> Result<proto::Interaction, Rejected> {
    let malformed = |detail: String| Rejected::new(Reason::Malformed, detail);
    // serde_json's messages give kind, line and column, and none of the text.
    let mut root: Value =
        serde_json::from_slice(value).map_err(|e| malformed(format!("not JSON: {e}")))?;
    if !root.is_object() {
        return Err(malformed("not a JSON object".to_owned()));
    }
    let mut take = |pointer: &Option<String>| -> Option<Value> {
        pointer
            .as_deref()
            .and_then(|p| root.pointer_mut(p))
            .map(Value::take)
    };
    let mut text = |name: &str, pointer: &Option<String>| match take(pointer) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::Bool(yes)) => Ok(yes.to_string()),
        Some(_) => Err(malformed(format!("{name} is not a text"))),
    };
    let user_id = match (&mapping.user, key) {
        (None, None) => String::new(),
        (None, Some(key)) => std::str::from_utf8(key)
            .map_err(|_| malformed("the record's key is not UTF-8".to_owned()))?
            .to_owned(),
        (pointer, _) => text("the user", pointer)?,
    };
    let mut interaction = proto::Interaction {
        user_id,
        id: text("the id", &mapping.id)?,
        time_ms: 0,
        action: text("the action", &mapping.action)?,
        item: Some(proto::Item {
            id: text("the item's id", &mapping.item_id)?,
            title: text("the item's title", &mapping.item_title)?,
            category: text("the item's category", &mapping.item_category)?,
            description: text("the item's description", &mapping.item_description)?,
        }),
        text: text("the text", &mapping.text)?,
        attributes: BTreeMap::new(),
    };
    if let Some(time) = take(&mapping.time) {
        interaction.time_ms = time_ms(&time, mapping.time_unit).ok_or_else(|| {
            malformed(format!(
                "the time is not what {:?} would be",
                mapping.time_unit
            ))
        })?;
    }
    if let Value::Object(fields) = root {
        flatten(fields, "", &mut interaction.attributes)?;
    }
    Ok(interaction)
}

/// 0 where the value is null or the number is: unset.
fn time_ms(value: &Value, unit: TimeUnit) -> Option<i64> {
    let per_second = match unit {
        TimeUnit::Seconds => 1.0,
        TimeUnit::Milliseconds => 1e3,
        TimeUnit::Microseconds => 1e6,
        TimeUnit::Nanoseconds => 1e9,
        TimeUnit::Rfc3339 => {
            return match value {
                Value::Null => Some(0),
                Value::String(text) if text.is_empty() => Some(0),
                Value::String(text) => text
                    .parse::<jiff::Timestamp>()
                    .ok()
                    .map(|t| t.as_millisecond()),
                _ => None,
            };
        }
    };
    let whole = match value {
        Value::Null => return Some(0),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => return None,
    };
    if let Some(whole) = whole {
        // Whole numbers stay exact: nanoseconds do not fit a double.
        let ms = match unit {
            TimeUnit::Seconds => whole.checked_mul(1000)?,
            TimeUnit::Milliseconds => whole,
            TimeUnit::Microseconds => whole.div_euclid(1000),
            _ => whole.div_euclid(1_000_000),
        };
        #[allow(clippy::cast_precision_loss)]
        return ((ms as f64).abs() <= FURTHEST_MS).then_some(ms);
    }
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    let ms = (number / per_second * 1e3).round();
    #[allow(clippy::cast_possible_truncation)]
    (ms.abs() <= FURTHEST_MS).then_some(ms as i64)
}

/// What no pointer took, under dotted names; nulls (and what was taken) are left out.
fn flatten(
    fields: Map<String, Value>,
    prefix: &str,
    into: &mut BTreeMap<String, String>,
) -> Result<(), Rejected> {
    for (name, value) in fields {
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        let text = match value {
            Value::Null => continue,
            Value::Object(inner) => {
                flatten(inner, &name, into)?;
                continue;
            }
            Value::String(text) => text,
            other => other.to_string(),
        };
        into.insert(name, text);
        if into.len() > MAX_ATTRIBUTES {
            return Err(too_many_attributes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> JsonMapping {
        let pointer = |p: &str| Some(p.to_owned());
        JsonMapping {
            user: pointer("/user/id"),
            id: pointer("/id"),
            time: pointer("/ts"),
            time_unit: TimeUnit::Seconds,
            action: pointer("/action"),
            item_title: pointer("/movie/title"),
            ..JsonMapping::default()
        }
    }

    fn read(json: &str) -> Result<proto::Interaction, Rejected> {
        interaction(&mapping(), json.as_bytes(), None)
    }

    #[test]
    fn mapped_fields_are_taken_and_everything_else_becomes_attributes() {
        let event = read(
            r#"{"user":{"id":42,"country":"NO"},"id":"e1","ts":12.5,"action":"loved",
               "movie":{"title":"Fargo","year":1996,"cast":["a","b"]},"ok":true,"no":null}"#,
        )
        .unwrap();
        assert_eq!(
            (event.user_id.as_str(), event.id.as_str(), event.time_ms),
            ("42", "e1", 12_500)
        );
        assert_eq!(event.item.unwrap().title, "Fargo");
        let attributes: Vec<_> = event
            .attributes
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            attributes,
            [
                ("movie.cast", r#"["a","b"]"#),
                ("movie.year", "1996"),
                ("ok", "true"),
                ("user.country", "NO")
            ]
        );
    }

    #[test]
    fn without_a_pointer_the_records_key_is_the_user() {
        let event = interaction(&JsonMapping::default(), b"{}", Some(b"ann")).unwrap();
        assert_eq!(event.user_id, "ann");
        let error = interaction(&JsonMapping::default(), b"{}", Some(b"\xff")).unwrap_err();
        assert_eq!(error.reason, Reason::Malformed);
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_malformed_and_named_without_its_text() {
        for (json, name) in [
            ("[1]", "object"),
            ("{", "JSON"),
            (r#"{"id":["secret"]}"#, "the id"),
            (r#"{"user":{"id":{"secret":1}}}"#, "the user"),
            (r#"{"ts":"secret"}"#, "the time"),
            (r#"{"ts":1e300}"#, "the time"),
        ] {
            let rejected = read(json).unwrap_err();
            assert_eq!(rejected.reason, Reason::Malformed, "{json}");
            assert!(
                rejected.detail.contains(name),
                "{json}: {}",
                rejected.detail
            );
            assert!(!rejected.detail.contains("secret"), "{}", rejected.detail);
        }
        let many: Vec<_> = (0..300).map(|i| format!("\"k{i}\":1")).collect();
        assert!(read(&format!("{{{}}}", many.join(","))).is_err());
    }

    #[test]
    fn a_time_is_read_in_its_unit() {
        let ms = |json: &str, unit| time_ms(&serde_json::from_str(json).unwrap(), unit);
        assert_eq!(ms("874965758", TimeUnit::Seconds), Some(874_965_758_000));
        assert_eq!(
            ms("\"874965758\"", TimeUnit::Seconds),
            Some(874_965_758_000)
        );
        assert_eq!(
            ms("874965758.0625", TimeUnit::Seconds),
            Some(874_965_758_063)
        );
        assert_eq!(
            ms("874965758000", TimeUnit::Milliseconds),
            Some(874_965_758_000)
        );
        assert_eq!(
            ms("874965758000999", TimeUnit::Microseconds),
            Some(874_965_758_000)
        );
        assert_eq!(
            ms("874965758000999999", TimeUnit::Nanoseconds),
            Some(874_965_758_000)
        );
        assert_eq!(
            ms("\"1997-09-22T21:02:38Z\"", TimeUnit::Rfc3339),
            Some(874_962_158_000)
        );
        assert_eq!(
            ms("\"1997-09-22T23:02:38.5+02:00\"", TimeUnit::Rfc3339),
            Some(874_962_158_500)
        );
        assert_eq!(ms("null", TimeUnit::Seconds), Some(0));
        assert_eq!(ms("9223372036854775807", TimeUnit::Seconds), None);
        assert_eq!(ms("true", TimeUnit::Seconds), None);
        assert_eq!(ms("5", TimeUnit::Rfc3339), None);
    }
}
