//! `[summary]`: what the model is told, and what is taken from it.

use std::time::Duration;

use super::reader::Section;
use super::source::bytes;
use crate::engine::Sampling;
use crate::summarize::{Config, Prompt};

/// What the model is told unless the configuration says otherwise.
const INSTRUCTIONS: &str = "\
You keep a person's profile up to date. You are given the profile so far and what the person did since. \
Write the new profile: a few short sentences on what the person likes, dislikes and is looking for. \
Keep what still holds, change what the new events contradict, and drop what has faded. \
State only what follows from the profile and the events. Answer with the profile alone.";

const EVENT: &str = "\
- {{ action }} {{ item.title or item.id }}{% if item.category %} ({{ item.category }}){% endif %}{% if text %}: {{ text }}{% endif %}";

const MESSAGE: &str = "Profile so far: {{ profile }}\nSince then:\n{{ events }}";

const EMPTY_PROFILE: &str = "Nothing is known yet.";

pub fn read(mut summary: Section<'_>) -> Config {
    let (event_place, message_place) = (summary.place("event"), summary.place("message"));
    let (sampling, retry_sampling) = samplings(&mut summary);
    let config = Config {
        instructions: summary.any_text("instructions", INSTRUCTIONS),
        event: summary.text("event", EVENT),
        message: summary.text("message", MESSAGE),
        empty_profile: summary.any_text("empty_profile", EMPTY_PROFILE),
        max_tokens: summary.integer("max_tokens", 256u32, 8..=32_768),
        prompt_tokens: summary.integer("prompt_tokens", 2048u32, 64..=1_000_000),
        max_events: bytes(summary.integer("max_events_per_update", 64u64, 1..=10_000)),
        sampling,
        retries: summary.integer("retries", 1u32, 0..=10),
        retry_sampling,
        backoff: summary.duration(
            "backoff",
            Duration::from_secs(1),
            Duration::from_millis(10)..=Duration::from_secs(60),
        ),
        backoff_max: summary.duration(
            "backoff_max",
            Duration::from_secs(60),
            Duration::from_millis(10)..=Duration::from_secs(3600),
        ),
        answer_timeout: summary.duration(
            "answer_timeout",
            Duration::from_secs(600),
            Duration::from_millis(100)..=Duration::from_secs(24 * 3600),
        ),
    };
    if config.backoff > config.backoff_max {
        summary.fault_unshown(
            "backoff",
            None,
            "is longer than summary.backoff_max; make it shorter".to_owned(),
        );
    }
    // Each template is compiled beside a sound other, so that the faults of both are told.
    for (key, place, event, message) in [
        ("event", event_place, config.event.as_str(), MESSAGE),
        ("message", message_place, EVENT, config.message.as_str()),
    ] {
        let probe = Config {
            event: event.to_owned(),
            message: message.to_owned(),
            ..config.clone()
        };
        if let Err(error) = Prompt::new(&probe).and_then(|prompt| prompt.probe()) {
            summary.fault_unshown(
                key,
                place,
                format!("is not a template that works: {}", error.reason),
            );
        }
    }
    config
}

/// How the tokens of a first answer are chosen, and those of one that is asked for again.
fn samplings(summary: &mut Section<'_>) -> (Sampling, Sampling) {
    let temperature = summary.decimal("temperature", 0.0, 0.0..=2.0);
    let retry_temperature = summary.decimal("retry_temperature", 0.7, 0.01..=2.0);
    let top_k = summary.integer("top_k", 20u32, 0..=100_000);
    let top_p = summary.decimal("top_p", 0.95, 0.01..=1.0);
    let min_p = summary.decimal("min_p", 0.0, 0.0..=1.0);
    let seed = summary.integer("seed", 0u64, 0..=i64::MAX as u64);
    let drawn = |temperature| Sampling::Random {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
    };
    let first = if temperature > 0.0 {
        drawn(temperature)
    } else {
        Sampling::Greedy
    };
    (first, drawn(retry_temperature))
}
