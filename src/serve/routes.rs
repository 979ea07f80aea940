//! The paths and what they answer. Errors are JSON too: `{"error": "…"}`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::token::{Token, guard};
use super::{Condition, Sources};
use crate::codec::MAX_USER_BYTES;

/// All paths.
pub fn router(sources: Sources, token: Option<Token>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/profiles/{user}", get(profile))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here",
            )
        })
        .layer(from_fn_with_state(token, guard))
        .with_state(sources)
}

/// An error as JSON.
pub fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

async fn healthz(State(sources): State<Sources>) -> Response {
    condition(&sources.alive, "alive")
}

async fn readyz(State(sources): State<Sources>) -> Response {
    condition(&sources.ready, "ready")
}

fn condition(condition: &Condition, name: &str) -> Response {
    match condition() {
        Ok(()) => Json(json!({ "status": name })).into_response(),
        Err(reason) => {
            let body = json!({ "status": format!("not {name}"), "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], (sources.metrics)()).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    history: bool,
}

async fn profile(
    State(sources): State<Sources>,
    user: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Ok(Path(user)) = user else {
        return refusal(
            StatusCode::BAD_REQUEST,
            "the user id is not percent-encoded UTF-8",
        );
    };
    let Ok(Query(Asked { history })) = asked else {
        return refusal(
            StatusCode::BAD_REQUEST,
            "the query is history=true, history=false or nothing",
        );
    };
    if user.len() > MAX_USER_BYTES {
        let error = format!(
            "the user id has {} bytes; at most {MAX_USER_BYTES} will do",
            user.len()
        );
        return refusal(StatusCode::BAD_REQUEST, &error);
    }
    // The view is on a disk.
    let found = tokio::task::spawn_blocking(move || (sources.profiles)(&user)).await;
    let mut response = match found {
        Ok(Ok(Some(versions))) if history => Json(json!({ "versions": versions })).into_response(),
        Ok(Ok(Some(versions))) => match versions.into_iter().next() {
            Some(current) => Json(current).into_response(),
            None => nobody(),
        },
        Ok(Ok(None)) => nobody(),
        Ok(Err(error)) => {
            tracing::error!(error, "reading a profile for HTTP");
            unreadable()
        }
        Err(error) => {
            tracing::error!(%error, "reading a profile for HTTP");
            unreadable()
        }
    };
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn nobody() -> Response {
    refusal(
        StatusCode::NOT_FOUND,
        "this instance has no profile of this user; another may own the user's partition",
    )
}

fn unreadable() -> Response {
    refusal(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the profile cannot be read; the log says why",
    )
}
