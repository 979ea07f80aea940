//! Events that are not as one would like them.

use limn::clock::{Clock as _, SystemClock};
use limn::failpoint;
use rdkafka::producer::{BaseProducer, Producer};

use super::load::{Event, Events};
use super::run::Run;
use crate::broker::{DEADLINE, eventually};
use crate::case::PARTITIONS;

/// How much of the very large inputs is made: `LIMN_CHAOS_SCALE`, 1 for all of it. Each fault's own test makes a little.
fn scaled(whole: u32) -> u32 {
    let scale: f64 = match std::env::var("LIMN_CHAOS_SCALE") {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("LIMN_CHAOS_SCALE: {text}")),
        Err(_) => 0.02,
    };
    (f64::from(whole) * scale).ceil() as u32
}

pub fn poison(run: &mut Run<'_>) {
    run.load(Events {
        batch: 60,
        poison: 0.5,
        ..Events::default()
    });
    run.start("a");
    let dead = run.case.topic("dead");
    eventually("dead letters by the thousand", || {
        (run.broker().end(&dead) > 3000).then_some(())
    });
    run.kill("a");
    run.start("a");
    run.works();
}

/// By so much, while it runs, and back again at the next start.
pub fn clock(run: &mut Run<'_>, by_ms: i64) {
    let file = run.case.dir.path().join("clock");
    let environment = [(failpoint::CLOCK_VARIABLE, file.to_str().unwrap().to_owned())];
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    std::fs::write(&file, "0").unwrap();
    // Events of this very time, which a clock can call late or future ones.
    run.load(Events {
        from_ms: SystemClock.now_ms(),
        ..Events::default()
    });
    run.start_with("a", &environment);
    run.works();
    std::fs::write(&file, by_ms.to_string()).unwrap();
    run.works();
    run.kill("a");
    run.start_with("a", &environment);
    run.works();
    std::fs::write(&file, "0").unwrap();
    run.works();
}

/// Nothing waits for ever, also in a partition where nothing comes any more.
pub fn idle(run: &mut Run<'_>) {
    run.replace(
        "out_of_orderness = \"5s\"",
        "out_of_orderness = \"5s\"\nidle_timeout = \"1s\"\nmax_age = \"3s\"",
    );
    run.load(Events::default());
    run.start("a");
    run.works();
    run.feed(Events {
        partitions: vec![0, 1],
        from_ms: 2_000_000,
        ..Events::default()
    });
    let (group, topic) = (run.case.input.clone(), run.case.input.clone());
    eventually("the idle partition to be worked off", || {
        let end = *run.broker().ends(&topic).get(&2)?;
        let committed = run.broker().committed_offsets(&group, &topic);
        (end > 0 && committed.get(&2) == Some(&end)).then_some(())
    });
    run.works();
    run.unfeed();
    run.works_off();
}

pub fn behind(run: &mut Run<'_>) {
    run.load(Events {
        behind: Some((1, 3_600_000)),
        from_ms: 10_000_000,
        ..Events::default()
    });
    run.survives_a_kill();
}

fn many(run: &Run<'_>, events: impl Iterator<Item = Event>) {
    let producer: BaseProducer = run
        .broker()
        .client()
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    for event in events {
        event.send(&producer, &run.case.input);
        producer.poll(std::time::Duration::ZERO);
    }
    producer.flush(DEADLINE).unwrap();
}

/// Updates that take more, so that the input is the load and not their number.
fn larger(run: &mut Run<'_>) {
    run.replace("max_events = 4", "max_events = 200");
    run.replace("max_events_per_update = 5", "max_events_per_update = 256");
    run.replace("delay = \"50ms\"", "delay = \"1ms\"");
}

/// A hundred thousand of one user, among those of the others.
pub fn hot_user(run: &mut Run<'_>) {
    larger(run);
    run.load(Events::default());
    let events = scaled(100_000);
    many(
        run,
        (0..events).map(|n| Event::of("hot", 1_000_000 + i64::from(n) * 10, 0)),
    );
    run.survives_a_kill();
}

/// A million, each seen once.
pub fn many_users(run: &mut Run<'_>) {
    larger(run);
    run.topics();
    let users = scaled(1_000_000);
    let half = users / 2;
    let of = |n: u32| Event::of(&format!("once{n}"), 1_000_000 + 10 * i64::from(n), 0);
    many(run, (0..half).map(of));
    run.start("a");
    run.works();
    run.kill("a");
    many(run, (half..users).map(of));
    run.start("a");
    run.works();
}

/// Some as large as a topic takes but for a few bytes, whose dead letters are larger: half of these are more than limn takes, and
/// some nobody can read.
pub fn largest(run: &mut Run<'_>) {
    run.replace(
        "[source.json]",
        "max_text_bytes = \"1023KiB\"\nmax_event_bytes = \"1023KiB\"\n[source.json]",
    );
    // A batch with nothing else in it takes up to 130 bytes beside the padding.
    let limit = 1_048_588 - 130;
    run.load(Events {
        padding: limit - 2000..limit,
        batch: 4,
        poison: 0.3,
        ..Events::default()
    });
    run.start("a");
    run.works();
    run.kill("a");
    run.start("a");
    run.works();
    let dead = run.case.topic("dead");
    eventually("a large dead letter that has all of its record", || {
        let letters = run.broker().visible(&dead).into_iter();
        let cut = |name: &str| name.starts_with("limn-truncated");
        let whole = letters.filter(|letter| !letter.headers.iter().any(|(name, _)| cut(name)));
        let mut values = whole.filter_map(|letter| letter.value);
        values.find(|value| value.len() > limit - 2000)
    });
}

pub fn too_large_a_summary(run: &mut Run<'_>) {
    let properties = [("cleanup.policy", "compact"), ("max.message.bytes", "400")];
    let profiles = run.case.topic("profiles");
    run.broker()
        .create_topic(&profiles, PARTITIONS, &properties);
    run.load(Events::default());
    run.start("a");
    let dead = run.case.topic("dead");
    let before = run.broker().end(&dead);
    eventually("updates to be refused", || {
        (run.broker().end(&dead) > before + 100).then_some(())
    });
    run.kill("a");
    run.start("a");
    run.works();
}
