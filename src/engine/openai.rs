//! A model behind an HTTP server that speaks the OpenAI protocol (`POST …/chat/completions`).

use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    Answer, Description, Engine, Error, Finish, Output, Prepared, Request, Sampling, hash,
};

/// Which server, and how it is asked.
#[derive(Clone)]
pub struct Config {
    /// The address before `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// The key, where the server wants one; never shown.
    pub api_key: Option<String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How often a failed request is sent again before the engine counts as away.
    pub retries: u32,
    /// Requests at the same time.
    pub concurrency: usize,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
}

/// Most bytes of an answer's body.
const MAX_BODY: usize = 4 << 20;
/// First wait before a request is sent again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// A model behind a server. Its tokenizer is not known here: a token is taken to be three bytes, which is more tokens than most text has.
pub struct OpenAi {
    config: Config,
    url: String,
    client: Client,
    description: Description,
    places: Semaphore,
}

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
    completion_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl OpenAi {
    /// Makes the client; the server is asked with the first request.
    ///
    /// # Errors
    /// [`Error::Broken`] where the address is none.
    pub fn new(config: Config) -> Result<Self, Error> {
        let broken = |reason: String| Error::Broken { reason };
        let url = format!("{}/chat/completions", config.base_url.trim_end_matches('/'));
        let parsed = reqwest::Url::parse(&url);
        if !parsed.is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) {
            return Err(broken(
                "the base URL is no http or https address".to_owned(),
            ));
        }
        let client = Client::builder()
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            // The key goes to the server that was named, and to no other.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| broken(e.without_url().to_string()))?;
        Ok(Self {
            description: Description {
                name: config.model.clone(),
                // What stands behind the name is the server's to know.
                fingerprint: format!("openai-1:{url}:{}", config.model),
                context_tokens: config.context_tokens,
                concurrency: config.concurrency.max(1),
            },
            places: Semaphore::new(config.concurrency.max(1)),
            url,
            client,
            config,
        })
    }

    fn body(&self, request: &Request) -> Value {
        let mut body = json!({
            "model": self.config.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user},
            ],
            "max_tokens": request.max_tokens,
            "temperature": 0.0,
            "stream": false,
        });
        if let Sampling::Random {
            temperature,
            top_p,
            seed,
            ..
        } = request.sampling
        {
            body["temperature"] = temperature.into();
            body["top_p"] = top_p.into();
            body["seed"] = seed.into();
        }
        body
    }

    async fn ask(&self, prepared: &Prepared) -> Result<Output, Error> {
        let _place = self.places.acquire().await;
        let body = self.body(&prepared.request);
        let mut wait = BACKOFF;
        let mut attempt = 0;
        loop {
            let error = match self.once(&body, prepared).await {
                Err(error @ Error::Unavailable { .. }) if attempt < self.config.retries => error,
                result => return result,
            };
            attempt += 1;
            let asked = match &error {
                Error::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            tracing::debug!(%error, attempt, "asking the server again");
            tokio::time::sleep(wait.mul_f64(fastrand::f64()).max(asked)).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    async fn once(&self, body: &Value, prepared: &Prepared) -> Result<Output, Error> {
        let began = Instant::now();
        let away = |reason: String| Error::Unavailable {
            reason,
            retry_after: None,
        };
        let mut request = self.client.post(&self.url).json(body);
        if let Some(key) = &self.config.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|e| away(told(e)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(status, &response));
        }
        let completion: Completion =
            serde_json::from_slice(&limited(response).await?).map_err(|e| {
                away(format!(
                    "the server's answer is not what the protocol says: {e}"
                ))
            })?;
        let Some(choice) = completion.choices.into_iter().next() else {
            return Err(away("the server's answer has no choices".to_owned()));
        };
        let text = choice.message.content.unwrap_or_default();
        let finish = match choice.finish_reason.as_deref() {
            Some("length") => Finish::Length,
            Some("content_filter") => {
                return Err(Error::Rejected {
                    reason: "the server's content filter".to_owned(),
                });
            }
            _ => Finish::Stop,
        };
        let usage = completion.usage.unwrap_or(Usage {
            prompt_tokens: prepared.prompt_tokens,
            completion_tokens: self.count(&text),
            prompt_tokens_details: None,
        });
        Ok(Output {
            finish,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .and_then(|d| d.cached_tokens)
                .unwrap_or(0),
            output_tokens: usage.completion_tokens,
            seconds: began.elapsed().as_secs_f64(),
            text,
        })
    }

    /// What a status means. The body is not told: it may repeat what was sent.
    fn refused(&self, status: StatusCode, response: &Response) -> Error {
        let said = format!("the server answered {status}");
        match status.as_u16() {
            401 | 403 => Error::Broken {
                reason: format!("{said}: look at engine.api_key"),
            },
            404 | 405 => Error::Broken {
                reason: format!(
                    "{said}: look at engine.base_url and engine.model ({:?})",
                    self.config.model
                ),
            },
            408 | 409 | 425 | 429 | 500..=599 => Error::Unavailable {
                reason: said,
                retry_after: response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|v| v.to_str().ok()?.trim().parse().ok())
                    .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
            },
            300..=399 => Error::Broken {
                reason: format!(
                    "{said}: redirections are not followed, name the address itself (engine.base_url)"
                ),
            },
            _ => Error::Rejected { reason: said },
        }
    }
}

/// A client's error without its address, which may hold secrets.
fn told(error: reqwest::Error) -> String {
    let kind = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the exchange failed"
    };
    format!("{kind}: {}", error.without_url())
}

async fn limited(mut response: Response) -> Result<Vec<u8>, Error> {
    let away = |reason: String| Error::Unavailable {
        reason,
        retry_after: None,
    };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| away(told(e)))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(away(format!(
                "the server's answer is over {MAX_BODY} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl Engine for OpenAi {
    fn description(&self) -> &Description {
        &self.description
    }

    fn count(&self, text: &str) -> u32 {
        u32::try_from(text.len().div_ceil(3)).unwrap_or(u32::MAX)
    }

    fn prepare(&self, request: Request) -> Result<Prepared, Error> {
        // The template's markers take a few tokens of each message.
        let prompt_tokens = self
            .count(&request.system)
            .saturating_add(self.count(&request.user))
            .saturating_add(16);
        let context = self.config.context_tokens;
        if prompt_tokens.saturating_add(request.max_tokens) > context {
            return Err(Error::TooLong {
                tokens: prompt_tokens,
                answer: request.max_tokens,
                context,
            });
        }
        Ok(Prepared {
            key: hash(&self.description, &[], &request),
            tokens: Vec::new(),
            prompt_tokens,
            request,
        })
    }

    fn generate(&self, prepared: Prepared) -> Answer<'_> {
        Box::pin(async move { self.ask(&prepared).await })
    }
}

#[cfg(test)]
mod tests;
