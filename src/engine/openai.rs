//! A model behind an HTTP server that speaks the OpenAI protocol (`POST …/chat/completions`).

mod answered;
#[cfg(fuzzing)]
pub mod entry;
mod refusal;

use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use answered::Answered;
use refusal::Refused;

use super::{Answer, Bound, Description, Engine, Error, Output, Prepared, Request, Sampling, hash};

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
/// Most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 64 << 10;
/// How long the server may take to tell its models.
const LOOK: Duration = Duration::from_secs(15);
/// The user's message of a request that no server has a reason to refuse for its text.
const PROBE: &str = "Answer with the word ok.";

/// A model behind a server. Its tokenizer is not known here: a token is taken to be three bytes, which is more tokens than most text has.
pub struct OpenAi {
    config: Config,
    url: String,
    client: Client,
    description: Description,
    places: Semaphore,
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
                bound: Bound::Context,
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
        let response = match self.send(body).await? {
            Ok(response) => response,
            Err(refused) => return Err(self.judged(refused, prepared).await),
        };
        let answered = Answered::read(&limited(response, MAX_BODY).await?)?;
        Ok(Output {
            finish: answered.finish,
            prompt_tokens: answered.prompt_tokens.unwrap_or(prepared.prompt_tokens),
            cached_tokens: answered.cached_tokens,
            output_tokens: answered
                .output_tokens
                .unwrap_or_else(|| self.count(&answered.text)),
            seconds: began.elapsed().as_secs_f64(),
            text: answered.text,
        })
    }

    /// Sends a request; the inner error is the server's refusal of it.
    async fn send(&self, body: &Value) -> Result<Result<Response, Refused>, Error> {
        let request = self.keyed(self.client.post(&self.url).json(body));
        let response = request.send().await.map_err(|e| away(told(e)))?;
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        Ok(Err(Refused::read(response).await))
    }

    fn keyed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.config.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// What a refusal means: whether of this very request, or of every one. Where its status leaves that open the server is
    /// asked something that has nothing to refuse but what all requests have in common: the model, the parameters, the
    /// instructions, the answer's length. So neither one strange event stops the service, nor a wrong parameter eats the stream.
    async fn judged(&self, refused: Refused, prepared: &Prepared) -> Error {
        if let Some(error) = refused.settled(&self.config.model) {
            return error;
        }
        let request = Request {
            user: PROBE.to_owned(),
            previous: String::new(),
            ..prepared.request.clone()
        };
        match self.send(&self.body(&request)).await {
            Ok(Ok(_)) => Error::Rejected {
                reason: refused.said,
            },
            Ok(Err(every)) => every
                .settled(&self.config.model)
                .unwrap_or_else(|| every.of_every_request()),
            Err(away) => away,
        }
    }

    /// Looks whether the server is there, takes the key and has the model, without an answer of the model where the
    /// server tells its models.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it is not there, [`Error::Broken`] where it will not work, each with what would do.
    pub async fn look(&self) -> Result<(), Error> {
        let url = format!("{}/models", self.config.base_url.trim_end_matches('/'));
        let request = self.keyed(self.client.get(url)).timeout(LOOK);
        let response = request.send().await.map_err(|e| away(told(e)))?;
        let mut models = Vec::new();
        if response.status().is_success() {
            let body = limited(response, MAX_BODY).await?;
            models = refusal::models(&body);
            if models.contains(&self.config.model) {
                return Ok(());
            }
        } else {
            let refused = Refused::read(response).await;
            // Some servers do not tell their models.
            if !matches!(refused.status, 404 | 405 | 501) {
                let error = refused.settled(&self.config.model);
                return Err(error.unwrap_or_else(|| refused.of_every_request()));
            }
        }
        // Some take names that they do not tell, or any name.
        let request = Request {
            system: PROBE.to_owned(),
            user: PROBE.to_owned(),
            previous: String::new(),
            max_tokens: 8,
            sampling: Sampling::Greedy,
        };
        let body = self.body(&request);
        let answer = tokio::time::timeout(LOOK, self.send(&body)).await;
        let refused = match answer {
            Ok(answered) => match answered? {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            },
            Err(_) => return Err(away(format!("no answer of the model within {LOOK:?}"))),
        };
        let error = refused.settled(&self.config.model);
        Err(match error.unwrap_or_else(|| refused.of_every_request()) {
            Error::Broken { reason } if !models.is_empty() => Error::Broken {
                reason: format!("{reason}; the models there: {}", refusal::some(&models)),
            },
            other => other,
        })
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

fn away(reason: String) -> Error {
    Error::Unavailable {
        reason,
        retry_after: None,
    }
}

async fn limited(mut response: Response, most: usize) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| away(told(e)))? {
        if body.len() + chunk.len() > most {
            return Err(away(format!("the server's answer is over {most} bytes")));
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
                bound: Bound::Context,
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
