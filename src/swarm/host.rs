//! What the handle stands on: the torrents of this host, each claimed by one caller at a time.
//!
//! Refuses to know who asks. Invariant: every torrent in the engine is claimed, open in the book, and has its announcer.

use super::announce;
use super::bridge::Bridge;
use super::dht::DhtNode;
use super::engine::{Engine, State, Torrent};
use super::fetch::{self, FetchError, Tools, Wanted, blocking};
use super::node::{Fetched, ObjectItem, Peer, SwarmConfig, SwarmError, TorrentPeers, Watcher};
use super::peers::{FoundBy, PeerBook};
use super::storage::{Damage, SeedFile};
use super::torrent::{Limits, TorrentInfo};
use crate::ids::{InfoHash, Sha256};
use crate::units::Bytes;
use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

pub struct Host {
    engine: Engine,
    dht: Option<Arc<DhtNode>>,
    bridge: Bridge,
    book: Arc<PeerBook>,
    announce_port: u16,
    work_dir: PathBuf,
    patience: Option<Duration>,
    torrents: Mutex<HashMap<InfoHash, Claim>>,
}

/// What an info-hash was claimed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Seed,
    Fetch,
}

struct Claim {
    purpose: Purpose,
    announcer: JoinHandle<()>,
    /// `None` while it is being added or fetched.
    ready: Option<Ready>,
}

#[derive(Clone)]
struct Ready {
    torrent: Torrent,
    seed: Option<Arc<SeedFile>>,
}

impl Host {
    pub async fn start(config: SwarmConfig) -> Result<Host, SwarmError> {
        let (listen, dht_listen, work_dir) = (config.listen, config.dht_listen, config.work_dir);
        std::fs::create_dir_all(&work_dir).map_err(|cause| SwarmError::Io {
            path: work_dir.clone(),
            cause,
        })?;
        let book = Arc::new(PeerBook::default());
        let bridge = Bridge::start(book.clone()).await.map_err(SwarmError::Bridge)?;
        let engine = Engine::start(listen, work_dir.clone(), bridge.url().into()).await?;
        let announce_port = match config.announce_port {
            0 => engine.listen().map_or(listen.port(), |listen| listen.port()),
            said => said,
        };
        let dht = match dht_listen {
            Some(listen) => {
                let node = DhtNode::start(listen, config.bootstrap).await;
                Some(Arc::new(node.map_err(|cause| SwarmError::Dht { listen, cause })?))
            }
            None => None,
        };
        Ok(Host {
            engine,
            dht,
            bridge,
            book,
            announce_port,
            work_dir,
            patience: config.patience,
            torrents: Mutex::default(),
        })
    }

    pub fn listen(&self) -> Option<SocketAddr> {
        self.engine.listen()
    }

    pub fn dht_listen(&self) -> Option<SocketAddrV4> {
        Some(self.dht.as_ref()?.listen())
    }

    pub async fn dht_nodes(&self) -> usize {
        match &self.dht {
            Some(dht) => dht.nodes().await,
            None => 0,
        }
    }

    pub fn bridge_answers(&self) -> (u64, u64) {
        self.bridge.answers()
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<InfoHash, Claim>) -> T) -> T {
        work(&mut self.torrents.lock().expect("no thread panics while it holds this lock"))
    }

    /// Takes an info-hash for one caller, and begins to look for its peers. `false` where another has it.
    pub fn claim(&self, info_hash: InfoHash, peers: Vec<SocketAddr>) -> bool {
        self.claim_for(Purpose::Fetch, info_hash, peers)
    }

    fn claim_for(&self, purpose: Purpose, info_hash: InfoHash, peers: Vec<SocketAddr>) -> bool {
        self.with(|torrents| {
            if torrents.contains_key(&info_hash) {
                return false;
            }
            self.book.open(info_hash);
            self.book.add(info_hash, FoundBy::Static, peers);
            let (dht, book, port) = (self.dht.clone(), self.book.clone(), self.announce_port);
            let announcer = tokio::spawn(async move {
                if let Some(dht) = dht {
                    announce::run(dht, book, info_hash, port).await;
                }
            });
            torrents.insert(
                info_hash,
                Claim {
                    purpose,
                    announcer,
                    ready: None,
                },
            );
            true
        })
    }

    fn set_ready(&self, info_hash: InfoHash, ready: Ready) {
        self.with(|torrents| {
            if let Some(claim) = torrents.get_mut(&info_hash) {
                claim.ready = Some(ready);
            }
        });
    }

    fn ready(&self, info_hash: InfoHash) -> Option<Ready> {
        self.with(|torrents| torrents.get(&info_hash)?.ready.clone())
    }

    pub fn is_seeded(&self, info_hash: InfoHash) -> bool {
        self.ready(info_hash).is_some()
    }

    /// Gives an info-hash up, and takes its torrent out of the engine.
    pub async fn close(&self, info_hash: InfoHash) {
        self.engine.remove(info_hash).await;
        self.book.close(info_hash);
        if let Some(claim) = self.with(|torrents| torrents.remove(&info_hash)) {
            claim.announcer.abort();
        }
    }

    pub fn damage(&self, info_hash: InfoHash) -> Option<Damage> {
        let ready = self.ready(info_hash)?;
        let damage = ready.seed.as_ref()?.damage();
        damage.or_else(|| match ready.torrent.status().state {
            State::Failed { why } => Some(Damage::Read { at: 0, why }),
            _ => None,
        })
    }

    /// Where another caller is about to seed the same, waits for what becomes of that. Errors: [`SwarmError::Busy`] while it is fetched.
    pub async fn seed(&self, info: TorrentInfo, path: PathBuf) -> Result<(), SwarmError> {
        let info_hash = info.info_hash();
        while !self.claim_for(Purpose::Seed, info_hash, Vec::new()) {
            match self.with(|torrents| torrents.get(&info_hash).map(|claim| (claim.purpose, claim.ready.is_some()))) {
                Some((_, true)) => return Ok(()),
                Some((Purpose::Fetch, false)) => return Err(SwarmError::Busy { info_hash }),
                Some((Purpose::Seed, false)) | None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        self.book.set_complete(info_hash, true);
        let outcome = self.try_seed(&info, &path).await;
        match outcome {
            Ok(ready) => {
                self.set_ready(info_hash, ready);
                Ok(())
            }
            Err(error) => {
                self.close(info_hash).await;
                Err(error)
            }
        }
    }

    async fn try_seed(&self, info: &TorrentInfo, path: &std::path::Path) -> Result<Ready, SwarmError> {
        let damaged = |cause| SwarmError::Damaged { path: path.into(), cause };
        let file = SeedFile::open(path, info.len).map_err(|cause| SwarmError::Io { path: path.into(), cause })?;
        let file = Arc::new(file);
        file.damage().map_or(Ok(()), |damage| Err(damaged(damage)))?;
        // It stays paused through its check: an engine that found a bad piece would at once ask others for it.
        let torrent = self.engine.add(info, file.clone(), true).await?;
        let status = torrent.checked(|_| true).await?;
        if !status.finished {
            file.mark(Damage::Pieces {
                bad_bytes: info.len.0.saturating_sub(status.have_bytes),
            });
        }
        file.damage().map_or(Ok(()), |damage| Err(damaged(damage)))?;
        self.engine.resume(&torrent).await?;
        Ok(Ready { torrent, seed: Some(file) })
    }

    fn tools<'a>(&'a self, watcher: &'a dyn Watcher) -> Tools<'a> {
        Tools {
            engine: &self.engine,
            book: &self.book,
            watcher,
            patience: self.patience,
        }
    }

    /// The caller has claimed `item.info_hash`.
    pub async fn fetch_object(&self, item: &ObjectItem, watcher: &dyn Watcher) -> Result<Fetched, FetchError> {
        fetch::check_units(item.digest, item.len, &item.units)?;
        let name = item.digest.to_string();
        let limits = Limits {
            max_len: item.len,
            name: Some(&name),
        };
        let tools = self.tools(watcher);
        let info = tools.info(item.info_hash, limits).await?;
        fetch::check_len(&info, item.len)?;
        let wanted = Wanted {
            digest: item.digest,
            units: item.units.clone(),
            bitmap: item.dir.join(format!("{name}.units")),
        };
        let path = item.dir.join(format!("{name}.part"));
        let arrived = tools.pieces(&info, &path, Some(&wanted)).await?;
        fetch::forget(&wanted.bitmap)?;
        self.set_ready(
            item.info_hash,
            Ready {
                torrent: arrived.torrent,
                seed: None,
            },
        );
        Ok(Fetched {
            path,
            info,
            fetched: Bytes(arrived.fetched),
        })
    }

    /// The caller has claimed `info_hash`, and gives it up afterwards.
    pub async fn fetch_blob(
        &self,
        info_hash: InfoHash,
        max_len: Bytes,
        sha256: Option<Sha256>,
        watcher: &dyn Watcher,
    ) -> Result<(Vec<u8>, TorrentInfo), FetchError> {
        let name = sha256.map(|sha256| sha256.to_string());
        let limits = Limits {
            max_len,
            name: name.as_deref(),
        };
        let tools = self.tools(watcher);
        let info = tools.info(info_hash, limits).await?;
        let path = self.work_dir.join(format!("{info_hash}.blob"));
        let outcome = tools.pieces(&info, &path, None).await;
        self.engine.remove(info_hash).await;
        let read = path.clone();
        let bytes = blocking(move || std::fs::read(read)).await;
        fetch::forget(&path)?;
        outcome?;
        let bytes = bytes.map_err(|cause| FetchError::Io { path, cause })?;
        let found = Sha256::of(&bytes);
        match sha256 {
            Some(want) if want != found => Err(FetchError::OtherBlob { info_hash, found, want }),
            _ => Ok((bytes, info)),
        }
    }

    pub fn peers(&self) -> Vec<TorrentPeers> {
        let mut all: Vec<TorrentPeers> = self.engine.torrents().iter().map(|torrent| self.peers_of(torrent)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn peers_of(&self, torrent: &Torrent) -> TorrentPeers {
        let info_hash = torrent.info_hash();
        let counts = torrent.peers().into_iter().filter(|peer| peer.live || peer.down > 0 || peer.up > 0);
        let mut peers: Vec<Peer> = counts
            .map(|peer| Peer {
                addr: peer.addr,
                found_by: self.book.found_by(info_hash, peer.addr),
                down_bytes: peer.down,
                up_bytes: peer.up,
                pieces: peer.pieces,
                connected: peer.live,
            })
            .collect();
        peers.sort_by_key(|peer| peer.addr);
        let status = torrent.status();
        TorrentPeers {
            info_hash,
            name: torrent.name(),
            len_bytes: status.len,
            have_bytes: status.have_bytes,
            uploaded_bytes: status.uploaded,
            downloaded_bytes: status.fetched,
            peers,
        }
    }

    pub async fn stop(&self) {
        self.with(|torrents| torrents.drain().for_each(|(_, claim)| claim.announcer.abort()));
        self.bridge.stop();
        self.engine.stop().await;
        if let Some(dht) = &self.dht {
            dht.stop().await;
        }
    }
}
