//! `[source]`: which records are read, and what they hold.

use std::time::Duration;

use super::reader::Section;
use crate::codec::{self, Format, JsonMapping, Partitioner, TimeUnit};
use crate::source::Start;

/// What is read from Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The input topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// Where a partition without a committed offset begins.
    pub start: Start,
    /// How the input's producers choose partitions.
    pub partitioner: Partitioner,
    /// Most records in one message between the stages.
    pub batch: usize,
    /// What the records hold.
    pub codec: codec::Config,
}

pub fn read(mut source: Section<'_>) -> Source {
    let mapping = json(source.section("json"));
    Source {
        topic: topic(&mut source, "topic", "interactions"),
        group: source.text("group", "limn"),
        start: source.choice(
            "start",
            &[("earliest", Start::Earliest), ("latest", Start::Latest)],
        ),
        partitioner: source.choice(
            "partitioner",
            &[
                ("murmur2", Partitioner::Murmur2),
                ("consistent", Partitioner::Consistent),
                ("unchecked", Partitioner::Unchecked),
            ],
        ),
        batch: usize::from(source.integer("batch", 500u16, 1..=10_000)),
        codec: codec::Config {
            format: if source.choice("format", &[("json", true), ("protobuf", false)]) {
                Format::Json(Box::new(mapping))
            } else {
                Format::Protobuf
            },
            max_text_bytes: bytes(source.size("max_text_bytes", 16 << 10, 64..=(16 << 20))),
            max_event_bytes: bytes(source.size("max_event_bytes", 1 << 20, 256..=(64 << 20))),
        },
    }
}

/// A topic's name, as Kafka allows it.
pub fn topic(section: &mut Section<'_>, key: &str, default: &str) -> String {
    section.checked_text(
        key,
        default,
        "wants a topic name: letters, digits, '.', '_' and '-', at most 249 of them",
        |name| {
            (1..=249).contains(&name.len())
                && !matches!(name, "." | "..")
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        },
    )
}

/// Sizes are bounded far below what a pointer holds.
pub fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn json(mut json: Section<'_>) -> JsonMapping {
    let mut pointer = |key, default: &str| {
        json.text_or_off(
            key,
            Some(default),
            "wants a JSON pointer, such as \"/item/title\"",
            is_pointer,
        )
    };
    let mut mapping = JsonMapping {
        user: pointer("user", "/user_id"),
        id: pointer("id", "/id"),
        time: pointer("time", "/time_ms"),
        time_unit: TimeUnit::Milliseconds,
        action: pointer("action", "/action"),
        item_id: pointer("item_id", "/item/id"),
        item_title: pointer("item_title", "/item/title"),
        item_category: pointer("item_category", "/item/category"),
        item_description: pointer("item_description", "/item/description"),
        text: pointer("text", "/text"),
    };
    mapping.time_unit = json.choice(
        "time_unit",
        &[
            ("milliseconds", TimeUnit::Milliseconds),
            ("seconds", TimeUnit::Seconds),
            ("microseconds", TimeUnit::Microseconds),
            ("nanoseconds", TimeUnit::Nanoseconds),
            ("rfc3339", TimeUnit::Rfc3339),
        ],
    );
    mapping
}

/// RFC 6901: it begins with a slash, and a tilde is only ever `~0` or `~1`.
fn is_pointer(text: &str) -> bool {
    text.starts_with('/')
        && text
            .split('~')
            .skip(1)
            .all(|rest| rest.starts_with(['0', '1']))
}

/// A day, for ranges.
pub const DAY: Duration = Duration::from_secs(86_400);
