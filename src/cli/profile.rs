//! `limn profile`

use std::io::{Write, stdout};
use std::path::PathBuf;

use limn::codec;
use limn::store::{self, Store};
use limn::text::visible;

/// Show a user's profile.
#[derive(clap::Args)]
pub struct Args {
    /// The user.
    user: String,
    /// The state folder. It must not be in use by a running limn.
    #[arg(long, default_value = "limn-demo")]
    folder: PathBuf,
    /// Show every version that is kept, the oldest first.
    #[arg(long)]
    history: bool,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if !args.folder.is_dir() {
        anyhow::bail!(
            "there is no folder {}: name the state folder (--folder)",
            args.folder.display()
        );
    }
    let config = store::Config {
        folder: args.folder.clone(),
        cache_bytes: 8 << 20,
        history: u64::MAX,
        journal_entries: u64::MAX,
    };
    let store = Store::open(&config)?;
    let mut states = Vec::new();
    for partition in store.view.partitions()? {
        if args.history {
            states.extend(store.view.versions(partition, &args.user)?);
        } else {
            states.extend(store.view.get(partition, &args.user)?);
        }
    }
    if states.is_empty() {
        anyhow::bail!(
            "there is no profile of {:?} in {}",
            args.user,
            args.folder.display()
        );
    }
    let mut out = stdout().lock();
    for bytes in states {
        let state = codec::decode_state(&bytes)?;
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&state)?)?;
        } else {
            writeln!(
                out,
                "version {}  ({} events)\n{}",
                state.version,
                state.events,
                visible(&state.summary)
            )?;
        }
    }
    Ok(())
}
