//! A dead letter, which anybody may have written; and limn's own, of a record that may have been one before.
#![no_main]

use limn::codec::{Letter, Origin, Reason, Rejected, dead_letter};
use limn::event::{Header, Record};

const NAMES: [&str; 7] = [
    "limn-topic",
    "limn-partition",
    "limn-offset",
    "limn-reason",
    "limn-detail",
    "limn-truncated",
    "x",
];

/// Headers: a byte for the name, one for the length, and the value.
fn headers(mut bytes: &[u8]) -> Vec<Header> {
    let mut headers = Vec::new();
    while let [name, length, rest @ ..] = bytes {
        let (value, behind) = rest.split_at(usize::from(*length).min(rest.len()));
        let value = (*length != 255).then(|| value.into());
        headers.push((NAMES[usize::from(*name) % NAMES.len()].into(), value));
        bytes = behind;
    }
    headers
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [number, bytes @ ..] = bytes else { return };
    let record = Record {
        key: Some(b"ann".as_slice().into()),
        value: Some(bytes.to_vec().into()),
        headers: headers(bytes).into(),
        ..Record::default()
    };
    let _ = Letter::read(&record);
    let reason = Reason::ALL[usize::from(*number) % Reason::ALL.len()];
    let origin = Origin {
        topic: "in",
        partition: i32::from(*number),
        offset: i64::from(*number) << 32,
    };
    let mut letter = dead_letter(&record, origin, &Rejected::new(reason, "why"));
    let whole = letter.bytes();
    let fits = letter.cut(whole.saturating_sub(usize::from(*number)));
    let written = Record {
        key: letter.key.map(Into::into),
        value: letter.value.map(Into::into),
        headers: letter.headers.into(),
        ..Record::default()
    };
    let read = Letter::read(&written).expect("limn wrote it");
    let place = (read.topic, read.partition, read.offset);
    assert_eq!(place, ("in", origin.partition, origin.offset));
    assert_eq!(read.reason, reason);
    assert!(!fits || read.cut == (*number > 0));
});
