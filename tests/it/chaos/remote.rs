//! A model's server that does not keep to the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use limn::engine::Positions;
use serde_json::{Value, json};

use super::load::Events;
use super::run::Run;

/// What every other request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    TooMany,
    Broken,
    Garbage,
    Nothing,
}

/// What the scripted engine says.
fn scripted(request: &Value) -> Option<Response> {
    let messages = request["messages"].as_array()?;
    let user = messages.last()?["content"].as_str()?;
    // The template has the profile on the first line.
    let (before, events) = user.split_once('\n')?;
    let text = Positions::of(before, events).to_string();
    let answer = json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10},
    });
    Some(answer.to_string().into_response())
}

async fn answer(kind: Answer, number: u64, body: String) -> Response {
    if number.is_multiple_of(2) {
        let request = serde_json::from_str(&body).unwrap();
        return scripted(&request).expect("a request as limn makes it");
    }
    match kind {
        Answer::TooMany => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        Answer::Broken => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        // Not JSON, JSON of something else, and no UTF-8.
        Answer::Garbage => match number % 3 {
            0 => "<html>".into_response(),
            1 => r#"{"choices": []}"#.into_response(),
            _ => Body::from(&[0xff, 0xfe, 0x00][..]).into_response(),
        },
        Answer::Nothing => {
            // Longer than anybody waits.
            tokio::time::sleep(Duration::from_secs(600)).await;
            StatusCode::OK.into_response()
        }
    }
}

pub fn answers(run: &mut Run<'_>, kind: Answer) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let requests = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&requests);
    let route =
        post(move |body: String| answer(kind, counted.fetch_add(1, Ordering::Relaxed), body));
    let router = Router::new().route("/v1/chat/completions", route);
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    run.replace(
        "kind = \"scripted\"",
        format!(
            "kind = \"openai\"\nmodel = \"scripted\"\nbase_url = \"http://{address}/v1\"\nretries = 1\ntimeout = \"1s\"\ncontext_tokens = 1000000"
        ),
    );
    run.replace("delay = \"50ms\"", "");
    run.replace(
        "max_tokens = 10000",
        "max_tokens = 10000\nbackoff = \"50ms\"",
    );
    run.load(Events::default());
    run.start("a");
    run.works();
    run.works();
    assert!(requests.load(Ordering::Relaxed) > 10);
    // It works off the rest with a server that is well.
    run.unfeed();
    run.stop("a");
    run.replace("kind = \"scripted\"", "kind = \"scripted\"");
    runtime.shutdown_background();
}
