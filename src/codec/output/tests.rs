use super::*;
use proptest::prelude::*;
use prost::encoding::{DecodeContext, decode_key, skip_field};

fn state() -> proto::ProfileState {
    proto::ProfileState {
        user_id: "ann".to_owned(),
        version: 3,
        summary: "Likes noir.".to_owned(),
        ..Default::default()
    }
}

fn change() -> proto::ProfileChange {
    proto::ProfileChange {
        user_id: "ann\nb\u{2028}".to_owned(),
        version: u64::MAX,
        previous_version: 7,
        before: "a".to_owned(),
        after: "b".to_owned(),
        edits: profile::edits("a", "b")
            .into_iter()
            .map(Into::into)
            .collect(),
        ..Default::default()
    }
}

#[test]
fn what_is_written_is_read_back_with_its_format() {
    let mut expected = state();
    expected.format = FORMAT;
    assert_eq!(decode_state(&encode(&state())), Ok(expected));
    assert_eq!(decode_change(&encode(&change())).unwrap().format, FORMAT);
    let checkpoint = proto::Checkpoint {
        watermark_ms: Some(0),
        ..Default::default()
    };
    let read = decode_checkpoint(&encode(&checkpoint)).unwrap();
    assert_eq!((read.format, read.watermark_ms), (FORMAT, Some(0)));
    let call = proto::ModelCall::default();
    assert_eq!(decode_call(&encode(&call)).unwrap().format, FORMAT);
}

/// The numbers of a message's fields, as they stand.
fn numbers(mut bytes: &[u8]) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Ok((number, kind)) = decode_key(&mut bytes) {
        numbers.push(number);
        if skip_field(kind, number, &mut bytes, DecodeContext::default()).is_err() {
            break;
        }
    }
    numbers
}

proptest! {
    #[test]
    fn a_version_that_is_told_is_the_one_that_is_decoded(
        (user, version, text) in (".{0,40}", any::<u64>(), ".{0,40}"),
        noise in prop::collection::vec((0usize..120, any::<u8>()), 0..3),
        cut in 0usize..120,
    ) {
        let state = proto::ProfileState {
            user_id: user,
            version,
            summary: text,
            updated_ms: -1,
            marker: Some(proto::FoldMarker::default()),
            ..Default::default()
        };
        let mut bytes = encode(&state);
        let user = state.user_id.as_bytes();
        let whole = !user.is_empty() && version > 0;
        let expected = whole.then_some(StateHead { format: FORMAT.into(), user, version });
        prop_assert_eq!(state_head(&bytes), expected);
        prop_assert_eq!(state_version(&bytes), Ok(version));
        for (at, byte) in noise {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(cut);
        // The other way round it need not be: the texts are not looked at. Nor are fields that do not stand in their order.
        match (state_version(&bytes), decode_state(&bytes)) {
            (Ok(told), Ok(decoded)) => {
                let numbers = numbers(&bytes);
                prop_assert!(told == decoded.version || !numbers.is_sorted(), "{told}, {numbers:?}");
            }
            (told, Err(_)) => prop_assert!(told.is_err() || state_head(&bytes).is_some()),
            (Err(told), Ok(_)) => prop_assert!(false, "{}", told),
        }
    }
}

#[test]
fn a_newer_format_is_named_and_a_newer_limn_asked_for() {
    let mut newer = state();
    newer.format = 2;
    let mut bytes = newer.encode_to_vec();
    // A field that this format has otherwise: the summary as a number.
    bytes.extend([0x20, 0x01]);
    let error = decode_state(&bytes).unwrap_err();
    let (what, found, known) = ("profile state", 2, 1);
    assert_eq!(error, Error::Newer { what, found, known });
    assert_eq!(
        error.to_string(),
        "a profile state of format 2, and this limn knows format 1: run a newer limn"
    );
}

#[test]
fn a_record_without_a_format_is_malformed() {
    let error = decode_checkpoint(&proto::Checkpoint::default().encode_to_vec());
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "a malformed checkpoint: it has no format");
    assert!(matches!(
        decode_call(b"\x08"),
        Err(Error::Malformed {
            what: "model call",
            ..
        })
    ));
}

#[test]
fn a_change_is_one_line_of_proto3_json() {
    let line = change_json(&change());
    assert!(!line.contains('\n'), "{line}");
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["user_id"], "ann\nb\u{2028}");
    assert_eq!(json["version"], "18446744073709551615");
    assert_eq!(json["previous_version"], "7");
    assert_eq!(json["edits"][0]["kind"], "REMOVED");
    assert_eq!(
        serde_json::from_value::<proto::ProfileChange>(json).unwrap(),
        change()
    );
}

#[test]
fn a_change_has_its_main_fields_even_when_they_are_empty() {
    let line = change_json(&proto::ProfileChange::default());
    assert_eq!(
        line,
        r#"{"after":"","before":"","previous_version":"0","user_id":"","version":"0"}"#
    );
}

#[test]
fn an_edit_of_an_unknown_kind_does_not_lose_the_change() {
    let mut strange = change();
    strange.edits[0].kind = 77;
    let line = change_json(&strange);
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&json["after"], &json["edits"][1]["kind"]),
        (&"b".into(), &"ADDED".into())
    );
}

#[test]
fn runs_that_are_empty_negative_or_out_of_order_are_malformed() {
    let run = |(first, end)| proto::Run { first, end };
    let read = |runs: &[(i64, i64)]| {
        offsets(
            "checkpoint",
            &runs.iter().copied().map(run).collect::<Vec<_>>(),
        )
    };
    for bad in [
        &[(3, 3)][..],
        &[(4, 3)],
        &[(-1, 2)],
        &[(5, 9), (8, 10)],
        &[(5, 6), (1, 2)],
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.starts_with("a malformed checkpoint: "), "{error}");
    }
    let most = vec![run((0, 1)); MAX_RUNS + 1];
    assert!(offsets("checkpoint", &most).is_err());
    // As long as there can be, and touching ones become one.
    let set = read(&[(0, 5), (5, i64::MAX)]).unwrap();
    assert_eq!(set.runs().collect::<Vec<_>>(), [(0, i64::MAX)]);
}

proptest! {
    #[test]
    fn offsets_come_back_as_they_were(listed in prop::collection::vec((0i64..200, 1i64..9), 0..40)) {
        let mut marked = profile::Marker { folded_below: 3, ..Default::default() };
        for (first, length) in listed {
            marked.folded.insert_run(first, first + length);
        }
        let message = fold_marker("in", 2, &marked);
        prop_assert_eq!((message.topic.as_str(), message.partition), ("in", 2));
        prop_assert_eq!(marker(&message).unwrap(), marked);
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused_without_a_panic(mut bytes: Vec<u8>, start: bool) {
        if start {
            bytes.splice(0..0, [0x08, 0x01]);
        }
        if let Ok(state) = decode_state(&bytes) {
            let _ = marker(&state.marker.unwrap_or_default());
        }
        if let Ok(change) = decode_change(&bytes) {
            let _ = change_json(&change);
        }
        if let Ok(checkpoint) = decode_checkpoint(&bytes) {
            let _ = OffsetSet::from_gaps(checkpoint.restart_offset, &checkpoint.rejected);
        }
        let _ = decode_call(&bytes);
    }
}
