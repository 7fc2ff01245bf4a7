//! The daemon's Unix socket: `POST /v1/<verb>` with the verb's arguments as JSON, answered by lines of JSON.
//!
//! ```text
//! {"progress":{"step":"write","done":4096,"total":null}}     any number of these, at most ten a second
//! {"reply":{...}}   or   {"error":{"kind":"not-found","message":"...","causes":["..."]}}
//! ```
//! An answer that begins with the error has its HTTP status; once progress was sent the status is 200 and the last line counts.
//! `GET /v1/version` says who answers. A client that vanishes makes [`Progress::cancelled`](crate::service::Progress::cancelled)
//! true: a verb that waits for others stops, any other is finished, as nobody could tell which half was done.
//!
//! Refuses to know what verbs do. Invariant: whatever a client sends, the daemon lives, and other clients are served.

mod claim;
mod client;
mod server;
mod stream;

pub use claim::{Claim, ClaimError, LOCK_NAME, SOCKET_NAME};
pub use client::{Client, ConnectError};
pub use server::{Limits, Server};

#[cfg(test)]
mod tests;

use crate::service::{ErrorKind, ServiceError};
use serde::{Deserialize, Serialize};

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    Progress(Step),
    Reply(serde_json::Value),
    Error(ServiceError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub step: String,
    pub done: u64,
    pub total: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    pub pid: u32,
    pub root: std::path::PathBuf,
}

/// HTTP statuses, the one place they come from.
pub fn status_of_error(kind: ErrorKind) -> hyper::StatusCode {
    match kind {
        ErrorKind::Usage => hyper::StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => hyper::StatusCode::NOT_FOUND,
        ErrorKind::InUse => hyper::StatusCode::CONFLICT,
        ErrorKind::Damaged => hyper::StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Failed => hyper::StatusCode::INTERNAL_SERVER_ERROR,
    }
}
