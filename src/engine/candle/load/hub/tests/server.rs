//! A server on this machine that answers as the hub does: lists, redirects to another place for large files, ranges.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Part, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use serde_json::json;

use super::super::{Hub, Id};
use super::COMMIT;
use crate::engine::Error;

#[derive(Default)]
pub(super) struct Shelf {
    /// By path in the repository `someone/tiny`.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// `METHOD path` of each request that was answered.
    pub(super) asked: Mutex<Vec<String>>,
    pub(super) token: Option<&'static str>,
    /// The first answer with this file's bytes ends after so many of them.
    pub(super) breaks: Mutex<Option<(&'static str, usize)>>,
    /// Answers with this file's bytes always say that they are fewer.
    pub(super) short: Option<&'static str>,
    pub(super) etag: Option<&'static str>,
}

pub(super) struct Server {
    pub(super) shelf: Arc<Shelf>,
    pub(super) endpoint: String,
    pub(super) cache: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(super) fn new(shelf: Shelf) -> Self {
        let shelf = Arc::new(shelf);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let routes = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
            .route("/{owner}/{name}/resolve/{revision}/{*file}", get(resolve))
            .route("/blobs/{*file}", get(blob))
            .with_state(Arc::clone(&shelf));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self {
            shelf,
            endpoint,
            cache: tempfile::tempdir().unwrap(),
            _runtime: runtime,
        }
    }

    pub(super) fn hub(&self) -> Hub {
        Hub::new(&|name| match name {
            "HF_ENDPOINT" => Some(format!("{}/", self.endpoint).into()),
            "HF_HOME" => Some(self.cache.path().into()),
            "HF_TOKEN" => self.shelf.token.map(Into::into),
            _ => None,
        })
        .unwrap()
    }

    pub(super) fn fetch(&self, id: &str) -> Result<PathBuf, Error> {
        self.hub()
            .fetch(&Id::of(Path::new(id)).unwrap().unwrap(), true)
    }

    pub(super) fn refusal(&self, id: &str) -> String {
        self.fetch(id).unwrap_err().to_string()
    }

    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf.asked.lock().unwrap())
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: Vec<u8>) -> Response<Body> {
    let builder = headers
        .iter()
        .fold(Response::builder().status(status), |b, (k, v)| {
            b.header(*k, *v)
        });
    builder.body(Body::from(body)).unwrap()
}

fn allowed(shelf: &Shelf, headers: &HeaderMap) -> bool {
    let given = headers.get("authorization").and_then(|v| v.to_str().ok());
    shelf
        .token
        .is_none_or(|token| given == Some(&format!("Bearer {token}")))
}

async fn list(
    State(shelf): State<Arc<Shelf>>,
    Part((owner, name, revision)): Part<(String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    shelf.asked.lock().unwrap().push(format!("list {revision}"));
    if !allowed(&shelf, &headers) || (owner.as_str(), name.as_str()) != ("someone", "tiny") {
        // The hub does not tell whether a closed repository is there.
        return answer(401, &[], Vec::new());
    }
    if !["main", "v1", COMMIT].contains(&revision.as_str()) {
        return answer(404, &[], Vec::new());
    }
    let siblings: Vec<_> = shelf
        .files
        .keys()
        .map(|name| json!({"rfilename": name}))
        .collect();
    let text = json!({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings});
    answer(
        200,
        &[("content-type", "application/json")],
        text.to_string().into(),
    )
}

/// Small files come at once; large ones lie elsewhere, as the hub has it.
async fn resolve(
    State(shelf): State<Arc<Shelf>>,
    Part((_, _, revision, file)): Part<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    shelf.asked.lock().unwrap().push(format!("resolve {file}"));
    let Some(bytes) = shelf.files.get(&file).filter(|_| revision == COMMIT) else {
        return answer(404, &[], Vec::new());
    };
    if !allowed(&shelf, &headers) {
        return answer(401, &[], Vec::new());
    }
    let etag = format!(
        "\"{}\"",
        shelf
            .etag
            .map_or_else(|| blake3::hash(bytes).to_hex().to_string(), str::to_owned)
    );
    if file.ends_with(".safetensors") || file.ends_with(".gguf") {
        let location = format!("/blobs/{file}");
        let headers = [
            ("location", location.as_str()),
            ("x-linked-etag", &etag),
            ("x-repo-commit", COMMIT),
            ("etag", "\"other\""),
        ];
        return answer(302, &headers, Vec::new());
    }
    range(&shelf, &file, bytes, &headers, &etag)
}

async fn blob(
    State(shelf): State<Arc<Shelf>>,
    Part(file): Part<String>,
    headers: HeaderMap,
) -> Response<Body> {
    match shelf.files.get(&file) {
        Some(bytes) => {
            let etag = format!(
                "\"{}\"",
                shelf
                    .etag
                    .map_or_else(|| blake3::hash(bytes).to_hex().to_string(), str::to_owned)
            );
            range(&shelf, &file, bytes, &headers, &etag)
        }
        None => answer(404, &[], Vec::new()),
    }
}

fn range(
    shelf: &Shelf,
    file: &str,
    bytes: &[u8],
    headers: &HeaderMap,
    etag: &str,
) -> Response<Body> {
    let wanted = headers
        .get("range")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("bytes=0-");
    let (from, to) = wanted
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let from: usize = from.parse().unwrap();
    let to = to
        .parse()
        .map_or(bytes.len(), |to: usize| (to + 1).min(bytes.len()));
    shelf
        .asked
        .lock()
        .unwrap()
        .push(format!("bytes {file} {from}-{to}"));
    let part = bytes[from..to].to_vec();
    let held = if shelf.short == Some(file) {
        bytes.len() + 5
    } else {
        bytes.len()
    };
    let content = format!("bytes {from}-{}/{held}", to.saturating_sub(1));
    let headers = [
        ("content-range", content.as_str()),
        ("etag", etag),
        ("x-repo-commit", COMMIT),
    ];
    let mut breaks = shelf.breaks.lock().unwrap();
    if let Some((name, after)) = *breaks
        && name == file
        && part.len() > after
    {
        *breaks = None;
        // Promises all, gives a part, then the connection is gone.
        let body = Broken(Some(part[..after].to_vec()), 0);
        let length = part.len().to_string();
        let builder = headers
            .iter()
            .fold(Response::builder().status(206), |b, (k, v)| {
                b.header(*k, *v)
            });
        return builder
            .header("content-length", length)
            .body(Body::new(body))
            .unwrap();
    }
    answer(StatusCode::PARTIAL_CONTENT.as_u16(), &headers, part)
}

/// A body that fails behind its first part, when that has been sent.
struct Broken(Option<Vec<u8>>, usize);

impl hyper::body::Body for Broken {
    type Data = axum::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        use std::task::Poll::{Pending, Ready};
        if let Some(part) = self.0.take() {
            return Ready(Some(Ok(hyper::body::Frame::data(part.into()))));
        }
        // What waits to be sent is sent before a body is asked again.
        self.1 += 1;
        if self.1 < 10 {
            context.waker().wake_by_ref();
            return Pending;
        }
        Ready(Some(Err(std::io::Error::other("gone"))))
    }
}
