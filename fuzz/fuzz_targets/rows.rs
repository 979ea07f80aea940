//! A file that `limn load` reads: JSON lines, CSV and TSV. The first byte says which.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;

use limn::codec::{Config, Decoder, Format, JsonMapping, TimeUnit};
use limn::load::{self, Error, Limits, Rows};

const MOST: usize = 4096;

static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let at = |pointer: &str| Some(pointer.to_owned());
    Decoder::new(Config {
        format: Format::Json(Box::new(JsonMapping {
            user: at("/user"),
            id: None,
            time: at("/time"),
            time_unit: TimeUnit::Seconds,
            action: None,
            item_id: None,
            item_title: at("/title"),
            item_category: None,
            item_description: None,
            text: None,
        })),
        max_text_bytes: 256,
        max_event_bytes: MOST,
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let formats = [
        load::Format::JsonLines,
        load::Format::Csv,
        load::Format::Tsv,
    ];
    let rows = Rows::new(
        "fuzz",
        Box::new(Cursor::new(bytes.to_vec())),
        formats[usize::from(*first) % 3],
        Limits {
            max_row_bytes: MOST,
        },
        |record, timestamp_ms| DECODER.decode(record, timestamp_ms),
    );
    for row in rows.into_iter().flatten() {
        match row {
            Ok(row) => assert!(!row.user.is_empty()),
            Err(Error::Row { .. }) => {}
            Err(_) => break,
        }
    }
});
