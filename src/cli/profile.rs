//! `limn profile`

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use limn::codec::{self, proto::ProfileState};
use limn::config::Config;
use limn::store::Store;
use limn::text::visible;
use reqwest::{Client, StatusCode, Url};

/// Show a user's profile: from a running instance, else out of a state folder.
#[derive(clap::Args)]
pub struct Args {
    /// The user.
    user: String,
    /// The configuration of the instance: its address and token, and its state folder where it is not running.
    #[arg(long, short, env = "LIMN_CONFIG")]
    config: Option<PathBuf>,
    /// The running instance to ask, such as http://127.0.0.1:7374. LIMN_TOKEN in the environment is its token. It goes
    /// before the configuration.
    #[arg(long, conflicts_with = "folder")]
    url: Option<String>,
    /// The state folder to open. It must not be in use by a running limn.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Show every version that is kept, the oldest first.
    #[arg(long)]
    history: bool,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

/// What an instance listens on unless it is told otherwise.
const URL: &str = "http://127.0.0.1:7374";
/// What the demo leaves behind.
const FOLDER: &str = "limn-demo";
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of an instance's answer: a hundred versions of the longest profiles are far below it.
const MAX_BODY: usize = 64 << 20;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let states = match (&args.url, &args.folder, &args.config) {
        (Some(url), ..) => {
            let token = std::env::var("LIMN_TOKEN").ok();
            match ask(url, token.as_deref(), args)? {
                Asked::Answered(states) => states,
                Asked::NobodyThere(why) => bail!("{url}: {why}: is limn running there?"),
            }
        }
        (None, Some(folder), _) => open(folder, args)?,
        (None, None, Some(path)) => {
            let config = Config::load(path, super::environment())?;
            let token = config.http.token.as_ref().map(|t| t.reveal());
            match ask(&format!("http://{}", config.http.listen), token, args)? {
                Asked::Answered(states) => states,
                Asked::NobodyThere(_) => open(&config.store.folder, args)?,
            }
        }
        (None, None, None) => {
            let token = std::env::var("LIMN_TOKEN").ok();
            match ask(URL, token.as_deref(), args)? {
                Asked::Answered(states) => states,
                Asked::NobodyThere(_) if Path::new(FOLDER).is_dir() => {
                    open(Path::new(FOLDER), args)?
                }
                Asked::NobodyThere(why) => bail!(
                    "no instance answers at {URL} ({why}), and there is no folder {FOLDER} here: name one with --config, --url or --folder"
                ),
            }
        }
    };
    show(&states, args)
}

enum Asked {
    /// The versions that were asked for, the oldest first.
    Answered(Vec<ProfileState>),
    /// Nothing listens there.
    NobodyThere(String),
}

fn ask(url: &str, token: Option<&str>, args: &Args) -> anyhow::Result<Asked> {
    let mut address = Url::parse(url).with_context(|| format!("--url {url}"))?;
    if args.user == "." || args.user == ".." {
        bail!("this user's name cannot stand in an address: name the state folder (--folder)");
    }
    address
        .path_segments_mut()
        .map_err(|()| anyhow::anyhow!("--url {url}: wants http://HOST:PORT"))?
        .pop_if_empty()
        .extend(["v1", "profiles", &args.user]);
    if args.history {
        address.set_query(Some("history=true"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()?;
        let mut request = client.get(address);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                return Ok(Asked::NobodyThere("cannot connect".to_owned()));
            }
            Err(error) => return Err(error).context("asking the instance"),
        };
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BODY {
                bail!("{url}: the answer has more than {MAX_BODY} bytes");
            }
            body.extend_from_slice(&chunk);
        }
        let answer: serde_json::Value = serde_json::from_slice(&body)
            .with_context(|| format!("{url}: {status}, and no JSON: is it limn that answers?"))?;
        if status == StatusCode::UNAUTHORIZED {
            bail!("{url}: it wants a token: set LIMN_TOKEN, or name its configuration (--config)");
        }
        if !status.is_success() {
            let error = answer["error"].as_str().unwrap_or("no reason given");
            bail!("{url}: {}", visible(error));
        }
        let versions = match answer.get("versions") {
            Some(serde_json::Value::Array(versions)) => versions.iter().rev().cloned().collect(),
            _ => vec![answer],
        };
        let states: Result<_, _> = versions.into_iter().map(serde_json::from_value).collect();
        Ok(Asked::Answered(states.with_context(|| {
            format!("{url}: the answer is no profile: is it limn that answers?")
        })?))
    })
}

fn open(folder: &Path, args: &Args) -> anyhow::Result<Vec<ProfileState>> {
    if !folder.is_dir() {
        bail!(
            "there is no folder {}: name the state folder (--folder), or a running instance (--url)",
            folder.display()
        );
    }
    let store = Store::look(folder)?;
    let mut states = Vec::new();
    for partition in store.view.partitions()? {
        if args.history {
            states.extend(store.view.versions(partition, &args.user)?);
        } else {
            states.extend(store.view.get(partition, &args.user)?);
        }
    }
    if states.is_empty() {
        bail!(
            "there is no profile of {:?} in {}",
            args.user,
            folder.display()
        );
    }
    let states: Result<_, _> = states.iter().map(|b| codec::decode_state(b)).collect();
    Ok(states?)
}

fn show(states: &[ProfileState], args: &Args) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    for state in states {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(state)?)?;
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
