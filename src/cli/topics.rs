//! `limn topics`

use anyhow::bail;
use limn::topics::Admin;

/// Creates the output topics as limn wants them
///
/// The input must be there; profiles, checkpoints and dead letters get as many partitions, and so do changes. Topics
/// that are there are left as they are. Where one of them is not as it must be, it is named and nothing is created.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  limn topics --config limn.toml --dry-run\n  limn topics --config limn.toml"
)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Tell what would be created, and create nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let (plan, refused) = tokio::runtime::Runtime::new()?.block_on(async {
        let admin = match Admin::new(&config.kafka.producer.reveal(), config.kafka.timeout) {
            Ok(admin) => admin,
            Err(finding) => return (limn::topics::Plan::default(), vec![finding]),
        };
        let plan = admin.plan(&config.topics).await;
        let refused = if args.dry_run {
            Vec::new()
        } else {
            admin.create(&config.topics, &plan).await
        };
        (plan, refused)
    });
    for (name, partitions) in &plan.present {
        println!("there     {name}: {partitions} partitions");
    }
    for note in &plan.notes {
        println!("note      {note}");
    }
    let faults: Vec<_> = plan.findings.iter().chain(&refused).collect();
    for finding in &faults {
        eprintln!("fault     {finding}");
    }
    let done = match (args.dry_run, plan.findings.is_empty()) {
        (true, _) => "missing ",
        (false, true) => "created ",
        (false, false) => "not made",
    };
    for (wanted, partitions) in &plan.missing {
        // What the brokers refused was told above; without the input no count is known.
        let refused = !refused.iter().all(|finding| finding.spares(&wanted.name));
        if *partitions > 0 && !refused {
            let properties: Vec<_> = wanted
                .properties
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            println!(
                "{done}  {}: {partitions} partitions, {}",
                wanted.name,
                properties.join(", ")
            );
        }
    }
    match faults.len() {
        0 => Ok(()),
        1 => bail!("1 fault"),
        count => bail!("{count} faults"),
    }
}
