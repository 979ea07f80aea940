//! Made-up events: people come, do a few things one after another, and go.

use std::sync::Arc;

use fastrand::Rng;
use serde_json::json;

use crate::codec::{JsonMapping, TimeUnit};
use crate::load::Row;

/// What the input looks like.
#[derive(Debug, Clone)]
pub struct Input {
    /// How many events there are.
    pub events: u64,
    /// How many users there are. With `zipf` 0 each of them comes once.
    pub users: u64,
    /// How many of them are at it at the same time.
    pub active: usize,
    /// Bytes of an event's value, about.
    pub event_bytes: usize,
    /// How uneven the users are: the n-th comes with a share of `1/n^zipf`; 0 is one after another.
    pub zipf: f64,
    /// Milliseconds of event time that an event may stand behind its neighbours.
    pub disorder_ms: u64,
    /// The same seed makes the same events.
    pub seed: u64,
}

/// The first event's time; each further one is a millisecond later.
const BEGIN_MS: i64 = 1_700_000_000_000;

/// Where an event's fields stand.
#[must_use]
pub fn mapping() -> JsonMapping {
    let at = |pointer: &str| Some(pointer.to_owned());
    JsonMapping {
        user: at("/user"),
        time: at("/time"),
        time_unit: TimeUnit::Milliseconds,
        action: at("/action"),
        item_id: at("/item"),
        text: at("/text"),
        ..JsonMapping::default()
    }
}

impl Input {
    /// The events, in the order in which they are written.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let mut rng = Rng::with_seed(self.seed);
        let file: Arc<str> = "made up".into();
        let mut people = People::new(self);
        let each = (self.events / self.users.max(1)).max(1);
        let mut active: Vec<(u64, u64)> = Vec::new();
        (0..self.events).map(move |number| {
            if active.len() < self.active.max(1) {
                active.push((people.next(&mut rng), each));
            }
            let at = rng.usize(..active.len());
            let (user, left) = active[at];
            if left > 1 {
                active[at].1 -= 1;
            } else {
                active[at] = (people.next(&mut rng), each);
            }
            let behind = rng.u64(..=self.disorder_ms);
            let time_ms = BEGIN_MS
                .saturating_add_unsigned(number)
                .saturating_sub_unsigned(behind);
            let user = format!("user-{user}");
            let item = rng.u32(..100_000);
            let mut value = json!({
                "user": user, "time": time_ms, "action": "viewed", "item": format!("item-{item}"), "text": "",
            });
            let missing = self.event_bytes.saturating_sub(value.to_string().len());
            value["text"] = "x".repeat(missing).into();
            Row {
                file: Arc::clone(&file),
                line: number + 1,
                user: user.into(),
                time_ms: Some(time_ms),
                value: value.to_string().into_bytes(),
            }
        })
    }
}

/// Who comes next.
enum People {
    OneAfterAnother {
        next: u64,
        all: u64,
    },
    /// Each user's share and those before it, summed.
    Uneven(Vec<f64>),
}

impl People {
    #[allow(clippy::cast_precision_loss)] // shares
    fn new(input: &Input) -> Self {
        if input.zipf <= 0.0 {
            return Self::OneAfterAnother {
                next: 0,
                all: input.users.max(1),
            };
        }
        let mut sum = 0.0;
        let shares = (1..=input.users.max(1)).map(|n| {
            sum += (n as f64).powf(-input.zipf);
            sum
        });
        Self::Uneven(shares.collect())
    }

    fn next(&mut self, rng: &mut Rng) -> u64 {
        match self {
            Self::OneAfterAnother { next, all } => {
                *next += 1;
                (*next - 1) % *all
            }
            Self::Uneven(sums) => {
                let drawn = rng.f64() * sums.last().copied().unwrap_or(0.0);
                sums.partition_point(|&sum| sum < drawn) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::{Config, Decoder, Format};
    use crate::event::Record;

    fn input(zipf: f64) -> Input {
        Input {
            events: 5_000,
            users: 500,
            active: 20,
            event_bytes: 200,
            zipf,
            disorder_ms: 50,
            seed: 7,
        }
    }

    fn counts(input: &Input) -> BTreeMap<Box<str>, u64> {
        let mut counts = BTreeMap::new();
        for row in input.rows() {
            *counts.entry(row.user).or_default() += 1;
        }
        counts
    }

    #[test]
    fn the_events_are_as_many_and_as_long_as_asked_for_and_can_be_decoded() {
        let decoder = Decoder::new(Config {
            format: Format::Json(Box::new(mapping())),
            max_text_bytes: 1 << 16,
            max_event_bytes: 1 << 16,
        });
        let input = input(0.0);
        let mut rows = 0;
        for row in input.rows() {
            rows += 1;
            assert!(
                (195..=205).contains(&row.value.len()),
                "{}",
                row.value.len()
            );
            let record = Record {
                key: Some(row.user.as_bytes().to_vec().into()),
                value: Some(row.value.into()),
                headers: Vec::new().into(),
            };
            let decoded = decoder.decode(&record, None).unwrap();
            assert_eq!(
                (decoded.user, Some(decoded.time_ms)),
                (row.user, row.time_ms)
            );
        }
        assert_eq!(rows, 5_000);
    }

    #[test]
    fn one_after_another_every_user_comes_with_the_same_number_of_events() {
        let counts = counts(&input(0.0));
        // Those at the end are cut short.
        assert!(counts.len() > 480, "{}", counts.len());
        // The first come a second time in their place.
        assert!(counts.values().filter(|&&n| n > 10).count() <= 20);
        assert!(counts.values().all(|&n| n <= 20));
        assert!(counts.values().filter(|&&n| n == 10).count() > 470);
    }

    #[test]
    fn a_zipf_input_has_a_few_users_with_most_of_the_events() {
        let counts = counts(&input(1.2));
        let first = counts["user-0"];
        assert!(first > 500, "{first}");
        assert!(counts.len() > 50, "{}", counts.len());
    }

    #[test]
    fn the_same_seed_makes_the_same_events() {
        let all = |input: &Input| -> Vec<Vec<u8>> { input.rows().map(|r| r.value).collect() };
        assert_eq!(all(&input(0.0)), all(&input(0.0)));
        let other = Input {
            seed: 8,
            ..input(0.0)
        };
        assert_ne!(all(&input(0.0)), all(&other));
    }
}
