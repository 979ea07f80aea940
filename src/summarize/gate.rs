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
    if too_long(output, summary, max_tokens, engine) {
        return Err(Refusal::TooLong);
    }
    if loops(summary) {
        return Err(Refusal::Loop);
    }
    Ok(summary.to_owned())
}

/// More bytes than a token of a summary has on average: a count that asks for more is of something else.
const TOKEN_BYTES: usize = 24;

/// The engine's own count of the answer takes the reasoning in; counting the text alone is an estimate where the tokenizer
/// is remote. So the first decides where there is no reasoning and the count can be true, else both must be over.
fn too_long(output: &Output, summary: &str, max_tokens: u32, engine: &dyn Engine) -> bool {
    let told = output.output_tokens;
    let estimate = engine.count(summary);
    let true_count = summary.len() <= told as usize * TOKEN_BYTES;
    if !true_count {
        return estimate > max_tokens;
    }
    told > max_tokens && (estimate > max_tokens || output.text.trim() == summary)
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
    fn an_over_long_answer_is_refused_however_it_was_counted() {
        let engine = crate::engine::Scripted::new(1);
        let answer = |text: &str, output_tokens| Output {
            text: text.to_owned(),
            finish: Finish::Stop,
            prompt_tokens: 1,
            cached_tokens: 0,
            output_tokens,
            seconds: 0.0,
        };
        let words = |n: usize| (0..n).map(|i| format!("w{i} ")).collect::<String>();
        let pass = |text: &str, told| super::pass(&answer(text, told), 10, &engine);
        // The engine's count is over, though the estimate is not; or is missing, or is nonsense.
        assert_eq!(pass(&words(5), 11), Err(Refusal::TooLong));
        assert_eq!(pass(&words(2000), 0), Err(Refusal::TooLong));
        assert_eq!(pass(&words(2000), 3), Err(Refusal::TooLong));
        assert_eq!(pass(&words(11), 11), Err(Refusal::TooLong));
        // The estimate is over and the engine's count is not; or the count is of the reasoning.
        assert!(pass(&words(12), 9).is_ok());
        assert!(pass(&format!("<think>{}</think>{}", words(50), words(5)), 55).is_ok());
        assert!(pass(&words(5), 0).is_ok());
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
