//! The swarm of this store: started when it is needed, told what to seed, asked for its peers.
//!
//! Refuses to know how bytes travel. Invariant: what is seeded follows from the published images, so that a restart seeds the same.

use super::engine::Engine;
use super::{Bootstrap, ErrorKind, Peer, PeersObject, PeersReply, Role, ServiceError, Settings};
use crate::blockio::FileIo;
use crate::ids::{Digest, InfoHash, Sha256};
use crate::store::{ImageRecord, Store, StoreError};
use crate::swarm::torrent::{Limits, TorrentInfo, parse_info};
use crate::swarm::{Swarm, SwarmConfig, TorrentPeers, public_bootstrap};
use crate::units::Bytes;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tokio::runtime::{Builder, Runtime};

/// A swarm and the threads it runs on.
pub(super) struct Running {
    pub swarm: Swarm,
    runtime: Runtime,
}

/// One file that is seeded.
struct Item {
    path: PathBuf,
    torrent: PathBuf,
    name: String,
    info_hash: InfoHash,
}

impl Running {
    /// A command's own.
    pub fn start(store: &Store, settings: &Settings, more: &[String]) -> Result<Running, ServiceError> {
        let (runtime, config) = prepared(store, settings, Role::Command, more)?;
        let swarm = Swarm::start(config, runtime.handle())?;
        Ok(Running { swarm, runtime })
    }

    /// A daemon's. The inner error is why there is none on this host, which leaves all else to a daemon.
    pub fn of_daemon(store: &Store, settings: &Settings) -> Result<Result<Running, ServiceError>, ServiceError> {
        let (runtime, config) = prepared(store, settings, Role::Daemon, &[])?;
        match Swarm::start(config, runtime.handle()) {
            Ok(swarm) => Ok(Ok(Running { swarm, runtime })),
            Err(error) if error.is_of_host() => {
                runtime.shutdown_background();
                Ok(Err(error.into()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends with the process that it served: there is nothing to say good-bye for.
    pub fn leave(self) {
        self.runtime.shutdown_background();
    }

    pub fn stop(self) {
        self.swarm.stop();
        self.runtime.shutdown_background();
    }
}

fn prepared(store: &Store, settings: &Settings, role: Role, more: &[String]) -> Result<(Runtime, SwarmConfig), ServiceError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("swarm")
        .build();
    let runtime = runtime.map_err(|error| ServiceError::new(ErrorKind::Failed, "starting the swarm").because(Some(&error)))?;
    let mut bootstrap = match &settings.bootstrap {
        Bootstrap::Public => public_bootstrap(),
        Bootstrap::Nodes(nodes) => nodes.clone(),
    };
    bootstrap.extend_from_slice(more);
    // A command lives beside a daemon of another store, perhaps: it takes free ports.
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let (listen, dht) = match role {
        Role::Daemon => (settings.listen, settings.dht_listen),
        Role::Command => (any, settings.dht_listen.map(|_| any)),
    };
    let dht_listen = match dht {
        None => None,
        Some(SocketAddr::V4(address)) => Some(address),
        Some(SocketAddr::V6(address)) => {
            return Err(ServiceError::new(
                ErrorKind::Usage,
                format!("DHT address {address}: want IPv4, the DHT speaks no other"),
            ));
        }
    };
    let config = SwarmConfig {
        listen,
        announce_port: 0,
        dht_listen,
        bootstrap,
        work_dir: store.incoming_dir().join("small"),
        patience: None,
    };
    Ok((runtime, config))
}

impl Engine {
    /// Seeds all that is published. One that cannot be seeded is said, and stops no other.
    pub(super) fn seed_all(&self) -> Result<(), ServiceError> {
        for record in self.store.images()?.images {
            if let Err(error) = self.seed_image(&record) {
                tracing::error!(image = %record.name, cause = %error, "not all of it is seeded");
            }
        }
        Ok(())
    }

    /// Seeds a published image, if a swarm runs; tells whether one does. Errors: the first of its files that cannot be seeded; the others are.
    pub(super) fn seed_image(&self, record: &ImageRecord) -> Result<bool, ServiceError> {
        let Some(swarm) = self.swarm() else { return Ok(false) };
        let items = self.items(record)?;
        if items.is_empty() {
            return Ok(true);
        }
        let mut first = None;
        for item in &items {
            if let Err(error) = self.seed_item(&swarm, item) {
                tracing::error!(image = %record.name, object = %item.path.display(), cause = %error, "cannot be seeded");
                first.get_or_insert(error);
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        tracing::info!(image = %record.name, "seeding");
        Ok(true)
    }

    fn seed_item(&self, swarm: &Swarm, item: &Item) -> Result<(), ServiceError> {
        let wanted = Some(item.info_hash);
        let (info, found) = torrent_of(&self.store, &item.torrent, &item.name, &item.path, wanted, &|_| ())?;
        if found != item.info_hash {
            let message = format!("{} has info-hash {found}, want {}", item.path.display(), item.info_hash);
            return Err(ServiceError::new(ErrorKind::Damaged, message));
        }
        Ok(swarm.seed(&info, &item.path)?)
    }

    fn items(&self, record: &ImageRecord) -> Result<Vec<Item>, ServiceError> {
        let Some(published) = record.published else { return Ok(Vec::new()) };
        let manifest = self.store.manifest_path(&published.manifest);
        let mut items = vec![Item {
            path: manifest,
            torrent: self.store.manifest_torrent_path(&published.manifest),
            name: published.manifest.to_string(),
            info_hash: published.info_hash,
        }];
        let manifest = crate::format::manifest::Manifest::parse(&self.store.manifest(&published.manifest)?)?;
        for delta in &manifest.deltas {
            let paths = self.store.object_paths(&delta.digest);
            items.push(Item {
                path: paths.meta,
                torrent: paths.meta_torrent,
                name: delta.meta_sha256.to_string(),
                info_hash: delta.meta_info_hash,
            });
            items.push(Item {
                path: paths.delta,
                torrent: paths.torrent,
                name: delta.digest.to_string(),
                info_hash: delta.info_hash,
            });
        }
        Ok(items)
    }

    /// What was collected is not seeded any more, nor what belonged to it.
    pub(super) fn seed_only_published(&self) -> Result<(), ServiceError> {
        let Some(swarm) = self.swarm() else { return Ok(()) };
        let mut wanted = BTreeSet::new();
        for record in self.store.images()?.images {
            wanted.extend(self.items(&record)?.into_iter().map(|item| item.name));
        }
        for torrent in swarm.peers() {
            // What is on its way belongs to a pull.
            if !wanted.contains(&torrent.name) && swarm.is_seeded(torrent.info_hash) {
                swarm.unseed(torrent.info_hash);
            }
        }
        Ok(())
    }

    pub(super) fn peers(&self) -> Result<PeersReply, ServiceError> {
        self.why_no_swarm().map_or(Ok(()), Err)?;
        let torrents = self.swarm().map(|swarm| swarm.peers()).unwrap_or_default();
        Ok(PeersReply {
            objects: torrents.into_iter().map(|torrent| self.peers_object(torrent)).collect(),
        })
    }

    fn peers_object(&self, torrent: TorrentPeers) -> PeersObject {
        let kind = match (torrent.name.parse::<Digest>(), torrent.name.parse::<Sha256>()) {
            (_, Ok(sha256)) if self.store.manifest_path(&sha256).exists() => "manifest",
            (Ok(digest), _) if self.store.has_object(&digest) || self.store.incoming_dir().join(format!("{digest}.part")).exists() => {
                "delta"
            }
            _ => "meta",
        };
        let peers = torrent.peers.into_iter().map(|peer| Peer {
            address: peer.addr,
            found_by: peer.found_by.to_string(),
            received_bytes: Bytes(peer.down_bytes),
            sent_bytes: Bytes(peer.up_bytes),
            pieces: u64::from(peer.pieces),
        });
        PeersObject {
            kind: kind.into(),
            id: torrent.name,
            info_hash: torrent.info_hash,
            size_bytes: Bytes(torrent.len_bytes),
            have_bytes: Bytes(torrent.have_bytes),
            sent_bytes: Bytes(torrent.uploaded_bytes),
            peers: peers.collect(),
        }
    }
}

/// The torrent of a file: the one that was noted, if it is the `wanted` one, or one made now and noted.
pub(super) fn torrent_of(
    store: &Store,
    noted: &Path,
    name: &str,
    file: &Path,
    wanted: Option<InfoHash>,
    progress: &(dyn Fn(Bytes) + Sync),
) -> Result<(TorrentInfo, InfoHash), ServiceError> {
    let open = std::fs::File::open(file).map_err(|error| super::mount::failed("open", file, &error))?;
    let limits = Limits {
        max_len: len_of(file),
        name: Some(name),
    };
    let known = match store.read_torrent(noted) {
        Ok(bytes) => parse_info(&bytes, wanted, limits).ok().filter(|info| info.len == limits.max_len),
        Err(StoreError::Io { .. }) => None,
        Err(other) => return Err(other.into()),
    };
    let info = match known {
        Some(info) => info,
        None => {
            let info = TorrentInfo::build(name, &FileIo(open), progress)?;
            store.write_torrent(noted, &info.info_dict())?;
            info
        }
    };
    let info_hash = info.info_hash();
    Ok((info, info_hash))
}

fn len_of(path: &Path) -> Bytes {
    Bytes(path.metadata().map_or(0, |meta| meta.len()))
}
