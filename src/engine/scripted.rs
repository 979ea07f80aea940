//! A model for tests: its summary lists the positions of all that was folded, so that each event can be accounted for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Answer, Bound, Description, Engine, Error, Finish, Output, Prepared, Request, hash};
use crate::checkpoint::OffsetSet;

/// What the scripted engine does with one request.
#[derive(Debug, Clone)]
pub enum Script {
    /// Answers as it should.
    Answer,
    /// Answers this.
    Text(String, Finish),
    /// Fails.
    Fail(Error),
    /// Waits, then does the other.
    After(Duration, Box<Script>),
    /// Panics.
    Panic,
    /// Never answers.
    Hang,
}

/// What can be wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is empty.
    Empty,
    /// It is longer than the request allows.
    Long,
    /// It repeats itself.
    Loop,
    /// It is cut off.
    Cut,
    /// There is none now.
    Unavailable,
    /// The request is refused.
    Rejected,
    /// The engine panics.
    Panic,
    /// There never is one.
    Hang,
    /// The engine has ended for good.
    Broken,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Empty,
        Self::Long,
        Self::Loop,
        Self::Cut,
        Self::Unavailable,
        Self::Rejected,
        Self::Panic,
        Self::Hang,
        Self::Broken,
    ];

    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Long => "long",
            Self::Loop => "loop",
            Self::Cut => "cut",
            Self::Unavailable => "unavailable",
            Self::Rejected => "rejected",
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Broken => "broken",
        }
    }

    fn script(self, request: &Request) -> Script {
        match self {
            Self::Empty => Script::Text(String::new(), Finish::Stop),
            Self::Long => {
                let words = request.max_tokens as usize + 1;
                let word = |n: usize| format!("word{n} ");
                Script::Text((0..words).map(word).collect(), Finish::Stop)
            }
            Self::Loop => Script::Text("again and again and again".to_owned(), Finish::Loop),
            Self::Cut => Script::Text("the beginning of".to_owned(), Finish::Length),
            Self::Unavailable => Script::Fail(Error::Unavailable {
                reason: "the script says so".to_owned(),
                retry_after: None,
            }),
            Self::Rejected => Script::Fail(Error::Rejected {
                reason: "the script says so".to_owned(),
            }),
            Self::Panic => Script::Panic,
            Self::Hang => Script::Hang,
            Self::Broken => Script::Fail(Error::Broken {
                reason: "the script says so".to_owned(),
            }),
        }
    }
}

type Choose = Box<dyn Fn(&Request, u64) -> Script + Send + Sync>;

/// Answers with the positions in the request, such as `0:5-9,12;1:3`: partition, offsets; and behind them `!P:O` for each that was folded
/// before. The event template must write `@P:O` into each line. A token is a word.
pub struct Scripted {
    description: Description,
    calls: AtomicU64,
    choose: Choose,
}

impl Scripted {
    /// Answers every request, `concurrency` at once.
    #[must_use]
    pub fn new(concurrency: usize) -> Self {
        Self::with(concurrency, |_, _| Script::Answer)
    }

    /// Does with each request what `choose` says; it is given the number of the call, from 0.
    #[must_use]
    pub fn with(
        concurrency: usize,
        choose: impl Fn(&Request, u64) -> Script + Send + Sync + 'static,
    ) -> Self {
        Self {
            description: Description {
                name: "scripted".to_owned(),
                fingerprint: "scripted-1".to_owned(),
                context_tokens: u32::MAX,
                bound: Bound::Context,
                concurrency: concurrency.max(1),
            },
            calls: AtomicU64::new(0),
            choose: Box::new(choose),
        }
    }

    /// Answers after `delay`, `concurrency` at once; every so-manieth request meets the fault instead.
    #[must_use]
    pub fn faulty(concurrency: usize, delay: Duration, fault: Option<(Fault, u64)>) -> Self {
        Self::with(concurrency, move |request, number| {
            let script = match fault {
                Some((fault, every)) if (number + 1).is_multiple_of(every.max(1)) => {
                    fault.script(request)
                }
                _ => Script::Answer,
            };
            match delay {
                Duration::ZERO => script,
                delay => Script::After(delay, Box::new(script)),
            }
        })
    }

    /// How many requests were answered, or failed, so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Engine for Scripted {
    fn description(&self) -> &Description {
        &self.description
    }

    fn count(&self, text: &str) -> u32 {
        let words = if text.is_ascii() {
            let space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
            let words = text.as_bytes().split(space);
            words.filter(|word| !word.is_empty()).count()
        } else {
            text.split_whitespace().count()
        };
        u32::try_from(words).unwrap_or(u32::MAX)
    }

    fn prepare(&self, request: Request) -> Result<Prepared, Error> {
        Ok(Prepared {
            tokens: Vec::new(),
            prompt_tokens: self
                .count(&request.system)
                .saturating_add(self.count(&request.user)),
            key: hash(&self.description, &[], &request),
            request,
        })
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let mut script = (self.choose)(&prepared.request, number);
            while let Script::After(wait, then) = script {
                tokio::time::sleep(wait).await;
                script = *then;
            }
            let (text, finish) = match script {
                Script::Text(text, finish) => (text, finish),
                Script::Fail(error) => return Err(error),
                Script::Panic => panic!("the script says so"),
                Script::Hang => std::future::pending().await,
                Script::Answer | Script::After(..) => {
                    let request = &prepared.request;
                    let positions = Positions::of(&request.previous, &request.user);
                    (positions.to_string(), Finish::Stop)
                }
            };
            Ok(Output {
                finish,
                prompt_tokens: prepared.prompt_tokens,
                cached_tokens: 0,
                output_tokens: self.count(&text),
                seconds: 0.0,
                text,
            })
        })
    }
}

/// The positions that a scripted summary lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    /// By partition, the offsets folded.
    pub folded: BTreeMap<i32, OffsetSet>,
    /// Positions folded more than once.
    pub repeated: Vec<(i32, i64)>,
}

impl Positions {
    /// What the summary lists that is made of the previous one and of a message with the new events: `@P:O` in each line.
    #[must_use]
    pub fn of(previous: &str, message: &str) -> Self {
        let mut positions = Self::parse(previous).unwrap_or_default();
        for place in message.split('@').skip(1) {
            let place = place
                .split(|c: char| !c.is_ascii_digit() && c != ':')
                .next();
            if let Some((partition, offset)) = place.and_then(position) {
                let folded = positions.folded.entry(partition).or_default();
                if folded.contains(offset) {
                    positions.repeated.push((partition, offset));
                }
                folded.insert(offset);
            }
        }
        positions
    }

    /// Reads a scripted summary; `None` where the text is none.
    #[must_use]
    pub fn parse(summary: &str) -> Option<Self> {
        let mut positions = Self::default();
        let mut words = summary.split(' ');
        for partition in words.next()?.split(';').filter(|p| !p.is_empty()) {
            let (number, runs) = partition.split_once(':')?;
            let folded = positions.folded.entry(number.parse().ok()?).or_default();
            for run in runs.split(',') {
                let (first, last) = run.split_once('-').unwrap_or((run, run));
                let last: i64 = last.parse().ok()?;
                folded.insert_run(first.parse().ok()?, last.checked_add(1)?);
            }
        }
        for word in words {
            positions.repeated.push(position(word.strip_prefix('!')?)?);
        }
        Some(positions)
    }
}

fn position(text: &str) -> Option<(i32, i64)> {
    let (partition, offset) = text.split_once(':')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

impl std::fmt::Display for Positions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (partition, folded)) in self.folded.iter().enumerate() {
            let runs: Vec<String> = folded
                .runs()
                .map(|(first, end)| {
                    if end == first + 1 {
                        first.to_string()
                    } else {
                        format!("{first}-{}", end - 1)
                    }
                })
                .collect();
            write!(
                f,
                "{}{partition}:{}",
                if at > 0 { ";" } else { "" },
                runs.join(",")
            )?;
        }
        self.repeated
            .iter()
            .try_for_each(|(p, o)| write!(f, " !{p}:{o}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(previous: &str, user: &str) -> String {
        Positions::of(previous, user).to_string()
    }

    #[test]
    fn the_summary_lists_all_that_was_folded_and_what_was_folded_twice() {
        let first = ask("", "- @0:5\n- @0:6 x\n- @1:3");
        assert_eq!(first, "0:5-6;1:3");
        let second = ask(&first, "- @0:9\n- @0:7\n- @1:3");
        assert_eq!(second, "0:5-7,9;1:3 !1:3");
        assert_eq!(ask(&second, "- @0:8"), "0:5-9;1:3 !1:3");
        assert_eq!(Positions::parse("Likes tea."), None);
    }
}
