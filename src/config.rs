//! One validated configuration, out of a TOML file and the environment. Every fault is told at once.
//!
//! `LIMN_SECTION__KEY` in the environment goes before the file's `key` in `[section]`. Secrets are written in neither:
//! the file says `{ env = "NAME" }` or `{ file = "path" }`.

mod engine;
mod fault;
mod kafka;
mod reader;
mod secret;
mod source;
mod summary;
#[cfg(test)]
mod tests;
mod tree;
mod window;

pub use engine::{Engine, OpenAi};
pub use fault::{Fault, Faults, Place};
pub use kafka::{Kafka, Properties};
pub use secret::Secret;
pub use source::Source;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use crate::{store, summarize, telemetry, topics};
use reader::{Notes, Section};
use source::{DAY, bytes};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How the brokers are reached.
    pub kafka: Kafka,
    /// What is read.
    pub source: Source,
    /// How events are grouped.
    pub window: crate::window::Config,
    /// How updates are made.
    pub summary: summarize::Config,
    /// The model.
    pub engine: Engine,
    /// How what was made is committed.
    pub commit: Commit,
    /// The topics that are written.
    pub topics: topics::Config,
    /// The state folder.
    pub store: Store,
    /// The HTTP listener.
    pub http: Http,
    /// The logs.
    pub log: telemetry::Config,
    /// What may be held in memory.
    pub limits: Limits,
    /// How long the updates under way may take when the service stops.
    pub shutdown_timeout: Duration,
}

/// When a transaction is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// What was made waits for its transaction at most so long …
    pub interval: Duration,
    /// … or until so many updates are in it.
    pub max_updates: usize,
    /// How long the brokers let a transaction stay open.
    pub transaction_timeout: Duration,
    /// Whether a start waits for transactions that stand open on the changes and dead letters.
    pub waits_for_open: bool,
}

/// The state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The folder; made when it is missing.
    pub folder: std::path::PathBuf,
    /// Bytes of pages that sled may cache.
    pub cache_bytes: u64,
    /// Versions of each profile that are kept beside the current one.
    pub history: u64,
    /// Finished model calls that the journal keeps.
    pub journal_entries: u64,
    /// How long Kafka may take to give the view back.
    pub restore_timeout: Duration,
}

impl Store {
    /// As the store room wants it.
    #[must_use]
    pub fn room(&self) -> store::Config {
        store::Config {
            folder: self.folder.clone(),
            cache_bytes: self.cache_bytes,
            history: self.history,
            journal_entries: self.journal_entries,
        }
    }
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What every path but health and metrics asks for.
    pub token: Option<Secret>,
}

/// What may be held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open windows are closed, the oldest first, when their events have more bytes.
    pub open_bytes: usize,
    /// The input is paused when closed windows that wait have more bytes.
    pub waiting_bytes: usize,
}

impl Config {
    /// Reads the file and lays the environment over it.
    ///
    /// # Errors
    /// [`Faults`]: all that is wrong.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Faults> {
        Self::sound(Self::examine(path, environment))
    }

    /// Reads a file's text and lays the environment over it.
    ///
    /// # Errors
    /// [`Faults`]: all that is wrong.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Faults> {
        Self::sound(Self::examine_text(text, environment))
    }

    /// As [`Config::load`], but what is sound can be looked at beside the faults: a key with a fault has its default, and
    /// is not to be used. `None` where the file cannot be read as TOML at all.
    pub fn examine(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> (Option<Self>, Faults) {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::examine_text(&text, environment),
            Err(error) => {
                let wanted = format!(
                    "{}: the configuration cannot be read: {error}; name another with --config",
                    path.display()
                );
                (None, Faults::whole(wanted))
            }
        }
    }

    fn examine_text(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> (Option<Self>, Faults) {
        let notes = Notes::default();
        match Self::read(text, environment, &notes) {
            Err(faults) => (None, faults),
            Ok(config) => {
                let mut faults = notes.faults.into_inner();
                faults.sort_by_key(|fault| match fault.place {
                    Some(Place::Line(line)) => line,
                    _ => usize::MAX,
                });
                (Some(config), Faults(faults))
            }
        }
    }

    fn sound(examined: (Option<Self>, Faults)) -> Result<Self, Faults> {
        match examined {
            (Some(config), faults) if faults.0.is_empty() => Ok(config),
            (_, faults) => Err(faults),
        }
    }

    fn read(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        notes: &Notes,
    ) -> Result<Self, Faults> {
        let mut tree = tree::parse(text).map_err(Faults)?;
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        tree::overlay(
            &mut tree,
            environment.clone(),
            &mut notes.faults.borrow_mut(),
        );
        let variable = |name: &str| environment.get(name).cloned();
        let mut root = Section::root(notes, tree);
        let kafka = kafka::read(root.section("kafka"), &variable);
        let source = source::read(root.section("source"));
        let (window, open_bytes) = window::read(root.section("window"));
        let config = Self {
            summary: summary::read(root.section("summary")),
            engine: engine::read(root.section("engine"), &variable),
            commit: commit(root.section("commit")),
            topics: topics(root.section("topics"), &source.topic),
            store: store(root.section("store")),
            http: http(root.section("http"), &variable),
            log: log(root.section("log")),
            limits: Limits {
                open_bytes,
                waiting_bytes: limits(root.section("limits")),
            },
            shutdown_timeout: shutdown(root.section("shutdown")),
            kafka,
            source,
            window,
        };
        drop(root);
        let found = config.together();
        notes.faults.borrow_mut().extend(found);
        Ok(config)
    }

    /// What shows only when keys of several sections are set beside each other.
    fn together(&self) -> Vec<Fault> {
        let mut faults = kafka::client_faults(&self.kafka);
        let mut fault = |key: &str, given: String, wanted: String| {
            faults.push(Fault {
                key: key.to_owned(),
                place: None,
                given: Some(given),
                wanted,
            });
        };
        let topics = &self.topics;
        let mut seen = BTreeMap::from([(topics.input.as_str(), "source.topic")]);
        for (key, name) in [
            ("topics.changes", &topics.changes),
            ("topics.profiles", &topics.profiles),
            ("topics.checkpoints", &topics.checkpoints),
            ("topics.dead_letters", &topics.dead_letters),
        ] {
            if let Some(other) = seen.insert(name, key) {
                fault(
                    key,
                    format!("{name:?}"),
                    format!("is {other} as well; wants a topic of its own"),
                );
            }
        }
        let needed = self
            .summary
            .prompt_tokens
            .saturating_add(self.summary.max_tokens);
        if let Some(context) = self.engine.context_tokens()
            && needed > context
        {
            fault(
                "summary.prompt_tokens",
                self.summary.prompt_tokens.to_string(),
                format!(
                    "with summary.max_tokens {needed} tokens, but engine.context_tokens is {context}; make one smaller or the context larger"
                ),
            );
        }
        if self.store.restore_timeout < self.commit.transaction_timeout {
            fault(
                "store.restore_timeout",
                humantime::format_duration(self.store.restore_timeout).to_string(),
                "is shorter than commit.transaction_timeout; a dead owner's open transaction can hold the view back that long, so make it longer".to_owned(),
            );
        }
        if self.commit.interval >= self.commit.transaction_timeout {
            fault(
                "commit.interval",
                humantime::format_duration(self.commit.interval).to_string(),
                "wants to be shorter than commit.transaction_timeout".to_owned(),
            );
        }
        let texts = self.source.codec.max_text_bytes;
        if texts > self.source.codec.max_event_bytes {
            fault(
                "source.max_text_bytes",
                texts.to_string(),
                "is over source.max_event_bytes; make it smaller".to_owned(),
            );
        }
        faults
    }

    /// As the source room wants it.
    #[must_use]
    pub fn source_room(&self) -> crate::source::Config {
        crate::source::Config {
            properties: self.kafka.consumer.reveal(),
            topic: self.source.topic.clone(),
            group: self.source.group.clone(),
            start: self.source.start,
            batch: self.source.batch,
            // A dead owner's transaction holds the group's stable offsets back until the brokers abort it, which they look
            // for every 10 seconds unless told otherwise.
            assign_timeout: self
                .kafka
                .timeout
                .max(self.commit.transaction_timeout + 15 * SECOND),
        }
    }

    /// As the verifier wants it; `drained` says that the input is worked off.
    #[must_use]
    pub fn verify_room(&self, drained: bool) -> crate::verify::Options {
        let source = self.source_room();
        crate::verify::Options {
            latest: source.start == crate::source::Start::Latest,
            properties: source.properties,
            group: source.group,
            input: source.topic,
            changes: self.topics.changes.clone(),
            profiles: self.topics.profiles.clone(),
            checkpoints: self.topics.checkpoints.clone(),
            dead_letters: self.topics.dead_letters.clone(),
            codec: self.source.codec.clone(),
            drained,
            // It waits for the same as an assignment does: transactions under way.
            timeout: source.assign_timeout,
        }
    }

    /// As the commit room wants it; the transactional id is made of the group and the state folder's id.
    #[must_use]
    pub fn commit_room(&self, transactional_id: String) -> crate::commit::Config {
        crate::commit::Config {
            properties: self.kafka.producer.reveal(),
            transactional_id,
            transaction_timeout: self.commit.transaction_timeout,
            input_topic: self.source.topic.clone(),
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn commit(mut commit: Section<'_>) -> Commit {
    Commit {
        interval: commit.duration("interval", SECOND, 10 * MILLISECOND..=60 * SECOND),
        max_updates: bytes(commit.integer("max_updates", 500u64, 1..=100_000)),
        transaction_timeout: commit.duration(
            "transaction_timeout",
            30 * SECOND,
            SECOND..=900 * SECOND,
        ),
        waits_for_open: commit.choice("open_transactions", &[("wait", true), ("pass", false)]),
    }
}

fn topics(mut topics: Section<'_>, input: &str) -> topics::Config {
    topics::Config {
        input: input.to_owned(),
        changes: source::topic(&mut topics, "changes", "limn.changes"),
        profiles: source::topic(&mut topics, "profiles", "limn.profiles"),
        checkpoints: source::topic(&mut topics, "checkpoints", "limn.checkpoints"),
        dead_letters: source::topic(&mut topics, "dead_letters", "limn.dead-letters"),
        replication_factor: topics.integer_or_off("replication_factor", 1u16..=100),
        changes_retention: topics.duration("changes_retention", 7 * DAY, SECOND..=36_600 * DAY),
        dead_letters_retention: topics.duration(
            "dead_letters_retention",
            30 * DAY,
            SECOND..=36_600 * DAY,
        ),
    }
}

fn store(mut store: Section<'_>) -> Store {
    Store {
        folder: store.text("folder", "limn-state").into(),
        cache_bytes: store.size("cache", 64 << 20, (1 << 20)..=(1 << 40)),
        history: store.integer("history", 10u64, 0..=10_000),
        journal_entries: store.integer("journal_entries", 10_000u64, 0..=100_000_000),
        restore_timeout: store.duration("restore_timeout", 120 * SECOND, SECOND..=DAY),
    }
}

fn http(mut http: Section<'_>, variable: &dyn Fn(&str) -> Option<String>) -> Http {
    const LISTEN: &str = "127.0.0.1:7374";
    let place = http.place("listen");
    let given = http.checked_text(
        "listen",
        LISTEN,
        "wants an IP address and a port, such as \"127.0.0.1:7374\" or \"[::1]:7374\"",
        |text| text.parse::<SocketAddr>().is_ok(),
    );
    let listen = given
        .parse()
        .unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 7374)));
    let asked = http.place("token").is_some();
    let token = http.secret("token", variable);
    if token
        .as_ref()
        .is_some_and(|t| t.reveal().len() < 8 || !t.reveal().bytes().all(|b| b.is_ascii_graphic()))
    {
        http.fault_unshown(
            "token",
            None,
            "wants at least 8 visible ASCII characters without spaces".to_owned(),
        );
    }
    // Profiles say much about people: beyond this machine only those who know the token may read them. A token that
    // was meant but is faulty is one fault, not two.
    if !listen.ip().is_loopback() && !asked {
        http.fault_unshown(
            "listen",
            place,
            format!("given \"{listen}\", which other machines can reach; set http.token as well, or listen on {LISTEN:?}"),
        );
    }
    Http { listen, token }
}

fn log(mut log: Section<'_>) -> telemetry::Config {
    telemetry::Config {
        format: log.choice(
            "format",
            &[
                ("human", telemetry::Format::Human),
                ("json", telemetry::Format::Json),
            ],
        ),
        level: log.choice(
            "level",
            &[
                ("info", LevelFilter::INFO),
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ],
        ),
    }
}

fn limits(mut limits: Section<'_>) -> usize {
    bytes(limits.size("waiting_bytes", 64 << 20, (1 << 20)..=(1 << 40)))
}

fn shutdown(mut shutdown: Section<'_>) -> Duration {
    shutdown.duration("timeout", 25 * SECOND, Duration::ZERO..=3600 * SECOND)
}
