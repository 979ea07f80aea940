//! `limn check`

use limn::config::Engine;
use limn::topics::{Admin, Finding};

/// Look at the configuration, the brokers, the topics and the model, and tell every fault at once.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Do not ask the brokers.
    #[arg(long)]
    offline: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let mut faults: Vec<String> = Vec::new();
    if let Engine::Candle(candle) = &config.engine {
        let adapter = candle.adapter.iter().map(|path| ("engine.adapter", path));
        for (key, path) in std::iter::once(("engine.model", &candle.model)).chain(adapter) {
            if !path.exists() {
                faults.push(format!("{key}: there is no {}", path.display()));
            }
        }
    }
    if !args.offline {
        match Admin::new(&config.source_room().properties, config.kafka.timeout) {
            Err(finding) => faults.push(finding.to_string()),
            Ok(admin) => {
                let plan = tokio::runtime::Runtime::new()?.block_on(admin.plan(&config.topics));
                faults.extend(plan.findings.iter().map(ToString::to_string));
                let missing = plan.missing.iter().map(|(topic, _)| Finding::Missing {
                    name: topic.name.clone(),
                    key: topic.key,
                });
                faults.extend(missing.map(|finding| finding.to_string()));
            }
        }
    }
    if faults.is_empty() {
        println!("everything is as it should be");
        return Ok(());
    }
    anyhow::bail!("{} faults:\n{}", faults.len(), faults.join("\n"))
}
