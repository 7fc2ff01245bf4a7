//! What blockbt can be asked to do, in types: one request and one reply per verb.
//!
//! Refuses to know who asks: command line, socket and plugins bring the same [`Request`] and get the same [`Reply`].
//! Invariant: a request that exists has passed its checks, so that a verb starts with valid names and sizes.

mod check;
mod commit;
mod draft;
mod engine;
mod environment;
mod error;
mod export;
mod fit;
mod flatten;
mod image;
mod kinds;
mod limit;
mod look;
mod make;
mod mount;
mod own_mount;
mod publish;
mod pull;
mod reply;
mod request;
mod resize;
mod seeding;
mod space;
mod tool;
mod watch;

pub use crate::attach::Mode;
pub use engine::{Stores, fuse_serve};
pub use environment::exempt_loopback_from_proxy;
pub use error::{ErrorKind, ServiceError, plain};
pub use reply::*;
pub use request::*;

use crate::units::Bytes;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a long verb says how far it is. Called from any thread and often: an implementation must be cheap and must not wait.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes, or entries, of the step; `total` is absent where nobody can know it.
    fn update(&self, step: &str, done: u64, total: Option<u64>);

    /// Whether the asker is gone or the daemon stops. A verb that waits for others (`pull`) asks often and gives up cleanly;
    /// one that is making something may as well finish it.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A [`Progress`] nobody watches.
pub struct Quiet;

impl Progress for Quiet {
    fn update(&self, _step: &str, _done: u64, _total: Option<u64>) {}
}

/// Something that carries out requests: an open store, a daemon at the other end of a socket, or a test's stand-in.
///
/// Blocking: the caller brings a thread. Several requests may run at once.
pub trait Handler: Send + Sync {
    fn handle(&self, request: Request, progress: &dyn Progress) -> Result<Reply, ServiceError>;

    /// Gives up what the handler keeps running (the swarm); images stay attached and mounted.
    fn stop(&self) {}
}

/// How a front end gets at a store.
pub trait Backend {
    /// The run-time directory of the store at `root`, or `None` where there is no store yet; makes nothing.
    fn find_run_dir(&self, root: &Path) -> Result<Option<PathBuf>, ServiceError>;
    /// The same, making the store first where there is none.
    fn make_run_dir(&self, root: &Path) -> Result<PathBuf, ServiceError>;
    fn open(&self, settings: &Settings, role: Role) -> Result<Arc<dyn Handler>, ServiceError>;
}

/// Whether a handler lives for one request or for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One request; the swarm starts only for a verb that needs it.
    Command,
    /// `blockbtd`: keeps the swarm running and seeds.
    Daemon,
}

/// What a store and its swarm need to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub root: PathBuf,
    /// Where BitTorrent peers connect (TCP).
    pub listen: SocketAddr,
    /// Where the DHT node listens (UDP); `None` without a DHT.
    pub dht_listen: Option<SocketAddr>,
    pub bootstrap: Bootstrap,
    /// Space that is to stay free on the store's disk; absent: 1 GiB, or a fiftieth of a smaller disk.
    pub free_margin: Option<Bytes>,
}

/// The DHT nodes to ask first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// The well-known nodes of the public DHT.
    Public,
    /// These, as `host:port`; with an empty list the node waits for others to find it.
    Nodes(Vec<String>),
}
