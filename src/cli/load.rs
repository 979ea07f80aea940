//! `limn load`

use std::path::PathBuf;

use anyhow::Context;
use limn::codec::{self, Decoder};
use limn::load::{self, Limits, Rows};

/// Write history into the input topic: JSON lines, CSV or TSV, through the input's own field mapping.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// The files; "-" is the standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// jsonl, csv or tsv [default: by the file's name].
    #[arg(long)]
    format: Option<load::Format>,
    /// Most bytes of a row.
    #[arg(long, default_value_t = 1 << 20)]
    max_row_bytes: usize,
    /// Count bad rows and go on, instead of stopping at the first.
    #[arg(long)]
    skip_bad: bool,
    /// Give each record its event time as Kafka's timestamp. A topic with time retention deletes older history at once.
    #[arg(long)]
    event_timestamps: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    match &config.source.codec.format {
        codec::Format::Json(mapping) if mapping.user.is_some() => {}
        _ => anyhow::bail!(
            "limn load writes JSON: it needs source.format = \"json\" and source.json.user"
        ),
    }
    let partitioner = match config.source.partitioner {
        codec::Partitioner::Consistent => load::Partitioner::Consistent,
        codec::Partitioner::Murmur2 | codec::Partitioner::Unchecked => load::Partitioner::Murmur2,
    };
    let to = load::Config {
        properties: config.kafka.producer.reveal(),
        topic: config.source.topic.clone(),
        partitioner,
        event_timestamps: args.event_timestamps,
        skip_bad: args.skip_bad,
        timeout: config.kafka.timeout,
    };
    let limits = Limits {
        max_row_bytes: args.max_row_bytes,
    };
    for file in &args.files {
        let decoder = Decoder::new(config.source.codec.clone());
        let rows = Rows::open(file, args.format, limits, move |record, timestamp| {
            decoder.decode(record, timestamp)
        })?;
        let bar = indicatif::ProgressBar::new_spinner();
        let summary = load::load(&to, rows, |p| {
            bar.set_message(format!(
                "{} rows, {} delivered, {} skipped",
                p.sent, p.delivered, p.skipped
            ));
            bar.tick();
        });
        bar.finish_and_clear();
        let summary = summary.with_context(|| file.display().to_string())?;
        println!(
            "{}: {} rows in {:.1} s, {} skipped",
            file.display(),
            summary.delivered,
            summary.seconds,
            summary.skipped
        );
    }
    Ok(())
}
