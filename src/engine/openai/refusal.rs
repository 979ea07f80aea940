//! What a server's refusal says, and whom it concerns.
//!
//! Servers do not agree. A prompt that is too long is 400 `context_length_exceeded` (OpenAI), 400 `BadRequestError` with
//! a text (vLLM), 400 or 500 `exceed_context_size_error` (llama.cpp), 403 or 422 elsewhere; a parameter that the model
//! does not take is 400 `unsupported_parameter` or 422; an unpaid bill is 402.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};
use serde_json::Value;

use super::{Error, MAX_REFUSAL, limited};

/// Longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Longest name that is told of a refusal's body, and of a model.
const MAX_NAME: usize = 64;
/// Most models that are told.
const MAX_MODELS: usize = 20;

/// A refusal, as far as it is safe to tell: the body's text may repeat what was sent.
pub(super) struct Refused {
    pub(super) status: u16,
    /// The status, and the names of the error and of the parameter where the body has them.
    pub(super) said: String,
    /// It speaks of the length of the context.
    too_long: bool,
    retry_after: Option<Duration>,
}

impl Refused {
    pub(super) async fn read(response: Response) -> Self {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let body = limited(response, MAX_REFUSAL).await.unwrap_or_default();
        Self::of(status, retry_after, &body)
    }

    pub(super) fn of(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        // vLLM had the fields at the top, the others have them in `error`.
        let error = body.get("error").filter(|e| e.is_object()).unwrap_or(&body);
        let named = |key: &str| error.get(key).and_then(Value::as_str).filter(|t| name(t));
        let names: Vec<&str> = ["code", "type", "param"]
            .into_iter()
            .filter_map(named)
            .collect();
        let text = error
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let text = text.to_ascii_lowercase();
        let too_long = names.iter().any(|n| {
            let n = n.to_ascii_lowercase();
            n.contains("context_length") || n.contains("context_size") || n == "context_exceeded"
        }) || ["context length", "context size", "context window"]
            .iter()
            .any(|words| text.contains(words));
        let said = match names.join(", ") {
            none if none.is_empty() => format!("the server answered {status}"),
            names => format!("the server answered {status} ({names})"),
        };
        Self {
            status: status.as_u16(),
            said,
            too_long,
            retry_after,
        }
    }

    /// What the status alone settles; `None` where it may concern this very request, or every one.
    pub(super) fn settled(&self, model: &str) -> Option<Error> {
        let said = &self.said;
        let broken = |reason| Some(Error::Broken { reason });
        match self.status {
            // Whatever the status: asking again does not make it shorter.
            _ if self.too_long => None,
            401 | 403 => broken(format!("{said}: look at engine.api_key")),
            404 | 405 => broken(format!(
                "{said}: look at engine.base_url and engine.model ({model:?})"
            )),
            // Somebody pays, and it goes on.
            402 => Some(Error::Unavailable {
                reason: format!("{said}: it wants to be paid"),
                retry_after: self.retry_after,
            }),
            408 | 409 | 425 | 429 | 500..=599 => Some(Error::Unavailable {
                reason: said.clone(),
                retry_after: self.retry_after,
            }),
            300..=399 => broken(format!(
                "{said}: redirections are not followed, name the address itself (engine.base_url)"
            )),
            _ => None,
        }
    }

    /// Every request is refused.
    pub(super) fn of_every_request(&self) -> Error {
        let said = &self.said;
        let look = if self.too_long {
            "the instructions and an answer of summary.max_tokens do not fit its context: look at summary and engine.context_tokens"
        } else {
            "look at engine.model, at temperature, top_p and max_tokens in summary, and at what the server takes"
        };
        Error::Broken {
            reason: format!("{said}, whatever it is asked: {look}"),
        }
    }
}

/// Whether this is a name, as error codes and parameters have, and no text that was sent.
fn name(text: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || "_-.[]".contains(c);
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(part)
}

/// The models of a server's list.
pub(super) fn models(body: &[u8]) -> Vec<String> {
    let list: Value = serde_json::from_slice(body).unwrap_or_default();
    let data = list.get("data").and_then(Value::as_array);
    let ids = data
        .into_iter()
        .flatten()
        .filter_map(|m| m.get("id")?.as_str());
    ids.map(str::to_owned).collect()
}

/// Some of the names, for people.
pub(super) fn some(models: &[String]) -> String {
    let names: Vec<String> = models
        .iter()
        .take(MAX_MODELS)
        .map(|m| {
            m.chars()
                .filter(|c| !c.is_control())
                .take(2 * MAX_NAME)
                .collect()
        })
        .collect();
    let more = models.len().saturating_sub(MAX_MODELS);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
