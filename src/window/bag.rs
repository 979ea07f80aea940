//! The events of a window, packed: what waits costs little more than its records' own bytes.

use std::ops::Range;

use bytes::Bytes;

use crate::event::{Event, Header, Record};

/// Events end to end in one piece of memory.
///
/// An [`Event`] has an allocation each for its key, its value and its headers; for small records that is as much again as
/// the records themselves, and it leaves the heap in pieces. Windows are many, and wait for long, first for their end and
/// then for the engine: they hold events in this form until they are folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bag {
    packed: Vec<u8>,
    events: usize,
    lowest: i64,
}

impl Default for Bag {
    fn default() -> Self {
        Self {
            packed: Vec::new(),
            events: 0,
            lowest: i64::MAX,
        }
    }
}

impl FromIterator<Event> for Bag {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        let mut bag = Self::default();
        for event in events {
            bag.push(&event);
        }
        bag
    }
}

impl Bag {
    /// How many events are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The lowest offset in it; the highest number where it is empty.
    #[must_use]
    pub fn lowest(&self) -> i64 {
        self.lowest
    }

    /// The memory that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.capacity()
    }

    /// The events, each as it was put in. Their keys and values are parts of one copy of all.
    pub fn iter(&self) -> impl Iterator<Item = Event> + use<> {
        let whole = Bytes::copy_from_slice(&self.packed);
        let mut at = 0;
        (0..self.events).map(move |_| {
            let mut rest = Unpack(whole.get(at..).unwrap_or_default());
            let event = rest.event(&whole);
            at = whole.len() - rest.0.len();
            event
        })
    }

    /// What is known of each event without a copy of it.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        let mut rest = Unpack(&self.packed);
        (0..self.events).map(move |_| rest.view())
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: &Event) {
        let mut size = Size(0);
        pack(event, &mut size);
        self.reserve(size.0);
        pack(event, &mut self.packed);
        self.events += 1;
        self.lowest = self.lowest.min(event.offset);
    }

    /// Adds the events of another.
    pub fn append(&mut self, other: &Self) {
        self.reserve(other.packed.len());
        self.packed.extend_from_slice(&other.packed);
        self.events += other.events;
        self.lowest = self.lowest.min(other.lowest);
    }

    /// The same events by event time, then offset.
    pub(super) fn in_order(self) -> Self {
        let mut places = self.places();
        if places.is_sorted_by_key(|(key, _)| *key) {
            return self;
        }
        places.sort_by_key(|(key, _)| *key);
        let mut packed = Vec::with_capacity(self.packed.len());
        for (_, place) in places {
            packed.extend_from_slice(self.packed.get(place).unwrap_or_default());
        }
        Self { packed, ..self }
    }

    /// Takes the first `count` events away, which it returns.
    pub fn split_front(&mut self, count: usize) -> Self {
        if count >= self.events {
            return std::mem::take(self);
        }
        let mut rest = Unpack(&self.packed);
        let lowest = |rest: &mut Unpack<'_>, count: usize| {
            let offsets = (0..count).map(|_| rest.skip_event().1);
            offsets.min().unwrap_or(i64::MAX)
        };
        let front_lowest = lowest(&mut rest, count);
        let at = self.packed.len() - rest.0.len();
        self.lowest = lowest(&mut rest, self.events - count);
        let front = Self {
            packed: self.packed[..at].to_vec(),
            events: count,
            lowest: front_lowest,
        };
        self.packed.drain(..at);
        self.events -= count;
        if self.packed.capacity() > 2 * self.packed.len() {
            self.packed.shrink_to_fit();
        }
        front
    }

    /// Event time and offset of each event, and where it stands.
    fn places(&self) -> Vec<((i64, i64), Range<usize>)> {
        let mut rest = Unpack(&self.packed);
        let mut start = 0;
        (0..self.events)
            .map(|_| {
                let key = rest.skip_event();
                let place = start..self.packed.len() - rest.0.len();
                start = place.end;
                (key, place)
            })
            .collect()
    }

    /// Makes room. A first event gets just what it needs, since many a window has no second one; later ones a quarter more
    /// than all, since doubling, as a vector does by itself, leaves a quarter of the memory unused.
    fn reserve(&mut self, more: usize) {
        let len = self.packed.len();
        if self.packed.capacity() - len < more {
            self.packed.reserve_exact(more + len / 4);
        }
    }
}

/// An event as it stands in its bag, without its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    /// As [`Event::offset`].
    pub offset: i64,
    /// As [`Event::time_ms`].
    pub time_ms: i64,
    /// As [`Event::late`].
    pub late: bool,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The record's value.
    pub value: Option<&'a [u8]>,
}

/// What an event is packed into.
trait Sink {
    fn put(&mut self, bytes: &[u8]);

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.put(&[number as u8 | 0x80]);
            number >>= 7;
        }
        self.put(&[number as u8]);
    }

    /// The sign goes lowest, so that small negative numbers are short too.
    fn signed(&mut self, number: i64) {
        self.number((number << 1 ^ number >> 63).cast_unsigned());
    }

    fn block(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.put(bytes);
    }

    /// A null is a 0, a length is one more than it is.
    fn nullable(&mut self, bytes: Option<&[u8]>) {
        self.number(bytes.map_or(0, |b| b.len() as u64 + 1));
        self.put(bytes.unwrap_or_default());
    }
}

/// Counts the bytes only.
struct Size(usize);

impl Sink for Size {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

fn pack(event: &Event, to: &mut impl Sink) {
    to.signed(event.offset);
    to.signed(event.time_ms);
    to.number(u64::from(event.tokens) << 1 | u64::from(event.late));
    to.nullable(event.record.key.as_deref());
    to.nullable(event.record.value.as_deref());
    to.number(event.record.headers.len() as u64);
    for (name, value) in &event.record.headers {
        to.block(name.as_bytes());
        to.nullable(value.as_deref());
    }
}

/// What is left to unpack. It was packed here, so nothing is missing; if it were, what is missing would read as zero.
struct Unpack<'a>(&'a [u8]);

impl<'a> Unpack<'a> {
    fn take(&mut self, bytes: u64) -> &'a [u8] {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u64 {
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = rest;
            return byte.into();
        }
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1).first().copied().unwrap_or_default();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    fn signed(&mut self) -> i64 {
        let number = self.number();
        (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
    }

    fn block(&mut self) -> &'a [u8] {
        let len = self.number();
        self.take(len)
    }

    fn nullable(&mut self) -> Option<&'a [u8]> {
        let len = self.number().checked_sub(1)?;
        Some(self.take(len))
    }

    fn skip_nullable(&mut self) {
        let len = self.number().saturating_sub(1);
        self.take(len);
    }

    /// Event time and offset of the event that stands here; the next one stands here then.
    fn skip_event(&mut self) -> (i64, i64) {
        let View {
            offset, time_ms, ..
        } = self.view();
        (time_ms, offset)
    }

    /// The event that stands here; the next one stands here then.
    fn view(&mut self) -> View<'a> {
        let (offset, time_ms) = (self.signed(), self.signed());
        let marks = self.number();
        let (key, value) = (self.nullable(), self.nullable());
        self.skip_headers();
        View {
            offset,
            time_ms,
            late: marks & 1 == 1,
            key,
            value,
        }
    }

    fn skip_headers(&mut self) {
        for _ in 0..self.number() {
            self.block();
            self.skip_nullable();
        }
    }

    fn header(&mut self) -> Header {
        let name = String::from_utf8_lossy(self.block());
        (name.into(), self.nullable().map(Into::into))
    }

    /// The next event; its key and value are parts of `whole`, which this unpacks.
    fn event(&mut self, whole: &Bytes) -> Event {
        let (offset, time_ms) = (self.signed(), self.signed());
        let marks = self.number();
        let (key, value) = (self.nullable(), self.nullable());
        let headers = (0..self.number()).map(|_| self.header()).collect();
        Event {
            offset,
            time_ms,
            tokens: (marks >> 1) as u32,
            late: marks & 1 == 1,
            record: Record {
                key: key.map(|key| whole.slice_ref(key)),
                value: value.map(|value| whole.slice_ref(value)),
                headers,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, option, prelude::*};

    fn event() -> impl Strategy<Value = Event> {
        let bytes = || option::of(vec(any::<u8>(), 0..200).prop_map(Bytes::from));
        let value = option::of(vec(any::<u8>(), 0..200).prop_map(Into::into));
        let headers = vec((".{0,9}".prop_map(Into::into), value), 0..3);
        let record = (bytes(), bytes(), headers.prop_map(Into::into));
        let record = record.prop_map(|(key, value, headers)| Record {
            key,
            value,
            headers,
        });
        let number = || prop_oneof![any::<i64>(), -99..99i64, Just(i64::MIN), Just(i64::MAX)];
        let tokens = prop_oneof![any::<u32>(), Just(u32::MAX)];
        (number(), number(), tokens, any::<bool>(), record).prop_map(
            |(offset, time_ms, tokens, late, record)| Event {
                offset,
                time_ms,
                tokens,
                late,
                record,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_taken_out_is_what_was_put_in(mut events in vec(event(), 0..12), split in 0..12usize) {
            let (mut bag, mut other) = (Bag::default(), Bag::default());
            for (index, event) in events.iter().enumerate() {
                let into = if index < split { &mut bag } else { &mut other };
                into.push(event);
            }
            bag.append(&other);
            prop_assert_eq!(bag.len(), events.len());
            prop_assert!(bag.bytes() >= events.iter().map(Event::bytes).sum());
            prop_assert_eq!(bag.lowest(), events.iter().map(|e| e.offset).min().unwrap_or(i64::MAX));
            prop_assert_eq!(bag.iter().collect::<Vec<_>>(), events.clone());
            let views = bag.views().map(|v| (v.offset, v.time_ms, v.late, v.key, v.value));
            let expected = events.iter().map(|e| {
                (e.offset, e.time_ms, e.late, e.record.key.as_deref(), e.record.value.as_deref())
            });
            prop_assert!(views.eq(expected));
            events.sort_by_key(|e| (e.time_ms, e.offset));
            let mut ordered = bag.in_order();
            prop_assert_eq!(ordered.iter().collect::<Vec<_>>(), events.clone());
            prop_assert_eq!(&ordered, &events.iter().cloned().collect());
            let front = ordered.split_front(split);
            prop_assert_eq!(front, events.iter().take(split).cloned().collect());
            prop_assert_eq!(ordered, events.into_iter().skip(split).collect());
        }
    }

    #[test]
    fn a_window_of_twenty_small_events_holds_little_more_than_their_bytes() {
        let mut bag = Bag::default();
        let mut raw = 0;
        for offset in 0..20 {
            let record = Record {
                key: Some(Bytes::from_static(b"user-12345")),
                value: Some(vec![b'x'; 150].into()),
                ..Record::default()
            };
            let event = Event {
                offset: 1_000_000_000 + offset,
                time_ms: 1_750_000_000_000,
                tokens: 30,
                late: false,
                record,
            };
            raw += event.bytes();
            bag.push(&event);
        }
        assert!(bag.bytes() * 3 <= raw * 4, "{} for {raw}", bag.bytes());
    }
}
