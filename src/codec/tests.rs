use super::*;
use proptest::prelude::*;
use prost::Message;

const MAX_TEXT: usize = 40;
const MAX_EVENT: usize = 2000;

fn decoder(format: Format) -> Decoder {
    Decoder::new(Config {
        format,
        max_text_bytes: MAX_TEXT,
        max_event_bytes: MAX_EVENT,
    })
}

fn json(user: Option<&str>) -> Format {
    let some = |pointer: &str| Some(pointer.to_owned());
    Format::Json(Box::new(JsonMapping {
        user: user.map(Into::into),
        id: some("/id"),
        time: some("/t"),
        time_unit: TimeUnit::Seconds,
        action: some("/a"),
        item_id: some("/i/id"),
        item_title: some("/i/t"),
        item_category: None,
        item_description: None,
        text: some("/x"),
    }))
}

fn record(value: &[u8]) -> Record {
    Record {
        key: Some(b"key"[..].into()),
        value: Some(value.to_vec().into()),
        headers: [].into(),
    }
}

fn ann() -> proto::Interaction {
    proto::Interaction {
        user_id: "ann".to_owned(),
        time_ms: 5,
        ..Default::default()
    }
}

fn decode(message: &proto::Interaction, timestamp: Option<i64>) -> Result<Decoded, Rejected> {
    let record = record(&message.encode_to_vec());
    decoder(Format::Protobuf).decode(&record, timestamp)
}

fn reason(message: &proto::Interaction) -> Option<Reason> {
    decode(message, Some(9)).err().map(|r| r.reason)
}

#[test]
fn an_event_is_decoded_to_its_user_and_time() {
    let expected = |time_ms| {
        Ok(Decoded {
            user: "ann".into(),
            time_ms,
        })
    };
    assert_eq!(decode(&ann(), None), expected(5));
    let line = record(br#"{"u":"ann","t":1.5}"#);
    assert_eq!(
        decoder(json(Some("/u"))).decode(&line, Some(9)),
        expected(1500)
    );
}

#[test]
fn the_time_is_the_events_own_else_kafkas_else_there_is_none() {
    for unset in [0, -1, i64::MIN] {
        let mut event = ann();
        event.time_ms = unset;
        assert_eq!(decode(&event, Some(9)).unwrap().time_ms, 9);
        for timestamp in [None, Some(0), Some(-1), Some(i64::MAX)] {
            let rejected = decode(&event, timestamp).unwrap_err();
            assert_eq!(rejected.reason, Reason::NoTime, "{timestamp:?}");
        }
        let read = record(&event.encode_to_vec());
        let whole = decoder(Format::Protobuf).interaction(&read, Some(9));
        assert_eq!(whole.unwrap().time_ms, 9);
    }
    assert_eq!(decode(&ann(), Some(9)).unwrap().time_ms, 5);
    let mut far = ann();
    far.time_ms = MAX_TIME_MS;
    assert_eq!(reason(&far), None);
    far.time_ms += 1;
    assert_eq!(reason(&far), Some(Reason::Malformed));
}

#[test]
fn a_null_value_is_told_from_an_empty_one() {
    let mut null = record(b"");
    null.value = None;
    let decoder = decoder(Format::Protobuf);
    let rejected = decoder.decode(&null, Some(9)).unwrap_err();
    assert_eq!(rejected.reason, Reason::NullValue);
    let rejected = decoder.decode(&record(b""), Some(9)).unwrap_err();
    assert_eq!(rejected.reason, Reason::NoUser);
}

#[test]
fn a_user_id_has_one_to_512_bytes() {
    let mut event = ann();
    event.user_id = "ü".repeat(256);
    assert_eq!(reason(&event), None);
    event.user_id.push('x');
    assert_eq!(reason(&event), Some(Reason::UserTooLong));
    event.user_id.clear();
    assert_eq!(reason(&event), Some(Reason::NoUser));
}

#[test]
fn every_text_has_its_limit() {
    let set: [fn(&mut proto::Interaction, String); 9] = [
        |e, text| e.id = text,
        |e, text| e.action = text,
        |e, text| e.text = text,
        |e, text| e.item.get_or_insert_default().id = text,
        |e, text| e.item.get_or_insert_default().title = text,
        |e, text| e.item.get_or_insert_default().category = text,
        |e, text| e.item.get_or_insert_default().description = text,
        |e, text| drop(e.attributes.insert(text, String::new())),
        |e, text| drop(e.attributes.insert(String::new(), text)),
    ];
    for set in set {
        let mut event = ann();
        set(&mut event, "x".repeat(MAX_TEXT));
        assert_eq!(reason(&event), None);
        set(&mut event, "x".repeat(MAX_TEXT + 1));
        assert_eq!(reason(&event), Some(Reason::TextTooLong));
    }
}

#[test]
fn an_event_has_its_limit_before_it_is_read() {
    for format in [Format::Protobuf, json(None)] {
        let rejected = decoder(format).decode(&record(&[b'{'; MAX_EVENT + 1]), Some(9));
        assert_eq!(rejected.unwrap_err().reason, Reason::TextTooLong);
    }
}

#[test]
fn attributes_are_counted_in_protobuf_too() {
    let mut event = ann();
    for n in 0..MAX_ATTRIBUTES {
        event.attributes.insert(n.to_string(), String::new());
    }
    assert_eq!(reason(&event), None);
    event.attributes.insert("x".to_owned(), String::new());
    assert_eq!(reason(&event), Some(Reason::Malformed));
}

#[test]
fn a_detail_is_cut_between_characters() {
    let rejected = Rejected::new(Reason::Malformed, format!("x{}", "ü".repeat(400)));
    assert!(rejected.detail.len() <= MAX_DETAIL_BYTES);
    assert!(rejected.detail.len() > MAX_DETAIL_BYTES - 4);
    assert!(rejected.detail.ends_with("ü…"));
    let fits = "x".repeat(MAX_DETAIL_BYTES);
    assert_eq!(Rejected::new(Reason::Malformed, fits.as_str()).detail, fits);
}

/// Values that are read, or are nearly read.
fn values() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof!["\\PC{0,6}", Just("x".repeat(MAX_TEXT + 1))];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text.clone().prop_map(Into::into),
    ];
    let name = prop_oneof![
        Just("u"),
        Just("t"),
        Just("i"),
        Just("id"),
        Just("x"),
        Just("z")
    ];
    let tree = leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    });
    let message =
        (text.clone(), any::<i64>(), text.clone(), text).prop_map(|(user, time, x, a)| {
            proto::Interaction {
                user_id: user,
                time_ms: time,
                text: x,
                attributes: [(a, String::new())].into(),
                ..Default::default()
            }
            .encode_to_vec()
        });
    let whole = prop_oneof![
        any::<Vec<u8>>(),
        tree.prop_map(|tree| tree.to_string().into_bytes()),
        message,
    ];
    // One byte off, now and then.
    let broken = prop::option::weighted(0.3, any::<(prop::sample::Index, u8)>());
    (whole, broken).prop_map(|(mut bytes, broken)| {
        if let (Some((at, byte)), false) = (broken, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_record_is_accepted_by_both_or_rejected_by_both_and_never_a_panic(
        key: Option<Vec<u8>>,
        value in values(),
        timestamp in prop::option::of(any::<i64>()),
    ) {
        let mut record = record(&value);
        record.key = key.map(Into::into);
        for format in [Format::Protobuf, json(Some("/u")), json(None)] {
            let decoder = decoder(format);
            let whole = decoder.interaction(&record, timestamp);
            match decoder.decode(&record, timestamp) {
                Ok(decoded) => {
                    let whole = whole.unwrap();
                    prop_assert_eq!(&*decoded.user, whole.user_id.as_str());
                    prop_assert_eq!(decoded.time_ms, whole.time_ms);
                    prop_assert!((1..=MAX_TIME_MS).contains(&decoded.time_ms));
                    prop_assert!((1..=MAX_USER_BYTES).contains(&decoded.user.len()));
                    prop_assert!(whole.attributes.len() <= MAX_ATTRIBUTES);
                    prop_assert!(Read::from(whole).texts().all(|(_, text)| text.len() <= MAX_TEXT));
                }
                Err(rejected) => {
                    prop_assert!(rejected.detail.len() <= MAX_DETAIL_BYTES);
                    prop_assert!(rejected.detail.is_ascii(), "{}", rejected.detail);
                    prop_assert_eq!(whole, Err(rejected));
                }
            }
        }
    }
}
