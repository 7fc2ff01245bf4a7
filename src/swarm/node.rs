//! The swarm's handle: one engine, one DHT node, one bridge, for callers that block.
//!
//! Refuses to know the store: paths and hashes come from the caller. Invariant: every torrent in the engine is open in the book,
//! and its announcer runs.

use super::engine::EngineError;
use super::fetch::FetchError;
use super::host::Host;
use super::peers::FoundBy;
use super::storage::Damage;
use super::torrent::TorrentInfo;
use crate::ids::{Digest, InfoHash, Sha256};
use crate::units::Bytes;
use serde::Serialize;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// Where peers connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The port that others are told; 0 stands for the one that `listen` got.
    pub announce_port: u16,
    /// `None`: neither asks the DHT nor answers in it.
    pub dht_listen: Option<SocketAddrV4>,
    /// `host:port` of other DHT nodes. With none, this node waits for others to come.
    pub bootstrap: Vec<String>,
    /// For small files that are on their way; on any file system.
    pub work_dir: PathBuf,
    /// A fetch that gets no whole and right piece for so long ends with an error. `None` waits for ever.
    pub patience: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    #[error("{0}")]
    Proxy(String),
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the tracker bridge on loopback")]
    Bridge(#[source] io::Error),
    #[error("the DHT node on {listen}")]
    Dht {
        listen: SocketAddrV4,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{path} is damaged, and is not seeded")]
    Damaged {
        path: PathBuf,
        #[source]
        cause: Damage,
    },
    #[error("{info_hash} is on its way already")]
    Busy { info_hash: InfoHash },
    #[error("the swarm is stopped")]
    Stopped,
}

impl SwarmError {
    /// Whether the host lacks what a swarm needs, however it is set up: what does not need the swarm goes on without.
    pub fn is_of_host(&self) -> bool {
        matches!(self, SwarmError::Engine(EngineError::Lacks { .. }) | SwarmError::Bridge(_))
    }
}

/// What a fetch is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// For a peer that has the torrent's metadata.
    Looking { peers: usize },
    /// What an earlier try has left.
    Checking { done: Bytes, len: Bytes },
    Fetching {
        have: Bytes,
        len: Bytes,
        /// Verified with our own tree, and durable.
        believed: Bytes,
        /// Over the wire in this try.
        fetched: Bytes,
        peers: usize,
    },
}

/// Hears of a fetch's progress, and can end it.
pub trait Watcher: Send + Sync {
    fn step(&self, step: Step);
    fn cancelled(&self) -> bool {
        false
    }
}

impl Watcher for () {
    fn step(&self, _: Step) {}
}

/// An object to fetch, and what vouches for it.
#[derive(Clone, Debug)]
pub struct ObjectItem {
    /// Also the torrent's name.
    pub digest: Digest,
    pub len: Bytes,
    pub info_hash: InfoHash,
    /// From the `.meta`: one hash per 512 KiB.
    pub units: Arc<Vec<[u8; 32]>>,
    /// Gets `<digest>.part` and, while it arrives, `<digest>.units`.
    pub dir: PathBuf,
    /// Known by other means than the DHT: a link's `x.pe`.
    pub peers: Vec<SocketAddr>,
}

/// An object that is whole, believed, synced and read-only, under its first name; it is being seeded.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub path: PathBuf,
    pub info: TorrentInfo,
    /// What came over the wire, protocol not counted.
    pub fetched: Bytes,
}

#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    pub addr: SocketAddr,
    pub found_by: FoundBy,
    pub down_bytes: u64,
    pub up_bytes: u64,
    /// Pieces that it gave us whole and right.
    pub pieces: u32,
    pub connected: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct TorrentPeers {
    pub info_hash: InfoHash,
    pub name: String,
    pub len_bytes: u64,
    pub have_bytes: u64,
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub peers: Vec<Peer>,
}

/// Share it in clones. Its methods block: never call them from a runtime's worker.
#[derive(Clone)]
pub struct Swarm {
    host: Arc<Host>,
    runtime: Handle,
}

impl Swarm {
    /// Starts on `runtime`, which must have several threads.
    pub fn start(config: SwarmConfig, runtime: &Handle) -> Result<Swarm, SwarmError> {
        if let Some(problem) = proxy_problem() {
            return Err(SwarmError::Proxy(problem));
        }
        let host = runtime
            .block_on(runtime.spawn(Host::start(config)))
            .expect("starting does not panic")?;
        Ok(Swarm {
            host: Arc::new(host),
            runtime: runtime.clone(),
        })
    }

    /// `None` when the runtime ended meanwhile.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        match self.runtime.block_on(self.runtime.spawn(work)) {
            Ok(done) => Some(done),
            Err(error) if error.is_cancelled() => None,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Where peers connect to.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.host.listen()
    }

    pub fn dht_listen(&self) -> Option<SocketAddrV4> {
        self.host.dht_listen()
    }

    /// How many other DHT nodes this one knows.
    pub fn dht_nodes(&self) -> usize {
        let host = self.host.clone();
        self.run(async move { host.dht_nodes().await }).unwrap_or(0)
    }

    /// Announces that the bridge has answered, and peers that it has handed over.
    pub fn bridge_answers(&self) -> (u64, u64) {
        self.host.bridge_answers()
    }

    /// Seeds a finished file in place, after the engine has checked it against its piece hashes. What is seeded already is left so.
    ///
    /// Errors: [`SwarmError::Damaged`] where the bytes are not the torrent's; the file is not touched, and not seeded.
    pub fn seed(&self, info: &TorrentInfo, path: &Path) -> Result<(), SwarmError> {
        let (host, info, path) = (self.host.clone(), info.clone(), path.to_path_buf());
        self.run(async move { host.seed(info, path).await })
            .unwrap_or(Err(SwarmError::Stopped))
    }

    /// Stops seeding or fetching it. Its file stays.
    pub fn unseed(&self, info_hash: InfoHash) {
        let host = self.host.clone();
        self.run(async move { host.close(info_hash).await });
    }

    /// Whether it is complete and being seeded.
    pub fn is_seeded(&self, info_hash: InfoHash) -> bool {
        self.host.is_seeded(info_hash)
    }

    /// What has become of a seeded file: damage that was noticed since.
    pub fn damage(&self, info_hash: InfoHash) -> Option<Damage> {
        self.host.damage(info_hash)
    }

    /// Brings a small file here: a manifest or a `.meta`, whose torrent is named by its SHA-256.
    ///
    /// It is not seeded afterwards; the caller stores it and then calls [`Swarm::seed`]. `sha256` is `None` only where the user gave it up.
    pub fn fetch_blob(
        &self,
        info_hash: InfoHash,
        max_len: Bytes,
        sha256: Option<Sha256>,
        peers: Vec<SocketAddr>,
        watcher: Arc<dyn Watcher>,
    ) -> Result<(Vec<u8>, TorrentInfo), FetchError> {
        let host = self.host.clone();
        self.run(async move {
            if !host.claim(info_hash, peers) {
                return Err(FetchError::Busy { info_hash });
            }
            let outcome = host.fetch_blob(info_hash, max_len, sha256, &*watcher).await;
            host.close(info_hash).await;
            outcome
        })
        .unwrap_or(Err(FetchError::Stopped))
    }

    /// Brings an object here. An earlier try's `.part` is gone on with. On success it is seeded already: after linking the file the
    /// caller need only remove its first name, or call [`Swarm::unseed`].
    pub fn fetch_object(&self, item: ObjectItem, watcher: Arc<dyn Watcher>) -> Result<Fetched, FetchError> {
        let host = self.host.clone();
        self.run(async move {
            let info_hash = item.info_hash;
            if !host.claim(info_hash, item.peers.clone()) {
                return Err(FetchError::Busy { info_hash });
            }
            let outcome = host.fetch_object(&item, &*watcher).await;
            if outcome.is_err() {
                host.close(item.info_hash).await;
            }
            outcome
        })
        .unwrap_or(Err(FetchError::Stopped))
    }

    /// Every torrent that is seeded or fetched, with its peers.
    pub fn peers(&self) -> Vec<TorrentPeers> {
        self.host.peers()
    }

    /// Ends everything; what was on its way can be gone on with later.
    pub fn stop(&self) {
        let host = self.host.clone();
        self.run(async move { host.stop().await });
    }
}

/// The well-known nodes of the public DHT.
pub fn public_bootstrap() -> Vec<String> {
    mainline::DEFAULT_BOOTSTRAP_NODES.iter().map(|node| node.to_string()).collect()
}

/// Why the engine could not reach our own tracker bridge: its HTTP client obeys the proxy variables, and has no switch for it.
///
/// `None` where all is well. The program starts itself again with [`exempt_from_proxy`]; a library cannot change its own environment.
pub fn proxy_problem() -> Option<String> {
    problem_in(&|name| std::env::var(name).ok())
}

/// What `NO_PROXY` must say instead of what it says, where there is a [`proxy_problem`].
pub fn exempt_from_proxy() -> Option<String> {
    let get = |name: &str| std::env::var(name).ok();
    problem_in(&get).map(|_| exemption_in(&get))
}

/// The lower-case form wins, as in the client.
fn exempt_in(get: &dyn Fn(&str) -> Option<String>) -> String {
    get("no_proxy").or_else(|| get("NO_PROXY")).unwrap_or_default()
}

fn exemption_in(get: &dyn Fn(&str) -> Option<String>) -> String {
    match exempt_in(get) {
        none if none.trim().is_empty() => "127.0.0.1".into(),
        some => format!("{some},127.0.0.1"),
    }
}

fn problem_in(get: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let set = |name: &&&str| get(name).is_some_and(|value| !value.is_empty());
    let name = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].iter().find(set)?;
    let exempt = exempt_in(get);
    let covers = |entry: &str| matches!(entry.trim(), "*" | "127.0.0.1" | "127.0.0.0/8");
    let problem = format!("{name} is set and NO_PROXY does not name 127.0.0.1: the engine could not reach the tracker bridge");
    (!exempt.split(',').any(covers)).then_some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_without_an_exemption_is_said() {
        for (vars, problem) in [
            (&[][..], false),
            (&[("HTTP_PROXY", "http://p:1")], true),
            (&[("http_proxy", "")], false),
            (&[("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "a.example, 127.0.0.1")], false),
            (&[("ALL_PROXY", "http://p:1"), ("no_proxy", "localhost")], true),
            (&[("all_proxy", "http://p:1"), ("no_proxy", "*")], false),
            (&[("all_proxy", "http://p:1"), ("no_proxy", ""), ("NO_PROXY", "127.0.0.1")], true),
        ] {
            let get = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            assert_eq!(problem_in(&get).is_some(), problem, "{vars:?}");
            let mended = |name: &str| if name == "no_proxy" { Some(exemption_in(&get)) } else { get(name) };
            assert_eq!(problem_in(&mended), None, "{vars:?}");
        }
    }
}
