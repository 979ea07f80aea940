use super::*;
use crate::codec::{Config, Decoder, Format, proto};
use crate::event::Record;

fn mapping() -> JsonMapping {
    let some = |pointer: &str| Some(pointer.to_owned());
    JsonMapping {
        user: some("/user"),
        id: some("/meta/id"),
        time: some("/ts"),
        time_unit: TimeUnit::Seconds,
        action: some("/action"),
        item_id: some("/item/id"),
        item_title: some("/item/names/0"),
        item_category: some("/item/a~1b~0c"),
        item_description: None,
        text: some("/text"),
    }
}

fn read_with(mapping: JsonMapping, json: &str) -> Result<proto::Interaction, Rejected> {
    let config = Config {
        format: Format::Json(Box::new(mapping)),
        max_text_bytes: 1000,
        max_event_bytes: 100_000,
    };
    let record = Record {
        key: Some(b"key"[..].into()),
        value: Some(json.to_owned().into()),
        headers: [].into(),
    };
    Decoder::new(config).interaction(&record, None)
}

fn read(json: &str) -> Result<proto::Interaction, Rejected> {
    read_with(mapping(), json)
}

fn attributes(json: &str) -> Vec<(String, String)> {
    read(json).unwrap().attributes.into_iter().collect()
}

/// The event time of `ts` in `unit`.
fn timed(unit: TimeUnit, ts: &str) -> Result<i64, Rejected> {
    let mut mapping = mapping();
    mapping.time_unit = unit;
    let read = read_with(mapping, &format!(r#"{{"user":"ann","ts":{ts}}}"#))?;
    Ok(read.time_ms)
}

#[test]
fn every_field_is_found_by_its_pointer_and_the_rest_become_attributes() {
    let json = r#"{"user":"ann","ts":12,"action":"liked","text":"wow","meta":{"id":"e1","by":"app"},
        "item":{"id":7,"names":["Heat","x"],"a/b~c":"film","stars":4.5},"ok":true,"none":null,"empty":{}}"#;
    let expected = proto::Interaction {
        user_id: "ann".to_owned(),
        id: "e1".to_owned(),
        time_ms: 12_000,
        action: "liked".to_owned(),
        item: Some(proto::Item {
            id: "7".to_owned(),
            title: "Heat".to_owned(),
            category: "film".to_owned(),
            description: String::new(),
        }),
        text: "wow".to_owned(),
        attributes: [
            ("item.names", r#"[null,"x"]"#),
            ("item.stars", "4.5"),
            ("meta.by", "app"),
            ("ok", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
    };
    assert_eq!(read(json), Ok(expected));
}

#[test]
fn nested_values_get_dotted_names_and_arrays_stay_compact_json() {
    assert_eq!(
        attributes(r#"{"user":"ann","ts":1,"a":{"b":{"c":"d"}},"list":[1, {"k" : [ ]}]}"#),
        [("a.b.c", "d"), ("list", r#"[1,{"k":[]}]"#)].map(|(n, v)| (n.to_owned(), v.to_owned()))
    );
}

#[test]
fn a_pointer_may_point_into_what_another_points_at() {
    let mut inside = mapping();
    inside.text = Some("/item/names".to_owned());
    let json = r#"{"user":"ann","ts":1,"item":{"names":["Heat","x"]}}"#;
    let rejected = read_with(inside.clone(), json).unwrap_err();
    assert_eq!(rejected.detail, "an array instead of a text at /item/names");
    let read = read_with(inside, r#"{"user":"ann","ts":1,"item":{"names":"Heat"}}"#).unwrap();
    assert_eq!((read.text.as_str(), read.attributes.len()), ("Heat", 0));
}

#[test]
fn two_pointers_may_name_one_field() {
    let mut both = mapping();
    both.item_title = both.text.clone();
    let read = read_with(both, r#"{"user":"ann","ts":1,"text":"wow"}"#).unwrap();
    assert_eq!(
        (read.text, read.item.unwrap().title),
        ("wow".into(), "wow".into())
    );
    assert!(read.attributes.is_empty());
}

#[test]
fn a_user_may_be_a_whole_number_and_nothing_like_it() {
    let user = |json: &str| read(&format!(r#"{{"ts":1,"user":{json}}}"#));
    let reason = |json: &str| user(json).unwrap_err().reason;
    for (json, id) in [
        ("42", "42"),
        ("-42", "-42"),
        ("42.0", "42"),
        ("18446744073709551615", "18446744073709551615"),
        (r#""4.2""#, "4.2"),
        (r#""a\u0000\n""#, "a\0\n"),
    ] {
        assert_eq!(user(json).unwrap().user_id, id);
    }
    // Behind 64 bits a number is no longer exact: two users would become one.
    for json in ["4.2", "18446744073709551616", "1e300", "true", "{}", "[1]"] {
        assert_eq!(reason(json), Reason::Malformed, "{json}");
    }
    for json in ["null", r#""""#] {
        assert_eq!(reason(json), Reason::NoUser, "{json}");
    }
    assert_eq!(read(r#"{"ts":1}"#).unwrap_err().reason, Reason::NoUser);
}

#[test]
fn without_a_pointer_the_user_is_the_key() {
    let mut keyed = mapping();
    keyed.user = None;
    assert_eq!(
        read_with(keyed.clone(), r#"{"ts":1}"#).unwrap().user_id,
        "key"
    );
    let reader = Reader::new(&keyed);
    let rejected = reader.read(b"{}", Some(b"\xff"), 9).unwrap_err();
    assert_eq!(rejected.reason, Reason::Malformed);
    assert_eq!(reader.read(b"{}", None, 9).unwrap().user_id, "");
}

#[test]
fn a_time_is_read_in_its_unit_to_the_nearest_millisecond() {
    use TimeUnit::{Microseconds, Milliseconds, Nanoseconds, Rfc3339, Seconds};
    const MS: i64 = 1_700_000_000_123;
    for (unit, ts) in [
        (Seconds, "1700000000.123"),
        (Seconds, r#""1700000000.123""#),
        (Seconds, "1.700000000123e9"),
        (Milliseconds, "1700000000123"),
        (Milliseconds, r#"" 1700000000123 ""#),
        (Milliseconds, "1700000000122.6"),
        (Microseconds, "1700000000123000"),
        (Microseconds, "1700000000122500"),
        (Microseconds, "1700000000123499"),
        (Nanoseconds, "1700000000122500000"),
        (Nanoseconds, "1700000000123499999"),
        (Nanoseconds, "1.700000000123e18"),
        (Rfc3339, r#""2023-11-14T22:13:20.123Z""#),
        (Rfc3339, r#""2023-11-14T23:13:20.1226+01:00""#),
    ] {
        assert_eq!(timed(unit, ts), Ok(MS), "{unit:?} {ts}");
    }
    assert_eq!(timed(Seconds, "1700000000"), Ok(1_700_000_000_000));
}

#[test]
fn a_time_out_of_range_or_of_another_kind_is_malformed() {
    use TimeUnit::{Milliseconds, Nanoseconds, Rfc3339, Seconds};
    for (unit, ts) in [
        // Milliseconds where seconds were configured.
        (Seconds, "1700000000123"),
        (Seconds, "9223372036854775807"),
        (Seconds, r#""170141183460469231731687303715884105727""#),
        (Milliseconds, "18446744073709551615"),
        (Milliseconds, "1e300"),
        (Milliseconds, "-1e300"),
        (Milliseconds, r#""inf""#),
        (Milliseconds, r#""NaN""#),
        (Milliseconds, r#""""#),
        (Milliseconds, r#""soon""#),
        (Milliseconds, "true"),
        (Nanoseconds, "[1]"),
        (Rfc3339, "1700000000"),
        (Rfc3339, r#""1700000000""#),
        (Rfc3339, r#""2023-11-14T22:13:20""#),
        (Rfc3339, r#""2023-02-30T00:00:00Z""#),
        (Rfc3339, "{}"),
    ] {
        let rejected = timed(unit, ts).unwrap_err();
        assert_eq!(rejected.reason, Reason::Malformed, "{unit:?} {ts}");
    }
}

#[test]
fn an_absent_null_or_zero_time_is_unset() {
    use TimeUnit::{Milliseconds, Rfc3339};
    for ts in ["null", "0", "-5", "0.4"] {
        assert_eq!(timed(Milliseconds, ts).unwrap_err().reason, Reason::NoTime);
    }
    let epoch = timed(Rfc3339, r#""1970-01-01T00:00:00Z""#);
    assert_eq!(epoch.unwrap_err().reason, Reason::NoTime);
}

#[test]
fn a_field_of_the_wrong_kind_is_malformed_and_its_pointer_is_told() {
    for (json, pointer) in [
        (r#"{"user":"ann","ts":1,"text":["secret"]}"#, "/text"),
        (
            r#"{"user":"ann","ts":1,"meta":{"id":{"k":"secret"}}}"#,
            "/meta/id",
        ),
        (r#"{"user":["secret"],"ts":1}"#, "/user"),
        (r#"{"user":"ann","ts":"secret"}"#, "/ts"),
    ] {
        let rejected = read(json).unwrap_err();
        assert_eq!(rejected.reason, Reason::Malformed);
        assert!(
            rejected.detail.ends_with(&format!(" at {pointer}")),
            "{}",
            rejected.detail
        );
        assert!(!rejected.detail.contains("secret"), "{}", rejected.detail);
    }
}

#[test]
fn null_is_absent_and_of_duplicate_keys_the_last_one_counts() {
    let read = read(r#"{"user":"bob","user":"ann","ts":1,"text":null,"item":null,"x":1,"x":2}"#);
    let read = read.unwrap();
    assert_eq!((read.user_id.as_str(), read.text.as_str()), ("ann", ""));
    assert_eq!(read.item, None);
    assert_eq!(read.attributes["x"], "2");
}

#[test]
fn what_is_not_a_json_object_in_utf8_is_malformed() {
    let reader = Reader::new(&mapping());
    for value in [
        &b""[..],
        b"{",
        b"[]",
        b"\"secret\"",
        b"{\"user\":\"ann\"} x",
        b"{\"user\":secret}",
        b"{\"user\":\"\xff\"}",
        b"{\"\xff\":1}",
        b"\xef\xbb\xbf{}",
        b"{\"user\":\"\\ud800\"}",
    ] {
        let rejected = reader.read(value, None, 100).unwrap_err();
        assert_eq!(rejected.reason, Reason::Malformed);
        assert!(!rejected.detail.contains("secret"), "{}", rejected.detail);
    }
}

#[test]
fn nesting_without_end_is_malformed() {
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(10_000), close.repeat(10_000));
        read(&format!(r#"{{"user":"ann","ts":1,"x":{open}0{close}}}"#))
    };
    assert_eq!(deep("[", "]").unwrap_err().reason, Reason::Malformed);
    assert_eq!(deep(r#"{"":"#, "}").unwrap_err().reason, Reason::Malformed);
    // A name that serde_json's own values treat in a way of their own: they parse its text anew.
    let raw = r#"{"$serde_json::private::RawValue":"{\"a\":1}"}"#;
    assert_eq!(
        attributes(&format!(r#"{{"user":"ann","ts":1,"x":{raw}}}"#)),
        [(
            "x.$serde_json::private::RawValue".to_owned(),
            r#"{"a":1}"#.to_owned()
        )]
    );
}

#[test]
fn attributes_are_bounded_in_number_and_length() {
    let many = |n: usize| {
        let fields: Vec<String> = (0..n).map(|n| format!(r#""{n}":1"#)).collect();
        read(&format!(
            r#"{{"user":"ann","ts":1,"a":{{{}}}}}"#,
            fields.join(",")
        ))
    };
    assert_eq!(
        many(MAX_ATTRIBUTES).unwrap().attributes.len(),
        MAX_ATTRIBUTES
    );
    assert_eq!(
        many(MAX_ATTRIBUTES + 1).unwrap_err().reason,
        Reason::Malformed
    );
    let long = |n: usize| "x".repeat(n);
    for (json, fits) in [
        (format!(r#""{}":1"#, long(1000)), true),
        (format!(r#""{}":1"#, long(1001)), false),
        (format!(r#""a":{{"{}":1}}"#, long(998)), true),
        (format!(r#""a":{{"{}":1}}"#, long(999)), false),
        (format!(r#""a":"{}""#, long(1000)), true),
        (format!(r#""a":"{}""#, long(1001)), false),
        (format!(r#""a":["{}"]"#, long(996)), true),
        (format!(r#""a":["{}"]"#, long(997)), false),
    ] {
        let read = read(&format!(r#"{{"user":"ann","ts":1,{json}}}"#));
        let reason = read.map_err(|rejected| rejected.reason);
        assert_eq!(reason.err(), (!fits).then_some(Reason::TextTooLong));
    }
}

#[test]
fn a_pointer_that_points_nowhere_leaves_its_field_empty() {
    for pointer in [
        "text",
        "/item/names/00",
        "/item/names/+0",
        "/item/names/-",
        "/item/names/9",
        "/x/y",
    ] {
        let mut astray = mapping();
        astray.text = Some(pointer.to_owned());
        let json = r#"{"user":"ann","ts":1,"text":"t","item":{"names":["n"]},"x":"y"}"#;
        assert_eq!(read_with(astray, json).unwrap().text, "", "{pointer}");
    }
}
