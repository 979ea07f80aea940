//! `limn bench stream`

use std::time::Duration;

use limn::bench::{self, Input, Options};
use limn::telemetry;

/// The stream on your brokers: fills a topic of its own, folds it, reads the profiles back.
///
/// config/bench.toml has a scripted engine, so that no model's time is measured. Topics, group and state folder are the
/// bench's own and deleted at the end.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: crate::cli::ConfigFile,
    /// Events.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    events: u64,
    /// Users.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    users: u64,
    /// Users that are at it at the same time.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    active: u32,
    /// Bytes of an event.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    event_bytes: u32,
    /// Partitions of the input.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=1000))]
    partitions: i32,
    /// How often they are folded, each time anew; the last time is reported, when limn's memory and the broker's code are warm.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How often the profiles are read back, by turns with a reader that does nothing else; the medians are reported.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100))]
    restores: u32,
    /// Measure too how fast the events can be read and limn's records written by whoever computes nothing. Holds these records in memory.
    #[arg(long)]
    ceiling: bool,
    /// How uneven the users are: the n-th comes with a share of 1/n^ZIPF; 0: one after another. Who has more than some 70,000 events
    /// outgrows the topic with a summary that lists them all, and the rest of theirs are dead letters.
    #[arg(long, default_value_t = 0.0)]
    zipf: f64,
    /// How far events may be out of order; an event comes every millisecond. Windows wait for so long, if window.out_of_orderness is less.
    #[arg(long, default_value = "100ms", value_parser = humantime::parse_duration)]
    disorder: Duration,
    /// The same seed makes the same events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    telemetry::start(config.log)?;
    let options = Options {
        input: Input {
            events: args.events,
            users: args.users,
            active: usize::try_from(args.active)?,
            event_bytes: usize::try_from(args.event_bytes)?,
            zipf: args.zipf,
            disorder_ms: u64::try_from(args.disorder.as_millis())?,
            seed: args.seed,
        },
        partitions: args.partitions,
        runs: args.runs,
        restores: args.restores,
        ceiling: args.ceiling,
        pipeline: crate::cli::run::pipeline(&config, String::new()),
        topics: config.topics.clone(),
        store: config.store.room(),
        timeout: config.kafka.timeout,
    };
    let engine = crate::cli::run::engine(&config.engine)?;
    let report =
        tokio::runtime::Runtime::new()?.block_on(bench::stream(&options, engine, |line| {
            eprintln!("bench: {line}")
        }))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
