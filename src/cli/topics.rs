//! `limn topics`

use limn::topics::Admin;

/// Create the topics that limn writes, as they must be. What is there already stays; what is there in the wrong way is named.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Tell what would be created, and create nothing.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let admin = Admin::new(&config.source_room().properties, config.kafka.timeout)
        .map_err(|finding| anyhow::anyhow!("{finding}"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let plan = runtime.block_on(admin.plan(&config.topics));
    let faults = if plan.findings.is_empty() && !args.dry_run {
        runtime.block_on(admin.create(&config.topics, &plan))
    } else {
        plan.findings.clone()
    };
    if !faults.is_empty() {
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::bail!("{}", told.join("\n"));
    }
    for (topic, partitions) in &plan.missing {
        let did = if args.dry_run {
            "would create"
        } else {
            "created"
        };
        println!("{did} {} with {partitions} partitions", topic.name);
    }
    for (name, partitions) in &plan.present {
        println!("{name} is there with {partitions} partitions");
    }
    Ok(())
}
