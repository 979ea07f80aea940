//! An event of the input: JSON with a field mapping, and protobuf. The first byte says which.
#![no_main]

use std::sync::LazyLock;

use limn::codec::{Config, Decoder, Format, JsonMapping, TimeUnit};
use limn::event::Record;

static DECODERS: LazyLock<[Decoder; 3]> = LazyLock::new(|| {
    let at = |pointer: &str| Some(pointer.to_owned());
    let mapping = |time_unit| JsonMapping {
        user: at("/user"),
        id: at("/id"),
        time: at("/time"),
        time_unit,
        action: at("/a/0"),
        item_id: at("/item/id"),
        item_title: at("/item/title"),
        item_category: at("/item/~1~0"),
        item_description: at("/item/description"),
        text: at("/text"),
    };
    let formats = [
        Format::Protobuf,
        Format::Json(Box::new(mapping(TimeUnit::Seconds))),
        Format::Json(Box::new(mapping(TimeUnit::Rfc3339))),
    ];
    formats.map(|format| {
        Decoder::new(Config {
            format,
            max_text_bytes: 256,
            max_event_bytes: 4096,
        })
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let decoder = &DECODERS[usize::from(*first) % 3];
    let record = Record {
        key: Some(bytes[..bytes.len() / 2].to_vec().into()),
        value: Some(bytes.to_vec().into()),
        ..Record::default()
    };
    let timestamp_ms = (first & 0x80 == 0).then_some(1_700_000_000_000);
    // What is accepted when it is read can be read again when it is folded, and is the same.
    if let Ok(decoded) = decoder.decode(&record, timestamp_ms) {
        let again = decoder.interaction(&record, Some(decoded.time_ms));
        let again = again.expect("it was accepted before");
        assert_eq!(
            (&*again.user_id, again.time_ms),
            (&*decoded.user, decoded.time_ms)
        );
    }
    let _ = decoder.user(&record);
});
