//! What stands between the model and a profile: an answer that is failed, empty, cut off or over-long changes nothing.

use crate::engine::{Engine, Finish, Output};

/// Why an answer was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing stands behind the reasoning block.
    Empty,
    /// The model was stopped at the token limit.
    CutOff,
    /// More tokens than a summary may have.
    TooLong,
    /// It repeats itself.
    Loop,
    /// The reasoning block does not end.
    UnfinishedReasoning,
    /// The engine refused the request itself, for the reason given.
    Engine(String),
}

impl Refusal {
    /// The name in metrics and dead letters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::CutOff => "cut_off",
            Self::TooLong => "too_long",
            Self::Loop => "loop",
            Self::UnfinishedReasoning => "unfinished_reasoning",
            Self::Engine(_) => "rejected_by_engine",
        }
    }
}

/// The summary that an answer holds.
pub(super) fn pass(
    output: &Output,
    max_tokens: u32,
    engine: &dyn Engine,
) -> Result<String, Refusal> {
    match output.finish {
        Finish::Length => return Err(Refusal::CutOff),
        Finish::Loop => return Err(Refusal::Loop),
        Finish::Stop => {}
    }
    let summary = behind_reasoning(&output.text)?.trim();
    if summary.is_empty() {
        return Err(Refusal::Empty);
    }
    // Counted from the text: a remote engine's own count takes the reasoning in.
    if engine.count(summary) > max_tokens && output.output_tokens > max_tokens {
        return Err(Refusal::TooLong);
    }
    if loops(summary) {
        return Err(Refusal::Loop);
    }
    Ok(summary.to_owned())
}

/// What stands behind the reasoning block (`<think>` … `</think>`, as Qwen3 writes it; the template may have opened it).
fn behind_reasoning(text: &str) -> Result<&str, Refusal> {
    match text.rsplit_once("</think>") {
        Some((_, rest)) if rest.contains("<think>") => Err(Refusal::UnfinishedReasoning),
        Some((_, rest)) => Ok(rest),
        None if text.contains("<think>") => Err(Refusal::UnfinishedReasoning),
        None => Ok(text),
    }
}

/// How often a run of words must stand at the end, one behind the other, to count as a loop, and how long all of it is
/// at least in bytes. "No, no, no, no." is not one.
const REPEATS: usize = 4;
const LOOP_BYTES: usize = 48;

/// Whether the text ends in the same words over and over.
fn loops(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    (1..=words.len() / REPEATS).any(|period| {
        let tail = &words[words.len() - period * REPEATS..];
        tail.iter().map(|w| w.len()).sum::<usize>() >= LOOP_BYTES
            && tail[period..].iter().zip(tail).all(|(a, b)| a == b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_reasoning_block_is_the_summary() {
        assert_eq!(
            behind_reasoning("<think>hm</think>\nLikes tea."),
            Ok("\nLikes tea.")
        );
        assert_eq!(behind_reasoning("hm</think>Likes tea."), Ok("Likes tea."));
        assert_eq!(behind_reasoning("Likes tea."), Ok("Likes tea."));
        for unfinished in ["<think>hm", "<think>a</think>b<think>c"] {
            assert_eq!(
                behind_reasoning(unfinished),
                Err(Refusal::UnfinishedReasoning)
            );
        }
    }

    #[test]
    fn a_text_that_ends_in_the_same_words_over_and_over_is_a_loop() {
        let looping = format!("Likes tea. {}", "Loves drama and comedy. ".repeat(4));
        assert!(loops(&looping));
        assert!(!loops(&format!("{looping} And more.")));
        assert!(!loops("No, no, no, no."));
        assert!(!loops(
            "Loves drama, comedy, romance and war. Dislikes horror. Favourites: Fargo; Heat."
        ));
        assert!(!loops(""));
    }
}
