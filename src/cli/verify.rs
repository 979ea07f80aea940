//! `limn verify`

use anyhow::bail;
use limn::text::visible_json;
use limn::verify::{self, Report};

/// Accounts for every record: whether each event is folded or dead-lettered exactly once, and all topics agree
///
/// Reads the input, the change events, the profiles, the checkpoints, the dead letters and the group's offsets as a
/// read_committed consumer; nothing is written, no group is joined, and instances may run meanwhile. What contradicts the
/// guarantees is told by name with its place (docs/reliability.md explains the names), and makes the exit code 1.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  limn verify --config limn.toml\n  limn verify --config limn.toml --drained --json"
)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Nothing may wait any more: an event that is neither folded nor dead-lettered is a fault, wherever the group is
    #[arg(long)]
    drained: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let report = verify::verify(&config.verify_room(args.drained), &mut |line| {
        if !args.json {
            eprintln!("{line}");
        }
    })?;
    if args.json {
        println!("{}", visible_json(&serde_json::to_string(&report)?));
    } else {
        show(&report);
    }
    let faults: u64 = report.findings.values().map(|found| found.count).sum();
    match faults {
        0 => Ok(()),
        1 => bail!("1 fault"),
        faults => bail!("{faults} faults"),
    }
}

fn show(report: &Report) {
    println!(
        "events       {}: {} folded, {} dead-lettered, {} waiting, {} not to be told any more",
        report.events, report.folded, report.dead_lettered, report.waiting, report.untold
    );
    println!(
        "profiles     {} users, {} of them erased once; {} change events, {} states, {} checkpoints",
        report.users, report.erased, report.changes, report.profiles, report.checkpoints
    );
    if report.foreign > 0 {
        println!(
            "left out     {} folded or dead-lettered events of other inputs",
            report.foreign
        );
    }
    for (kind, found) in &report.findings {
        for place in &found.places {
            println!("fault        {}: {place}", kind.name());
        }
        let more = found.count - found.places.len() as u64;
        if more > 0 {
            println!("fault        {}: {more} more", kind.name());
        }
    }
    if report.is_sound() {
        println!("ok           every record is accounted for");
    }
}
