//! Requests as the pipeline makes them: real ratings through the real windows and prompts, each behind the model's own last
//! profile.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::codec::{self, Decoder, proto};
use crate::demo::movielens;
use crate::engine::{
    Answer, Description, Engine, Error as EngineError, Prepared, Request, Sampling,
};
use crate::event::{Event, Record};
use crate::store::{self, Store};
use crate::summarize::{self, Job, Summarizer};
use crate::window::{self, CloseReason, Closed, Windows};

/// A line of a file of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Tells it apart from the others.
    pub id: String,
    /// The instructions.
    pub system: String,
    /// The previous summary and the events.
    pub user: String,
    /// The previous summary alone.
    #[serde(default)]
    pub previous: String,
    /// Most tokens of the answer.
    pub max_tokens: u32,
}

impl Asked {
    /// As the engine takes it, the likeliest token always.
    #[must_use]
    pub fn request(&self) -> Request {
        Request {
            system: self.system.clone(),
            user: self.user.clone(),
            previous: self.previous.clone(),
            max_tokens: self.max_tokens,
            sampling: Sampling::Greedy,
        }
    }

    /// The fault of a request in that file.
    pub(super) fn unanswered(&self, path: &Path, line: usize, source: EngineError) -> Error {
        Error::Unanswered {
            path: path.to_owned(),
            line,
            id: self.id.clone(),
            source,
        }
    }
}

/// Longest line of a file of requests, in bytes.
const LONGEST_LINE: u64 = 16 << 20;

/// Reads a file of JSON lines, each with its number from 1.
///
/// # Errors
/// [`Error::File`], [`Error::Line`]; a file without any is one.
pub(super) fn read_lines<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<Vec<(usize, T)>, Error> {
    let fail = |line: usize, reason: String| Error::Line {
        path: path.to_owned(),
        line,
        reason,
    };
    let whole = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|e| whole(e.to_string()))?;
    let mut reader = std::io::BufReader::new(file);
    let mut all = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        let mut bounded = std::io::Read::take(&mut reader, LONGEST_LINE);
        let read = bounded
            .read_until(b'\n', &mut line)
            .map_err(|e| fail(number, e.to_string()))?;
        if read == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let read = serde_json::from_slice(&line).map_err(|e| fail(number, e.to_string()))?;
        all.push((number, read));
    }
    if all.is_empty() {
        return Err(whole("there is nothing in it".to_owned()));
    }
    Ok(all)
}

/// What requests are made of.
#[derive(Debug, Clone)]
pub struct Making {
    /// The ratings' folder.
    pub data: PathBuf,
    /// How many people.
    pub users: usize,
    /// How many of each one's ratings.
    pub events_per_user: usize,
    /// How many requests.
    pub requests: usize,
    /// How ratings are read.
    pub codec: codec::Config,
    /// How they are grouped.
    pub window: window::Config,
    /// How they are asked about.
    pub summary: summarize::Config,
}

/// Why there are no requests, or nothing could be measured with them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ratings.
    #[error(transparent)]
    Data(#[from] movielens::Error),
    /// A file of JSON lines.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of it.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A request that was not answered.
    #[error("{}, line {line}, request {id}: {source}", .path.display())]
    Unanswered {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The request's id.
        id: String,
        /// Why.
        source: EngineError,
    },
    /// An update could not be made.
    #[error(transparent)]
    Summarize(#[from] summarize::Error),
    /// A template is wrong.
    #[error(transparent)]
    Template(#[from] summarize::TemplateError),
    /// The folder for the journal.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An answer to a request that is not there.
    #[error("{}, line {line}: there is no request {id} in {}", .path.display(), .requests.display())]
    NoRequest {
        /// The file of answers.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The id.
        id: String,
        /// The file of requests.
        requests: PathBuf,
    },
    /// Writing.
    #[error("writing: {0}")]
    Write(#[from] std::io::Error),
    /// A task is gone.
    #[error("a part of the bench has failed: {0}")]
    Task(String),
    /// Too few requests.
    #[error("there are {made} requests only; take more people or more ratings of each")]
    Few {
        /// How many.
        made: usize,
    },
}

/// Makes requests and writes them, a JSON object a line; the first window of everybody comes first, then the second.
///
/// # Errors
/// See [`Error`].
pub async fn requests(
    making: &Making,
    engine: Arc<dyn Engine>,
    mut out: impl Write,
) -> Result<(), Error> {
    let decoder = Decoder::new(making.codec.clone());
    let folder = std::env::temp_dir().join(format!("limn-bench-{:016x}", fastrand::u64(..)));
    let store = Arc::new(Store::open(&store::Config {
        folder: folder.clone(),
        cache_bytes: 16 << 20,
        history: 0,
        journal_entries: 1,
    })?);
    let result = make(making, &decoder, &engine, &store, &mut out).await;
    drop(store);
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn make(
    making: &Making,
    decoder: &Decoder,
    engine: &Arc<dyn Engine>,
    store: &Arc<Store>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut profiles: HashMap<Box<str>, Arc<proto::ProfileState>> = HashMap::new();
    let mut rounds = rounds(making, decoder)?;
    let mut made = 0;
    while let Some(round) = rounds.pop_front() {
        let mut waiting = round.into_iter().enumerate();
        let mut running = JoinSet::new();
        let mut done = Vec::new();
        loop {
            while running.len() < engine.description().concurrency
                && let Some((number, window)) = waiting.next()
            {
                let user: Arc<str> = Arc::from(&*window.user);
                let profile = profiles.get(&*window.user).cloned();
                let seen = Arc::new(Recorder {
                    engine: Arc::clone(engine),
                    seen: Mutex::default(),
                });
                let summarizer = Summarizer::new(
                    making.summary.clone(),
                    decoder.clone(),
                    Arc::clone(&seen) as Arc<dyn Engine>,
                    Arc::clone(store),
                )?;
                running.spawn(async move {
                    let job = Job {
                        user: Arc::clone(&user),
                        topic: "interactions".into(),
                        partition: 0,
                        profile: profile.clone(),
                        windows: VecDeque::from([window]),
                    };
                    let version = profile.map_or(0, |p| p.version) + 1;
                    let update = summarizer.update(job).await;
                    (number, user, version, update, seen)
                });
            }
            match running.join_next().await {
                None => break,
                Some(finished) => done.push(finished.map_err(|e| Error::Task(e.to_string()))?),
            }
        }
        done.sort_by_key(|(number, ..)| *number);
        for (_, user, version, update, seen) in done {
            if let Some(update) = update?.update {
                let state = proto::ProfileState {
                    version,
                    summary: update.summary,
                    ..proto::ProfileState::default()
                };
                profiles.insert((&*user).into(), Arc::new(state));
            }
            // An answer that is refused is asked for again in another way; those are not the usual requests.
            let mut seen = seen.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let greedy = seen.drain(..).filter(|r| r.sampling == Sampling::Greedy);
            for (part, request) in greedy.enumerate() {
                let asked = Asked {
                    id: format!("{user}-{version}-{part}"),
                    system: request.system,
                    user: request.user,
                    previous: request.previous,
                    max_tokens: request.max_tokens,
                };
                let line = serde_json::to_string(&asked).map_err(std::io::Error::from)?;
                writeln!(out, "{line}")?;
                made += 1;
                if made == making.requests {
                    return Ok(out.flush()?);
                }
            }
        }
    }
    Err(Error::Few { made })
}

/// Each person's windows in their order: the first of everybody, the second …
fn rounds(making: &Making, decoder: &Decoder) -> Result<VecDeque<Vec<Closed>>, Error> {
    let mut windows = Windows::new(Arc::new(making.window.clone()), None, false);
    let mut closed = Vec::new();
    let ratings = movielens::read(&making.data, making.users, making.events_per_user)?;
    for (offset, rating) in (0..).zip(&ratings) {
        let row = rating.row();
        let record = Record {
            key: Some(bytes::Bytes::copy_from_slice(row.user.as_bytes())),
            value: Some(row.value.into()),
            headers: Box::default(),
        };
        // The ratings' own form is ours; one that cannot be read would show in every test of it.
        let Ok(decoded) = decoder.decode(&record, None) else {
            continue;
        };
        let event = Event {
            offset,
            time_ms: decoded.time_ms,
            tokens: 0,
            late: false,
            record,
        };
        windows.insert(&decoded.user, event, decoded.time_ms, &mut closed);
    }
    windows.close_all(CloseReason::EndOfInput, &mut closed);
    let mut counts: HashMap<Box<str>, usize> = HashMap::new();
    let mut rounds: VecDeque<Vec<Closed>> = VecDeque::new();
    for window in closed {
        let count = counts.entry(window.user.clone()).or_default();
        if rounds.len() == *count {
            rounds.push_back(Vec::new());
        }
        rounds[*count].push(window);
        *count += 1;
    }
    Ok(rounds)
}

/// Keeps what the engine was asked.
struct Recorder {
    engine: Arc<dyn Engine>,
    seen: Mutex<Vec<Request>>,
}

impl Engine for Recorder {
    fn description(&self) -> &Description {
        self.engine.description()
    }

    fn count(&self, text: &str) -> u32 {
        self.engine.count(text)
    }

    fn prepare(&self, request: Request) -> Result<Prepared, EngineError> {
        self.engine.prepare(request)
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(prepared.request.clone());
        self.engine.generate(prepared)
    }
}
