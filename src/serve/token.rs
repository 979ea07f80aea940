//! Who may read profiles: whoever knows the token; without one, whoever asks this machine by its own name.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, HeaderMap, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::routes::refusal;

/// What a reader must know. Only its hash is kept.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl Token {
    /// Of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether the text is the token. Hashes are compared in constant time, so that nobody can feel the way to it.
    fn is(&self, text: &str) -> bool {
        blake3::hash(text.as_bytes()) == self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Paths that monitoring asks for, and that tell nothing of any user.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Lets through who may read.
pub async fn guard(State(token): State<Option<Token>>, request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let allowed = match &token {
        Some(token) => bearer(request.headers()).is_some_and(|given| token.is(given)),
        None => asks_this_machine(request.headers()),
    };
    if allowed {
        return next.run(request).await;
    }
    if token.is_none() {
        return refusal(
            StatusCode::FORBIDDEN,
            "without http.token only requests to localhost or an IP address are answered",
        );
    }
    let mut response = refusal(
        StatusCode::UNAUTHORIZED,
        "wants the header Authorization: Bearer with the token of http.token",
    );
    response
        .headers_mut()
        .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A page of another site can make a browser on this machine ask for a name that it lets point here (DNS rebinding).
/// The name then stands in the header, and it is not this machine's.
fn asks_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else {
        return true;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok()
}
