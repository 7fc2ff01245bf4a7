//! librqbit, behind a door: torrents in, states and counters out.
//!
//! Refuses to know the DHT and our trees. Its types stop here and in `storage`. Invariant: every torrent has our storage, a checked
//! info dict, and the tracker bridge as its only source of peers.

use super::storage::{self, Backing};
use super::torrent::TorrentInfo;
use crate::ids::InfoHash;
use librqbit::api::TorrentIdOrHash;
use librqbit::http_api_types::PeerStatsFilter;
use librqbit::{AddTorrent, AddTorrentOptions, AddTorrentResponse, Api, ConnectionOptions, ListenerMode, ListenerOptions};
use librqbit::{ManagedTorrent, PeerConnectionOptions, Session, SessionOptions, TorrentStatsState};
use librqbit_core::hash_id::Id20;
use std::io::SeekFrom;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncSeek, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Blocking work that the engine does at once. Every open stream holds one of these for its life.
const WORKERS: usize = 64;
/// Streams at most, so that work always goes on; a torrent without one is fetched in order.
const STREAMS: usize = 32;
/// For tasks to notice the end.
const GRACE: Duration = Duration::from_millis(200);

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the torrent engine did not start on {listen}")]
    Start {
        listen: SocketAddr,
        #[source]
        cause: Cause,
    },
    /// What has nothing to do with where it is to listen.
    #[error("the torrent engine needs {what}, which this host has not")]
    Lacks {
        what: &'static str,
        #[source]
        cause: Cause,
    },
    #[error("the torrent engine did not take {info_hash}")]
    Add {
        info_hash: InfoHash,
        #[source]
        cause: Cause,
    },
    #[error("the torrent engine already has {info_hash}")]
    Twice { info_hash: InfoHash },
    #[error("the torrent engine stopped {info_hash}: {why}")]
    Stopped { info_hash: InfoHash, why: String },
}

pub struct Engine {
    session: Arc<Session>,
    api: Api,
    tracker: String,
    streams: Arc<Semaphore>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Checking { done: u64 },
    Paused,
    Live,
    Failed { why: String },
}

#[derive(Clone, Debug)]
pub struct Status {
    pub state: State,
    pub finished: bool,
    pub len: u64,
    pub have_bytes: u64,
    pub uploaded: u64,
    pub fetched: u64,
}

pub struct PeerCounts {
    pub addr: SocketAddr,
    pub live: bool,
    pub down: u64,
    pub up: u64,
    pub pieces: u32,
}

impl Engine {
    pub async fn start(listen: SocketAddr, dir: PathBuf, tracker: String) -> Result<Engine, EngineError> {
        let peers = PeerConnectionOptions {
            connect_timeout: Some(Duration::from_secs(5)),
            // An idle link must outlive the engine's keep-alive of 120 s.
            read_write_timeout: Some(Duration::from_secs(300)),
            ..Default::default()
        };
        let options = SessionOptions {
            dht: None,
            disable_local_service_discovery: true,
            listen: Some(ListenerOptions {
                mode: ListenerMode::TcpOnly,
                listen_addr: listen,
                ipv4_only: listen.is_ipv4(),
                ..Default::default()
            }),
            connect: Some(ConnectionOptions {
                peer_opts: Some(peers),
                ..Default::default()
            }),
            ipv4_only: listen.is_ipv4(),
            runtime_worker_threads: Some(WORKERS),
            peer_limit: Some(64),
            client_name_and_version: Some(format!("blockbt {}", env!("CARGO_PKG_VERSION"))),
            ..Default::default()
        };
        // It binds such a socket for UDP trackers, which it is never given, whatever `ipv4_only` says.
        if let Err(cause) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
            let (what, cause) = ("IPv6 in the kernel", cause.into());
            return Err(EngineError::Lacks { what, cause });
        }
        let session = Session::new_with_opts(dir, options)
            .await
            .map_err(|cause| match lacks_certificates(&cause) {
                true => EngineError::Lacks {
                    what: "root certificates (Debian has them in the package ca-certificates)",
                    cause: cause.into(),
                },
                false => EngineError::Start {
                    listen,
                    cause: cause.into(),
                },
            })?;
        let api = Api::new(session.clone(), None);
        Ok(Engine {
            session,
            api,
            tracker,
            streams: Arc::new(Semaphore::new(STREAMS)),
        })
    }

    pub fn listen(&self) -> Option<SocketAddr> {
        self.session.listen_addr()
    }

    /// Adds a torrent, which the engine then checks against its piece hashes; a paused one stays paused after that.
    pub async fn add(&self, info: &TorrentInfo, backing: Arc<dyn Backing>, paused: bool) -> Result<Torrent, EngineError> {
        let info_hash = info.info_hash();
        let options = AddTorrentOptions {
            paused,
            overwrite: true,
            storage_factory: Some(storage::factory(backing)),
            trackers: Some(vec![self.tracker.clone()]),
            ..Default::default()
        };
        let added = self
            .session
            .add_torrent(AddTorrent::from_bytes(info.torrent_file()), Some(options))
            .await;
        match added {
            Ok(AddTorrentResponse::Added(_, handle)) => Ok(Torrent { handle, info_hash }),
            Ok(_) => Err(EngineError::Twice { info_hash }),
            Err(cause) => Err(EngineError::Add {
                info_hash,
                cause: cause.into(),
            }),
        }
    }

    pub async fn resume(&self, torrent: &Torrent) -> Result<(), EngineError> {
        self.session.unpause(&torrent.handle).await.map_err(|cause| EngineError::Add {
            info_hash: torrent.info_hash,
            cause: cause.into(),
        })
    }

    /// Which pieces the engine has; empty while it checks.
    pub fn haves(&self, torrent: &Torrent) -> Vec<bool> {
        match self.api.api_dump_haves(id(torrent.info_hash)) {
            Ok((bits, count)) => (0..count as usize).map(|piece| bits.get(piece).is_some_and(|bit| *bit)).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Every torrent, also those that are checked or fetched.
    pub fn torrents(&self) -> Vec<Torrent> {
        self.session.with_torrents(|torrents| {
            let ours = torrents.map(|(_, handle)| Torrent {
                handle: handle.clone(),
                info_hash: InfoHash(handle.info_hash().0),
            });
            ours.collect()
        })
    }

    /// Opens the one stream that steers a torrent's order; `None` where too many are open.
    pub async fn park(&self, torrent: &Torrent) -> Option<Parked> {
        let permit = self.streams.clone().try_acquire_owned().ok()?;
        let stream = torrent.handle.clone().stream(0).await.ok()?;
        Some(Parked {
            stream: Box::pin(stream),
            _permit: permit,
        })
    }

    /// Forgets a torrent; its file stays.
    pub async fn remove(&self, info_hash: InfoHash) {
        if let Err(error) = self.session.delete(id(info_hash), false).await {
            tracing::debug!(%info_hash, %error, "no torrent to remove");
        }
    }

    pub async fn stop(&self) {
        // It pauses and cancels all at once, and then sleeps for a whole second.
        let _ = tokio::time::timeout(GRACE, self.session.stop()).await;
    }
}

/// Its HTTP client, which speaks to our own bridge only and without TLS, does not begin without them.
fn lacks_certificates(cause: &(impl AsRef<dyn std::error::Error> + std::fmt::Debug)) -> bool {
    format!("{cause:?}").contains("CA certificates")
}

fn id(info_hash: InfoHash) -> TorrentIdOrHash {
    TorrentIdOrHash::Hash(Id20::new(info_hash.0))
}

#[derive(Clone)]
pub struct Torrent {
    handle: Arc<ManagedTorrent>,
    info_hash: InfoHash,
}

impl Torrent {
    pub fn info_hash(&self) -> InfoHash {
        self.info_hash
    }

    pub fn name(&self) -> String {
        self.handle.name().unwrap_or_default()
    }

    pub fn status(&self) -> Status {
        let stats = self.handle.stats();
        let state = match stats.state {
            TorrentStatsState::Initializing { .. } => State::Checking {
                done: stats.progress_bytes,
            },
            TorrentStatsState::Live => State::Live,
            TorrentStatsState::Paused => State::Paused,
            TorrentStatsState::Error => State::Failed {
                why: stats.error.unwrap_or_default(),
            },
        };
        Status {
            state,
            finished: stats.finished,
            len: stats.total_bytes,
            have_bytes: stats.progress_bytes,
            uploaded: stats.uploaded_bytes,
            fetched: stats.live.map_or(0, |live| live.snapshot.fetched_bytes),
        }
    }

    /// Waits for the first check to end. `watch` sees how many bytes are done, and ends the wait with `false`.
    pub async fn checked(&self, mut watch: impl FnMut(u64) -> bool) -> Result<Status, EngineError> {
        loop {
            let status = self.status();
            match &status.state {
                State::Checking { done } if watch(*done) => tokio::time::sleep(Duration::from_millis(10)).await,
                State::Failed { why } => return Err(self.stopped(why)),
                _ => return Ok(status),
            }
        }
    }

    pub fn stopped(&self, why: &str) -> EngineError {
        EngineError::Stopped {
            info_hash: self.info_hash,
            why: why.into(),
        }
    }

    pub fn peers(&self) -> Vec<PeerCounts> {
        let Some(live) = self.handle.live() else { return Vec::new() };
        // The filter's own type has no public name for "all".
        let filter: PeerStatsFilter = serde_json::from_value(serde_json::json!({ "state": "all" })).unwrap_or_default();
        let peers = live.per_peer_stats_snapshot(filter).peers;
        let counts = peers.into_iter().filter_map(|(addr, stats)| {
            Some(PeerCounts {
                addr: addr.parse().ok()?,
                live: stats.state == "live",
                down: stats.counters.fetched_bytes,
                up: stats.counters.uploaded_bytes,
                pieces: stats.counters.downloaded_and_checked_pieces,
            })
        });
        counts.collect()
    }
}

trait Stream: AsyncRead + AsyncSeek + Send {}
impl<T: AsyncRead + AsyncSeek + Send> Stream for T {}

/// A stream that nobody reads: the engine asks for the pieces behind its position first.
pub struct Parked {
    stream: Pin<Box<dyn Stream>>,
    _permit: OwnedSemaphorePermit,
}

impl Parked {
    pub async fn seek(&mut self, at: u64) {
        if let Err(error) = self.stream.seek(SeekFrom::Start(at)).await {
            tracing::debug!(%error, at, "the parked stream did not move");
        }
    }
}
