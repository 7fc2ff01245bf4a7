//! The asking side of the socket.
//!
//! Refuses to know verbs. Invariant: what the daemon says is read with a bound on each line, and an answer without an end is an error.

use super::{Line, SOCKET_NAME};
use crate::service::{ErrorKind, Handler, Progress, Reply, Request, ServiceError};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A reply is one line; the largest is a diff of a shredded disk.
const MAX_LINE: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
#[error("daemon's socket {}", path.display())]
pub struct ConnectError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("the daemon broke off without a reply; \"list\" and \"info\" show what it has done")]
    BrokenOff,
    #[error("a line of more than {MAX_LINE} bytes")]
    LongLine,
    #[error("a line that is not one of ours")]
    Line(#[source] serde_json::Error),
    #[error("HTTP")]
    Http(#[from] hyper::Error),
    #[error("runtime")]
    Runtime(#[source] io::Error),
    #[error("the connection was used already")]
    Used,
}

/// A connection to a daemon, good for one request.
pub struct Client {
    stream: Mutex<Option<UnixStream>>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ConnectError> {
        let stream = UnixStream::connect(path).and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        match stream {
            Ok(stream) => Ok(Client {
                stream: Mutex::new(Some(stream)),
            }),
            Err(source) => Err(ConnectError { path: path.into(), source }),
        }
    }

    /// Connects to the daemon of the store with this run-time directory; `None` where none listens.
    pub fn find(run_dir: &Path) -> Result<Option<Client>, ConnectError> {
        match Client::connect(&run_dir.join(SOCKET_NAME)) {
            Ok(client) => Ok(Some(client)),
            Err(error) if matches!(error.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn talk(&self, verb: &str, arguments: Vec<u8>, progress: &dyn Progress) -> Result<Line, TalkError> {
        let stream = self
            .stream
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take()
            .ok_or(TalkError::Used)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(TalkError::Runtime)?;
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).map_err(TalkError::Runtime)?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = hyper::Request::post(format!("/v1/{verb}"))
                .header("host", "blockbt")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(arguments)))
                .expect("verb and headers are ours");
            let mut body = sender.send_request(request).await?.into_body();
            let mut pending: Vec<u8> = Vec::new();
            let mut searched = 0;
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                pending.extend_from_slice(&data);
                while let Some(end) = pending[searched..].iter().position(|byte| *byte == b'\n') {
                    let rest = pending.split_off(searched + end + 1);
                    match serde_json::from_slice(&pending).map_err(TalkError::Line)? {
                        Line::Progress(step) => progress.update(&step.step, step.done, step.total),
                        last => return Ok(last),
                    }
                    (pending, searched) = (rest, 0);
                }
                searched = pending.len();
                if searched > MAX_LINE {
                    return Err(TalkError::LongLine);
                }
            }
            Err(TalkError::BrokenOff)
        })
    }
}

impl Handler for Client {
    fn handle(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError> {
        let arguments = request
            .to_json()
            .map_err(|error| ServiceError::from_error(ErrorKind::Usage, &error))?;
        let talk = |error: TalkError| ServiceError::new(ErrorKind::Failed, "daemon").because(Some(&error));
        match self.talk(request.verb(), arguments, progress).map_err(talk)? {
            Line::Error(error) => Err(error),
            Line::Reply(value) => match Reply::from_json(request.verb(), value).expect("a request's verb is known") {
                Ok(reply) => Ok(reply),
                Err(error) => Err(talk(TalkError::Line(error))),
            },
            Line::Progress(_) => Err(talk(TalkError::BrokenOff)),
        }
    }
}
