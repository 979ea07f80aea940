//! HTTP: one user's profile, health and metrics. It knows neither the store nor the pipeline; what it tells comes out
//! of the closures it is given.

mod routes;
#[cfg(test)]
mod tests;
mod token;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use token::Token;

/// Connections at the same time; what is over waits to be accepted.
const CONNECTIONS: usize = 1024;
/// Most bytes of a request's line and headers together.
const HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request.
const HEADERS: usize = 64;
/// How long a connection may take until the head of its next request is there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers under way may take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Looks one user up: `None` where there is no profile, else the versions that are kept, the current one first.
pub type Profiles =
    Arc<dyn Fn(&str) -> Result<Option<Vec<serde_json::Value>>, String> + Send + Sync>;

/// Tells whether something holds; the error is the reason why not.
pub type Condition = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Where the answers come from.
#[derive(Clone)]
pub struct Sources {
    /// The profiles. It may block for a moment.
    pub profiles: Profiles,
    /// Whether the pipeline has not failed for good.
    pub alive: Condition,
    /// Whether partitions are restored and events are folded.
    pub ready: Condition,
    /// The metrics in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("http.listen: {address} cannot be listened on: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Other machines could read the profiles.
    #[error("http.listen: other machines can reach {0}; set http.token as well")]
    Open(SocketAddr),
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Router,
}

impl Server {
    /// Listens. Without a token, on loopback only.
    ///
    /// # Errors
    /// [`Error::Open`] without a token elsewhere; [`Error::Bind`] where the operating system refuses.
    pub async fn bind(
        address: SocketAddr,
        token: Option<Token>,
        sources: Sources,
    ) -> Result<Self, Error> {
        if token.is_none() && !address.ip().is_loopback() {
            return Err(Error::Open(address));
        }
        let failed = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            app: routes::router(sources, token),
        })
    }

    /// Where it listens, with the port that was chosen where 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; answers under way are finished, for a moment.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let (stopping, stopped) = watch::channel(false);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = async {
                    let permit = Arc::clone(&room).acquire_owned().await;
                    (permit, self.listener.accept().await)
                } => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                (Ok(permit), Ok((stream, _))) => {
                    let (app, stopped) = (self.app.clone(), stopped.clone());
                    connections.spawn(async move {
                        connection(stream, app, stopped).await;
                        drop(permit);
                    });
                }
                (_, Err(error)) => {
                    // Mostly too many open files: it passes, and asking again at once would only burn the processor.
                    tracing::warn!(%error, "accepting an HTTP connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                // The semaphore is never closed.
                (Err(_), _) => break,
            }
        }
        drop(self.listener);
        let _ = stopping.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        // What is still open then is dropped with the set.
        let _ = tokio::time::timeout(DRAIN, all).await;
    }
}

async fn connection(stream: TcpStream, app: Router, mut stopped: watch::Receiver<bool>) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
    );
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { let _ = stopped.wait_for(|stop| *stop).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}
