//! What a server's answer says.

use serde::Deserialize;

use super::{Error, away};
use crate::engine::Finish;

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: Option<u32>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

/// An answer, as far as the server tells of it.
pub(super) struct Answered {
    pub(super) text: String,
    pub(super) finish: Finish,
    /// `None` where the server does not count.
    pub(super) prompt_tokens: Option<u32>,
    pub(super) cached_tokens: u32,
    /// As of the prompt. A count of nothing for a text is none.
    pub(super) output_tokens: Option<u32>,
}

impl Answered {
    /// Reads the body of a successful answer.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it is not what the protocol says, [`Error::Rejected`] where the server's filter kept the answer back.
    pub(super) fn read(body: &[u8]) -> Result<Self, Error> {
        let completion: Completion = serde_json::from_slice(body).map_err(|e| {
            away(format!(
                "the server's answer is not what the protocol says: {e}"
            ))
        })?;
        let Some(choice) = completion.choices.into_iter().next() else {
            return Err(away("the server's answer has no choices".to_owned()));
        };
        let finish = match choice.finish_reason.as_deref() {
            Some("length") => Finish::Length,
            Some("content_filter") => {
                return Err(Error::Rejected {
                    reason: "the server's content filter".to_owned(),
                });
            }
            _ => Finish::Stop,
        };
        let usage = completion.usage;
        let details = usage
            .as_ref()
            .and_then(|u| u.prompt_tokens_details.as_ref());
        Ok(Self {
            text: choice.message.content.unwrap_or_default(),
            finish,
            prompt_tokens: usage.as_ref().map(|u| u.prompt_tokens),
            cached_tokens: details.and_then(|d| d.cached_tokens).unwrap_or(0),
            output_tokens: usage
                .and_then(|u| u.completion_tokens)
                .filter(|&count| count > 0),
        })
    }
}
