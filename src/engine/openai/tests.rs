//! Against a small server in the test.
use super::*;
use crate::engine::Finish;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use reqwest::StatusCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

type Reply = (u16, Option<&'static str>, String);

#[derive(Default)]
struct Server {
    /// Answers in order; behind the last, good ones.
    replies: Mutex<Vec<Reply>>,
    seen: Mutex<Vec<(Option<String>, Value)>>,
    now: AtomicUsize,
    most: AtomicUsize,
    delay: Duration,
}

async fn answer(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: String,
) -> impl IntoResponse {
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let now = server.now.fetch_add(1, Ordering::SeqCst) + 1;
    server.most.fetch_max(now, Ordering::SeqCst);
    tokio::time::sleep(server.delay).await;
    server.now.fetch_sub(1, Ordering::SeqCst);
    let key = headers
        .get("authorization")
        .map(|v| v.to_str().unwrap().to_owned());
    server.seen.lock().unwrap().push((key, body));
    let mut replies = server.replies.lock().unwrap();
    let good = (200, None, good("Likes tea.", "stop"));
    let (status, retry_after, text) = if replies.is_empty() {
        good
    } else {
        replies.remove(0)
    };
    let mut headers = HeaderMap::new();
    if let Some(seconds) = retry_after {
        headers.insert("retry-after", seconds.parse().unwrap());
    }
    (StatusCode::from_u16(status).unwrap(), headers, text)
}

fn good(text: &str, finish: &str) -> String {
    json!({"choices": [{"message": {"content": text}, "finish_reason": finish}],
           "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}})
    .to_string()
}

/// Runs the test with a server and an engine that asks it.
fn with(
    server: Server,
    change: impl FnOnce(&mut Config),
    test: impl AsyncFnOnce(&OpenAi, &Server),
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config {
            base_url: format!("http://{}/v1", listener.local_addr().unwrap()),
            model: "m".into(),
            api_key: Some("secret-key".into()),
            timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(20),
            retries: 2,
            concurrency: 2,
            context_tokens: 1000,
        };
        change(&mut config);
        let server = Arc::new(server);
        let app = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/v1/models", get(answer))
            .with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let engine = OpenAi::new(config).unwrap();
        test(&engine, &server).await;
    });
}

fn replies(replies: &[Reply]) -> Server {
    Server {
        replies: Mutex::new(replies.to_vec()),
        ..Server::default()
    }
}

fn request() -> Request {
    Request {
        system: "s".into(),
        user: "the event's text".into(),
        previous: String::new(),
        max_tokens: 10,
        sampling: Sampling::Greedy,
    }
}

async fn ask(engine: &OpenAi) -> Result<Output, Error> {
    engine.generate(engine.prepare(request()).unwrap()).await
}

#[test]
fn an_answer_is_taken_with_its_usage_and_the_key_is_sent() {
    with(
        Server::default(),
        |_| {},
        async |engine, server| {
            let output = ask(engine).await.unwrap();
            assert_eq!(
                (output.text.as_str(), output.finish),
                ("Likes tea.", Finish::Stop)
            );
            assert_eq!(
                (
                    output.prompt_tokens,
                    output.cached_tokens,
                    output.output_tokens
                ),
                (9, 3, 4)
            );
            let (key, body) = server.seen.lock().unwrap()[0].clone();
            assert_eq!(key.as_deref(), Some("Bearer secret-key"));
            assert_eq!(body["messages"][1]["content"], "the event's text");
            assert_eq!(
                (&body["temperature"], &body["max_tokens"]),
                (&json!(0.0), &json!(10))
            );
        },
    );
}

#[test]
fn a_busy_or_failing_server_is_asked_again_and_then_counts_as_away() {
    let server = replies(&[(429, Some("0"), String::new()), (503, None, String::new())]);
    with(
        server,
        |_| {},
        async |engine, server| {
            assert!(ask(engine).await.is_ok());
            assert_eq!(server.seen.lock().unwrap().len(), 3);
        },
    );
    let down = (500, Some("7"), String::new());
    with(
        replies(&[down.clone(), down]),
        |c| c.retries = 0,
        async |engine, _| {
            let error = ask(engine).await.unwrap_err();
            assert!(
                matches!(&error, Error::Unavailable { retry_after: Some(wait), .. } if wait.as_secs() == 7),
                "{error}"
            );
        },
    );
}

#[test]
fn what_will_never_work_is_broken_at_once_and_the_text_that_was_sent_is_not_told() {
    let faults = [401, 404, 302].map(|status| (status, None, "the event's text".to_owned()));
    with(
        replies(&faults),
        |_| {},
        async |engine, server| {
            for key in ["api_key", "model", "base_url"] {
                let error = ask(engine).await.unwrap_err();
                assert!(matches!(error, Error::Broken { .. }), "{error}");
                let told = error.to_string();
                assert!(
                    told.contains(key)
                        && !told.contains("event's text")
                        && !told.contains("secret-key"),
                    "{told}"
                );
            }
            assert_eq!(server.seen.lock().unwrap().len(), 3, "none is asked again");
        },
    );
}

/// As servers answer to a prompt that is too long, and to a text that they refuse.
const THIS_VERY_REQUEST: [(u16, &str); 8] = [
    (
        400,
        r#"{"error":{"message":"This model's maximum context length is 4096 tokens. the event's text","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
    ),
    (
        400,
        r#"{"object":"error","message":"This model's maximum context length is 2048 tokens. However, you requested 11352 tokens","type":"BadRequestError","param":null,"code":400}"#,
    ),
    (
        400,
        r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":1407,"n_ctx":256}}"#,
    ),
    (
        500,
        r#"{"error":{"code":500,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
    ),
    (
        403,
        r#"{"error":{"message":"Input token count + max_tokens must be less than the context length of the model"}}"#,
    ),
    (413, "too large"),
    (
        422,
        r#"{"error":"Input validation error","error_type":"validation"}"#,
    ),
    (
        400,
        r#"{"error":{"code":"content_filter","message":"the event's text"}}"#,
    ),
];

#[test]
fn a_request_that_is_refused_where_another_is_answered_is_rejected_by_itself() {
    for (status, body) in THIS_VERY_REQUEST {
        with(
            // Behind it the server answers well: to the question that has nothing to refuse, too.
            replies(&[(status, None, body.to_owned())]),
            |c| c.retries = 0,
            async |engine, server| {
                let error = ask(engine).await.unwrap_err();
                assert!(matches!(error, Error::Rejected { .. }), "{body}: {error}");
                assert!(!error.to_string().contains("event's text"), "{error}");
                let seen = server.seen.lock().unwrap();
                assert_eq!(seen.len(), 2);
                assert_eq!(seen[1].1["messages"][0], seen[0].1["messages"][0]);
                assert_ne!(seen[1].1["messages"][1], seen[0].1["messages"][1]);
                for common in ["model", "max_tokens", "temperature"] {
                    assert_eq!(seen[1].1[common], seen[0].1[common]);
                }
            },
        );
    }
}

#[test]
fn a_refusal_of_every_request_is_broken_and_takes_no_event_with_it() {
    let parameter = r#"{"error":{"message":"Use 'max_completion_tokens' instead.","type":"invalid_request_error","param":"max_tokens","code":"unsupported_parameter"}}"#;
    for (status, body, wanted) in [
        (
            400,
            parameter,
            "unsupported_parameter, invalid_request_error, max_tokens",
        ),
        (422, "{}", "422"),
        (400, THIS_VERY_REQUEST[1].1, "engine.context_tokens"),
        (500, THIS_VERY_REQUEST[3].1, "engine.context_tokens"),
    ] {
        let refusal = (status, None, body.to_owned());
        with(
            replies(&[refusal.clone(), refusal]),
            |c| c.retries = 0,
            async |engine, _| {
                let error = ask(engine).await.unwrap_err();
                assert!(
                    matches!(&error, Error::Broken { reason } if reason.contains(wanted)),
                    "{body}: {error}"
                );
            },
        );
    }
}

#[test]
fn an_unpaid_bill_and_a_server_that_goes_away_meanwhile_cost_no_event() {
    let (bad, gone) = ((400, None, String::new()), (503, None, String::new()));
    let unpaid = (
        402,
        None,
        r#"{"error":{"message":"Insufficient Balance"}}"#.to_owned(),
    );
    with(
        replies(&[unpaid, bad, gone]),
        |c| c.retries = 0,
        async |engine, _| {
            for _ in 0..2 {
                let error = ask(engine).await.unwrap_err();
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            }
        },
    );
}

#[test]
fn an_answer_without_a_count_or_with_none_of_its_tokens_is_counted_here() {
    let text = "Likes tea. ".repeat(30);
    let usage = |usage: Value| {
        let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage});
        (200, None, body.to_string())
    };
    with(
        replies(&[
            usage(json!({"prompt_tokens": 9})),
            usage(json!({"prompt_tokens": 9, "completion_tokens": 0})),
            usage(Value::Null),
        ]),
        |_| {},
        async |engine, _| {
            for _ in 0..3 {
                let output = ask(engine).await.unwrap();
                assert_eq!(output.output_tokens, engine.count(&text));
            }
        },
    );
}

#[test]
fn looking_tells_a_wrong_key_an_unknown_model_and_a_dead_server() {
    let models = |ids: &[&str]| {
        let data: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
        (
            200,
            None,
            json!({"object": "list", "data": data}).to_string(),
        )
    };
    let (no_model, wrong_key) = ((404, None, String::new()), (401, None, String::new()));
    with(
        replies(&[
            models(&["m", "n"]),
            wrong_key,
            models(&["a-model", "n"]),
            no_model.clone(),
            // A server that takes any name, and one that tells no models.
            models(&["n"]),
            (200, None, good("ok", "stop")),
            no_model,
            (200, None, good("ok", "stop")),
        ]),
        |_| {},
        async |engine, server| {
            engine.look().await.unwrap();
            assert_eq!(
                server.seen.lock().unwrap()[0].0.as_deref(),
                Some("Bearer secret-key")
            );
            let key = engine.look().await.unwrap_err().to_string();
            assert!(key.contains("engine.api_key"), "{key}");
            let model = engine.look().await.unwrap_err().to_string();
            assert!(
                model.contains("engine.model") && model.contains("a-model, n"),
                "{model}"
            );
            engine.look().await.unwrap();
            engine.look().await.unwrap();
        },
    );
    with(
        Server::default(),
        |c| c.base_url = "http://127.0.0.1:1/v1".to_owned(),
        async |engine, _| {
            let dead = engine.look().await.unwrap_err();
            assert!(
                matches!(&dead, Error::Unavailable { reason, .. } if reason.contains("no connection")),
                "{dead}"
            );
        },
    );
}

#[test]
fn garbage_and_silence_count_as_away() {
    let garbage = [
        (200, None, "<html>".to_owned()),
        (200, None, r#"{"choices":[]}"#.to_owned()),
        (200, None, "x".repeat(MAX_BODY + 1)),
    ];
    with(
        replies(&garbage),
        |c| c.retries = 0,
        async |engine, _| {
            for _ in 0..3 {
                let error = ask(engine).await.unwrap_err();
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            }
        },
    );
    let silent = Server {
        delay: Duration::from_secs(60),
        ..Server::default()
    };
    with(
        silent,
        |c| (c.timeout, c.retries) = (Duration::from_millis(100), 0),
        async |engine, _| {
            let error = ask(engine).await.unwrap_err().to_string();
            assert!(error.contains("no answer in time"), "{error}");
        },
    );
}

#[test]
fn no_more_requests_are_under_way_than_allowed() {
    let server = Server {
        delay: Duration::from_millis(20),
        ..Server::default()
    };
    with(
        server,
        |_| {},
        async |engine, server| {
            let (a, b, c, d, e) = tokio::join!(
                ask(engine),
                ask(engine),
                ask(engine),
                ask(engine),
                ask(engine)
            );
            assert!([a, b, c, d, e].iter().all(Result::is_ok));
            assert_eq!(server.most.load(Ordering::SeqCst), 2);
        },
    );
}

#[test]
fn a_cut_off_answer_says_so_and_a_prompt_that_does_not_fit_is_refused() {
    with(
        replies(&[(200, None, good("Likes", "length"))]),
        |_| {},
        async |engine, _| {
            assert_eq!(ask(engine).await.unwrap().finish, Finish::Length);
            let long = Request {
                user: "x".repeat(4000),
                ..request()
            };
            assert!(matches!(
                engine.prepare(long),
                Err(Error::TooLong { context: 1000, .. })
            ));
        },
    );
}
