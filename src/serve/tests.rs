use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

struct World {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn sources(ready: &Arc<AtomicBool>) -> Sources {
    let ready = Arc::clone(ready);
    Sources {
        profiles: Arc::new(|user| match user {
            "torn" => Err("the view is torn at page 7".to_owned()),
            "ann/b ö" | "ann" => Ok(Some(vec![
                json!({"user_id": user, "version": "2", "summary": "likes tea"}),
                json!({"user_id": user, "version": "1", "summary": "likes coffee"}),
            ])),
            _ => Ok(None),
        }),
        alive: Arc::new(|| Ok(())),
        ready: Arc::new(move || {
            if ready.load(Ordering::SeqCst) {
                Ok(())
            } else {
                Err("partition 3 is being restored".to_owned())
            }
        }),
        metrics: Arc::new(|| "limn_events_total 7\n".to_owned()),
    }
}

async fn world(token: Option<&str>) -> World {
    let ready = Arc::new(AtomicBool::new(false));
    let server = Server::bind(LOOPBACK, token.map(Token::new), sources(&ready))
        .await
        .unwrap();
    let (stop, stopped) = oneshot::channel();
    World {
        address: server.address(),
        ready,
        stop: Some(stop),
        running: tokio::spawn(server.run(async {
            let _ = stopped.await;
        })),
    }
}

impl World {
    async fn get(&self, path: &str, token: Option<&str>) -> (u16, Value) {
        let mut request = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(format!("http://{}{path}", self.address));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    /// A request as it is written, and the whole answer.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn a_profile_is_found_by_its_percent_encoded_user() {
    let world = world(None).await;
    let (status, body) = world.get("/v1/profiles/ann%2Fb%20%C3%B6", None).await;
    assert_eq!(
        (status, &body["user_id"], &body["version"]),
        (200, &json!("ann/b ö"), &json!("2"))
    );
    let (status, body) = world.get("/v1/profiles/ann?history=true", None).await;
    assert_eq!(
        (status, body["versions"].as_array().map(Vec::len)),
        (200, Some(2))
    );
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_json_error() {
    let world = world(None).await;
    for (path, wanted) in [
        ("/v1/profiles/nobody", 404),
        ("/v1/profiles/", 404),
        ("/none", 404),
        ("/v1/profiles/%FF%FE", 400),
        ("/v1/profiles/ann?history=maybe", 400),
        ("/v1/profiles/ann?histry=true", 400),
        (&format!("/v1/profiles/{}", "u".repeat(513)), 400),
        (&format!("/v1/profiles/{}", "%75".repeat(512)), 404),
        ("/v1/profiles/torn", 500),
    ] {
        let (status, body) = world.get(path, None).await;
        assert_eq!(status, wanted, "{path}: {body}");
        assert!(body["error"].is_string(), "{path}: {body}");
        assert!(!body.to_string().contains("page 7"), "{body}");
    }
    let answer = world
        .raw("DELETE /v1/profiles/ann HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("\"error\""),
        "{answer}"
    );
}

#[tokio::test]
async fn it_is_ready_only_when_the_pipeline_is_and_says_why_not() {
    let world = world(None).await;
    assert_eq!(world.get("/healthz", None).await.0, 200);
    let (status, body) = world.get("/readyz", None).await;
    assert_eq!(
        (status, &body["reason"]),
        (503, &json!("partition 3 is being restored"))
    );
    world.ready.store(true, Ordering::SeqCst);
    assert_eq!(world.get("/readyz", None).await.0, 200);
}

#[tokio::test]
async fn every_path_but_health_and_metrics_asks_for_the_token() {
    let world = world(Some("open-sesame")).await;
    for path in ["/v1/profiles/ann", "/v1/profiles/nobody", "/none", "/"] {
        for wrong in [None, Some("open-sesam"), Some("open-sesame-"), Some("")] {
            let (status, body) = world.get(path, wrong).await;
            assert_eq!(status, 401, "{path} with {wrong:?}: {body}");
        }
    }
    assert_eq!(
        world.get("/v1/profiles/ann", Some("open-sesame")).await.0,
        200
    );
    assert_eq!(world.get("/healthz", None).await.0, 200);
    assert_eq!(
        world.get("/metrics", None).await,
        (200, json!("limn_events_total 7\n"))
    );
}

#[tokio::test]
async fn without_a_token_it_listens_on_loopback_only() {
    let open: SocketAddr = ([0, 0, 0, 0], 0).into();
    let refused = Server::bind(open, None, sources(&Arc::default())).await;
    assert!(matches!(refused, Err(Error::Open(_))));
    assert!(
        Server::bind(
            open,
            Some(Token::new("open-sesame")),
            sources(&Arc::default())
        )
        .await
        .is_ok()
    );
}

#[tokio::test]
async fn without_a_token_no_other_sites_name_is_answered() {
    let world = world(None).await;
    for (host, wanted) in [
        ("evil.example", "403"),
        ("evil.example:7374", "403"),
        ("localhost:7374", "200"),
        ("[::1]:7374", "200"),
        ("127.0.0.1", "200"),
    ] {
        let answer = world
            .raw(&format!(
                "GET /v1/profiles/ann HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {wanted}")),
            "{host}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let world = world(None).await;
    let answer = world
        .raw(&format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}",
            "x".repeat(HEAD_BYTES)
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn it_stops_when_told_although_a_connection_idles() {
    let mut world = world(None).await;
    let idle = TcpStream::connect(world.address).await.unwrap();
    world.get("/healthz", None).await;
    let begun = Instant::now();
    world.stop.take().unwrap().send(()).unwrap();
    (&mut world.running).await.unwrap();
    assert!(begun.elapsed() < DRAIN + Duration::from_secs(2));
    assert!(TcpStream::connect(world.address).await.is_err());
    drop(idle);
}

#[test]
fn the_token_is_never_shown() {
    assert_eq!(format!("{:?}", Token::new("open-sesame")), "***");
}
