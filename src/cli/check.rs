//! `limn check`

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::bail;
use limn::config::{Config, Engine, Faults};
use limn::summarize;
use limn::topics::{Admin, Finding};

/// Looks for every fault at once: configuration, brokers, topics, model, state folder, HTTP address
///
/// What has a fault is named with its key, what was found and what would do. Nothing is changed.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  limn check --config limn.toml\n  limn check --config limn.toml --offline\n  LIMN_KAFKA__BROKERS=kafka:9092 limn check --config limn.toml"
)]
pub struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Leave out what needs the network: the brokers, and the model's server
    #[arg(long)]
    offline: bool,
}

/// What was looked at, and what is wrong with it.
struct Part {
    name: &'static str,
    faults: Vec<String>,
    /// What could be better.
    notes: Vec<String>,
}

impl Part {
    fn new(name: &'static str, faults: Vec<String>) -> Self {
        let notes = Vec::new();
        Self {
            name,
            faults,
            notes,
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (config, faults) = args.config.examine();
    let mut parts = Vec::new();
    if let Some(config) = &config {
        // A section with a fault has defaults in its place: what they lead to would be told of what nobody wrote.
        let sound = |sections: &[&str]| sections.iter().all(|section| !touched(&faults, section));
        if !args.offline && sound(&["kafka", "source", "topics"]) {
            parts.push(brokers(config)?);
        }
        if sound(&["engine"]) {
            parts.push(Part::new(
                "model",
                model(config, args.offline, sound(&["summary"]))?,
            ));
        }
        if sound(&["store"]) {
            parts.push(Part::new("state folder", folder(&config.store.folder)));
        }
        if sound(&["http"]) {
            let faults = TcpListener::bind(config.http.listen).err().map(|error| {
                    format!("http.listen: {} cannot be listened on: {error}; stop what listens there, or choose another port", config.http.listen)
                });
            parts.push(Part::new("HTTP address", faults.into_iter().collect()));
        }
    }
    let faults = faults.0.iter().map(ToString::to_string).collect();
    parts.insert(0, Part::new("configuration", faults));
    let mut count = 0;
    for Part {
        name,
        faults,
        notes,
    } in &parts
    {
        if faults.is_empty() {
            println!("ok     {name}");
        }
        for fault in faults {
            eprintln!("fault  {fault}");
        }
        for note in notes {
            println!("note   {note}");
        }
        count += faults.len();
    }
    match count {
        0 => Ok(()),
        1 => bail!("1 fault"),
        count => bail!("{count} faults"),
    }
}

/// Whether a section has a fault, or a whole line of the file could not be told to any.
fn touched(faults: &Faults, section: &str) -> bool {
    faults
        .0
        .iter()
        .any(|fault| fault.key.is_empty() || fault.key.split('.').next() == Some(section))
}

fn brokers(config: &Config) -> anyhow::Result<Part> {
    let (findings, notes) = tokio::runtime::Runtime::new()?.block_on(async {
        match Admin::new(&config.kafka.producer.reveal(), config.kafka.timeout) {
            Err(finding) => (vec![finding], Vec::new()),
            Ok(admin) => {
                let plan = admin.plan(&config.topics).await;
                let missing = plan
                    .missing
                    .into_iter()
                    .map(|(wanted, _)| Finding::Missing {
                        name: wanted.name,
                        key: wanted.key,
                    });
                // Where the brokers did not answer nothing is known to be missing, and nothing is in `missing`.
                (
                    plan.findings.into_iter().chain(missing).collect(),
                    plan.notes,
                )
            }
        }
    });
    let said = |findings: Vec<Finding>| findings.iter().map(ToString::to_string).collect();
    Ok(Part {
        name: "brokers and topics",
        faults: said(findings),
        notes: said(notes),
    })
}

/// Whether the engine can be made: its files first, each by its key, then the model itself, or the server that has it;
/// and whether an update has room in its prompt.
fn model(config: &Config, offline: bool, summary_is_sound: bool) -> anyhow::Result<Vec<String>> {
    let engine = &config.engine;
    let mut faults = Vec::new();
    if let Engine::Candle(candle) = engine {
        for (key, path) in [
            ("engine.model", Some(&candle.model)),
            ("engine.adapter", candle.adapter.as_ref()),
            ("engine.tokenizer", candle.tokenizer.as_ref()),
        ] {
            let opened = match path {
                // A name on the hub (of the model; no other is let through): looked for there.
                Some(path) if path.to_string_lossy().starts_with("hf:") => Ok(()),
                Some(path) if path.is_dir() => fs::read_dir(path).map(drop),
                Some(path) => File::open(path).map(drop),
                None => Ok(()),
            };
            if let (Some(path), Err(error)) = (path, opened) {
                faults.push(format!(
                    "{key}: {} cannot be opened: {error}; correct the path (it is relative to the folder that limn is started in)",
                    path.display()
                ));
            }
        }
    }
    // Offline a model on the hub is not asked for.
    let on_hub = matches!(engine, Engine::Candle(candle) if candle.model.to_string_lossy().starts_with("hf:"));
    if !faults.is_empty() || offline && on_hub {
        return Ok(faults);
    }
    let named = |said: String| match said {
        said if said.starts_with("engine") => said,
        said => format!("engine: {said}"),
    };
    match super::run::engine(engine) {
        Err(error) => faults.push(named(format!("{error:#}"))),
        Ok(engine) if summary_is_sound => {
            let fault = summarize::check(&config.summary, engine.as_ref()).err();
            faults.extend(fault.map(|error| error.to_string()));
        }
        Ok(_) => {}
    }
    if let Engine::OpenAi(server) = engine
        && !offline
        && let Ok(client) = super::run::openai(server)
        && let Err(error) = tokio::runtime::Runtime::new()?.block_on(client.look())
    {
        faults.push(format!("engine.base_url: {}: {error}", server.base_url));
    }
    Ok(faults)
}

/// Whether a process could keep its state there. Nothing is left behind, and a folder that is not there is not made.
fn folder(folder: &Path) -> Vec<String> {
    let said = |path: &Path, error: &io::Error| {
        vec![format!(
            "store.folder: {} cannot be written to: {error}; correct its rights, or name another folder",
            path.display()
        )]
    };
    // The file that a running limn holds locked.
    if let Ok(lock) = File::open(folder.join("lock"))
        && matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    {
        return vec![format!(
            "store.folder: {} is in use by another limn process; stop it, or give this one a folder of its own",
            folder.display()
        )];
    }
    let mut nearest = PathBuf::from(folder);
    while !nearest.exists() {
        if !nearest.pop() || nearest.as_os_str().is_empty() {
            nearest = PathBuf::from(".");
            break;
        }
    }
    let probe = nearest.join(format!(".limn-check-{}", std::process::id()));
    match File::create_new(&probe) {
        Ok(_) => match fs::remove_file(&probe) {
            Ok(()) => Vec::new(),
            Err(error) => said(&nearest, &error),
        },
        Err(error) => said(&nearest, &error),
    }
}
