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
        u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
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
                _ => (Positions::of(&prepared.request).to_string(), Finish::Stop),
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
    fn of(request: &Request) -> Self {
        let mut positions = Self::parse(&request.previous).unwrap_or_default();
        for place in request.user.split('@').skip(1) {
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
    use crate::engine::Sampling;

    fn ask(previous: &str, user: &str) -> String {
        Positions::of(&Request {
            system: String::new(),
            user: user.to_owned(),
            previous: previous.to_owned(),
            max_tokens: 9,
            sampling: Sampling::Greedy,
        })
        .to_string()
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
