//! The answering side of the socket.
//!
//! Refuses to know verbs. Invariant: memory and threads are bounded: so many connections, so many verbs at once, so long a body.

use super::stream::{self, Lines};
use super::{Line, Version, status_of_error};
use crate::service::{ErrorKind, Handler, Request, ServiceError};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How much a daemon takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Verbs that copy, hash or wait; more of them wait their turn.
    pub long_verbs: usize,
    /// Verbs that only look; they have their own turns, so that `list` answers beside any number of imports.
    pub quick_verbs: usize,
    pub body_bytes: usize,
    /// For a request's head, and again for its body.
    pub request_time: Duration,
    /// For verbs under way when the daemon stops.
    pub stop_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            long_verbs: 16,
            quick_verbs: 16,
            body_bytes: 1 << 20,
            request_time: Duration::from_secs(10),
            stop_time: Duration::from_secs(20),
        }
    }
}

struct Shared {
    handler: Arc<dyn Handler>,
    root: PathBuf,
    limits: Limits,
    long: Arc<Semaphore>,
    quick: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
}

pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    pub fn new(handler: Arc<dyn Handler>, root: PathBuf, limits: Limits) -> Server {
        let long = Arc::new(Semaphore::new(limits.long_verbs));
        let quick = Arc::new(Semaphore::new(limits.quick_verbs));
        Server {
            shared: Arc::new(Shared {
                handler,
                root,
                limits,
                long,
                quick,
                stopping: Arc::default(),
            }),
        }
    }

    /// Answers until `stop` is true or gone; then lets verbs under way finish, for as long as the limits say.
    pub async fn serve(self, listener: UnixListener, mut stop: watch::Receiver<bool>) -> std::io::Result<()> {
        let shared = self.shared;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let router = Router::new()
            .route("/v1/version", get(version))
            .route("/v1/{verb}", post(verb))
            .fallback(no_such_path);
        let router = router.with_state(shared.clone());
        let slots = Arc::new(Semaphore::new(shared.limits.connections));
        loop {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, say: it passes when others leave.
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stopped(&mut stop) => break,
            };
            let service = TowerToHyperService::new(router.clone());
            let (mut stop, request_time) = (stop.clone(), shared.limits.request_time);
            tokio::spawn(async move {
                let mut server = hyper::server::conn::http1::Builder::new();
                server
                    .timer(TokioTimer::new())
                    .header_read_timeout(request_time)
                    .max_buf_size(64 << 10);
                let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
                let ended = tokio::select! {
                    ended = &mut connection => ended,
                    () = stopped(&mut stop) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection broke");
                }
                drop(slot);
            });
        }
        drop(listener);
        shared.stopping.store(true, Ordering::Relaxed);
        let all = u32::try_from(shared.limits.connections).unwrap_or(u32::MAX);
        if tokio::time::timeout(shared.limits.stop_time, slots.acquire_many(all))
            .await
            .is_err()
        {
            tracing::warn!("verbs are still under way; the next start tidies up after them");
        }
        Ok(())
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone stops the server as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn version(State(shared): State<Arc<Shared>>) -> Response {
    let version = Version {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        root: shared.root.clone(),
    };
    axum::Json(version).into_response()
}

async fn no_such_path() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        ServiceError::new(ErrorKind::Usage, "want POST /v1/<verb> or GET /v1/version"),
    )
}

async fn verb(State(shared): State<Arc<Shared>>, Path(verb): Path<String>, body: Body) -> Response {
    let limit = shared.limits.body_bytes;
    let usage = |message: String| ServiceError::new(ErrorKind::Usage, message);
    let body = match tokio::time::timeout(shared.limits.request_time, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                usage(format!("arguments of more than {limit} bytes")),
            );
        }
        Ok(Err(error)) => return refuse(StatusCode::BAD_REQUEST, usage("body".into()).because(Some(&*error))),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, usage("the body did not arrive in time".into())),
    };
    let request = match Request::from_json(&verb, &body) {
        Ok(request) => request,
        Err(error) => {
            let error = ServiceError::from_error(ErrorKind::Usage, &error);
            return refuse(
                if Request::VERBS.contains(&&*verb) {
                    StatusCode::BAD_REQUEST
                } else {
                    StatusCode::NOT_FOUND
                },
                error,
            );
        }
    };
    let turns = if request.is_quick() { &shared.quick } else { &shared.long };
    let permit = turns.clone().acquire_owned().await.expect("the semaphore is never closed");
    if shared.stopping.load(Ordering::Relaxed) {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            ServiceError::new(ErrorKind::Failed, "the daemon is stopping"),
        );
    }
    let mut lines = stream::start(shared.handler.clone(), request, permit, shared.stopping.clone());
    let first = lines.next().await;
    let status = match &first {
        Some(Line::Error(error)) => status_of_error(error.kind),
        _ => StatusCode::OK,
    };
    answer(status, Body::from_stream(futures_util::stream::unfold((first, lines), next_line)))
}

async fn next_line((ready, mut lines): (Option<Line>, Lines)) -> Option<(Result<Vec<u8>, serde_json::Error>, (Option<Line>, Lines))> {
    let line = match ready {
        Some(line) => line,
        None => lines.next().await?,
    };
    Some((encode(&line), (None, lines)))
}

fn encode(line: &Line) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

fn refuse(status: StatusCode, error: ServiceError) -> Response {
    answer(status, Body::from(encode(&Line::Error(error)).unwrap_or_default()))
}

fn answer(status: StatusCode, body: Body) -> Response {
    (status, [(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
