//! `pull`: an image from the swarm, by its link.
//!
//! Refuses to believe anything that the link's SHA-256 does not vouch for. Invariant: an image enters the store when all its deltas are there,
//! and a delta when every byte of it hashes to its name.

use super::engine::Engine;
use super::make::ms;
use super::seeding::torrent_of;
use super::{ErrorKind, Progress, Pull, PullReply, ServiceError};
use crate::blockio::FileIo;
use crate::chain::{ChainMap, Layer};
use crate::format::check::{self, Kind};
use crate::format::manifest::{Manifest, ManifestDelta};
use crate::format::meta::Meta;
use crate::format::sealed::Sealed;
use crate::ids::{Digest, Sha256};
use crate::store::{Description, HistoryEntry, ImageRecord, Intent, StoreError, Txn};
use crate::swarm::link::Link;
use crate::swarm::{ObjectItem, Step, Swarm, Watcher};
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MAX_MANIFEST: Bytes = Bytes(1 << 20);

/// A delta that is to be in the chain, and the bytes of its `.meta`.
struct Wanted {
    delta: ManifestDelta,
    meta: Meta,
    bytes: Vec<u8>,
    is_here: bool,
}

impl Engine {
    pub(super) fn pull(&self, ask: Pull, progress: &dyn Progress) -> Result<PullReply, ServiceError> {
        let start = Instant::now();
        let link = Link::parse(&ask.link)?;
        let session = self.session(&ask.bootstrap)?;
        let swarm = session.swarm();
        let patience = ask.timeout_ms.map(Duration::from_millis);
        let watch = Watch::new(patience);
        let pulled = watch.follow(progress, |watcher| self.pull_link(&ask, &link, swarm, watcher));
        session.end();
        let (record, sums) = pulled?;
        Ok(PullReply {
            name: record.name,
            deltas: sums.deltas,
            skipped_deltas: sums.skipped,
            total_bytes: sums.total,
            fetched_bytes: sums.fetched,
            took_ms: ms(start.elapsed()),
        })
    }

    fn pull_link(&self, ask: &Pull, link: &Link, swarm: &Swarm, watcher: &Arc<Watch>) -> Result<(ImageRecord, Sums), ServiceError> {
        watcher.say("manifest");
        let (bytes, _) = swarm.fetch_blob(link.info_hash, MAX_MANIFEST, link.sha256, link.peers.clone(), watcher.clone())?;
        let manifest = Manifest::parse(&bytes)?;
        let name = ask.name.clone().unwrap_or_else(|| manifest.name.clone());
        let chain: Vec<Digest> = manifest.deltas.iter().map(|delta| delta.digest).collect();
        let mut sums = Sums {
            deltas: chain.len() as u64,
            total: Bytes(manifest.deltas.iter().map(|delta| delta.len.0).fold(0, u64::saturating_add)),
            ..Sums::default()
        };
        match self.store.image(&name) {
            Ok(there) if there.chain == chain && there.head.is_none() => {
                sums.skipped = sums.deltas;
                return Ok((there, sums));
            }
            Ok(_) => {
                let error = ServiceError::from(StoreError::Exists { name });
                return Err(ServiceError {
                    message: format!(
                        "{}, and is not the one of the link: pull it under another name (--name)",
                        error.message
                    ),
                    ..error
                });
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        let txn = self.store.begin(Intent::Pull { name: name.clone() })?;
        let _lock = txn.new_image()?;
        let wanted = self.metas(&txn, &manifest, swarm, &link.peers, watcher)?;
        check_chain(&wanted, manifest.virtual_size)?;
        for want in &wanted {
            if want.is_here {
                sums.skipped += 1;
            } else {
                sums.fetched.0 += self.pull_delta(&txn, want, swarm, &link.peers, watcher)?.0;
            }
        }
        let sha256 = txn.commit_manifest(&bytes)?;
        let mut record = ImageRecord::new(name, manifest.virtual_size, manifest.file_system.name());
        record.chain = chain;
        record.published = Some(self.note_manifest(sha256)?);
        record.history.push(HistoryEntry::now("pull", &link.info_hash.to_string()));
        self.enter(&record, txn)?;
        self.seed_image(&record)?;
        Ok((record, sums))
    }

    /// The `.meta` of each delta: from the store, or from the swarm.
    fn metas(
        &self,
        txn: &Txn,
        manifest: &Manifest,
        swarm: &Swarm,
        peers: &[SocketAddr],
        watcher: &Arc<Watch>,
    ) -> Result<Vec<Wanted>, ServiceError> {
        let mut wanted = Vec::with_capacity(manifest.deltas.len());
        for delta in &manifest.deltas {
            let is_here = match txn.hold(&delta.digest) {
                Ok(()) => true,
                Err(StoreError::NoObject { .. }) => false,
                Err(other) => return Err(other.into()),
            };
            watcher.say(&format!("meta of {}", short(&delta.digest)));
            let bytes = match is_here {
                true => self.store.meta(&delta.digest)?,
                false => {
                    swarm
                        .fetch_blob(
                            delta.meta_info_hash,
                            delta.meta_len,
                            Some(delta.meta_sha256),
                            peers.to_vec(),
                            watcher.clone(),
                        )?
                        .0
                }
            };
            let meta = Meta::parse(&bytes)?;
            if meta.digest() != delta.digest || meta.file_len != delta.len {
                let message = format!(
                    "the .meta of {} is of {}, a file of {} bytes",
                    delta.digest,
                    meta.digest(),
                    meta.file_len.0
                );
                return Err(ServiceError::new(ErrorKind::Damaged, message));
            }
            wanted.push(Wanted {
                delta: delta.clone(),
                meta,
                bytes,
                is_here,
            });
        }
        Ok(wanted)
    }

    /// Brings one delta into the store; tells what came over the wire.
    fn pull_delta(
        &self,
        txn: &Txn,
        want: &Wanted,
        swarm: &Swarm,
        peers: &[SocketAddr],
        watcher: &Arc<Watch>,
    ) -> Result<Bytes, ServiceError> {
        let digest = want.delta.digest;
        watcher.say(&short(&digest));
        let item = ObjectItem {
            digest,
            len: want.delta.len,
            info_hash: want.delta.info_hash,
            units: Arc::new(want.meta.units.clone()),
            dir: self.store.incoming_dir(),
            peers: peers.to_vec(),
        };
        let fetched = swarm.fetch_object(item, watcher.clone())?;
        if let Err(error) = same_as_meta(&fetched.path, &want.meta) {
            swarm.unseed(want.delta.info_hash);
            remove(&fetched.path)?;
            return Err(error.of(format!("delta {digest} was made wrong by who published it; nothing of it was kept")));
        }
        let description = describe(want);
        txn.commit_object(&fetched.path, &digest, &want.bytes, &description)?;
        self.index(|catalog| catalog.put_object(&description))?;
        let paths = self.store.object_paths(&digest);
        self.store.write_torrent(&paths.torrent, &fetched.info.info_dict())?;
        torrent_of(
            &self.store,
            &paths.meta_torrent,
            &want.delta.meta_sha256.to_string(),
            &paths.meta,
            &|_| (),
        )?;
        remove(&fetched.path)?;
        Ok(fetched.fetched)
    }
}

#[derive(Default)]
struct Sums {
    deltas: u64,
    skipped: u64,
    total: Bytes,
    fetched: Bytes,
}

/// Parents and sizes fit before a byte of data is asked for.
fn check_chain(wanted: &[Wanted], virtual_size: Bytes) -> Result<(), ServiceError> {
    let layer = |want: &Wanted| Layer {
        extents: want.meta.extents.clone(),
        chunk_size: want.meta.facts.chunk_size,
        virtual_size: want.meta.facts.virtual_size,
        digest: want.delta.digest,
        parent: want.meta.facts.parent,
        stands_for: want.meta.facts.stands_for,
    };
    let layers: Vec<Layer> = wanted.iter().map(layer).collect();
    ChainMap::build(&layers, virtual_size)?;
    Ok(())
}

/// The bytes are the digest's; that its trailer, its areas and its `.meta` tell of one and the same disk is checked here.
fn same_as_meta(path: &Path, meta: &Meta) -> Result<(), ServiceError> {
    let file = FileIo(File::open(path).map_err(|error| super::mount::failed("open", path, &error))?);
    let damaged = |text: String| ServiceError::new(ErrorKind::Damaged, text);
    let table = Sealed::open(&file).map_err(|error| ServiceError::from_error(ErrorKind::Damaged, &error))?;
    if table.facts != meta.facts || table.extents != meta.extents || table.data_len != meta.data_len {
        return Err(damaged("its trailer and its .meta differ".into()));
    }
    let mut first = None;
    check::check(&file, Kind::Sealed, &mut |finding| {
        first.get_or_insert(finding);
    });
    first.map_or(Ok(()), |finding| Err(damaged(finding.to_string())))
}

fn describe(want: &Wanted) -> Description {
    Description {
        version: Description::VERSION,
        digest: want.delta.digest,
        len_bytes: want.delta.len,
        virtual_size_bytes: want.meta.facts.virtual_size,
        chunk_size_bytes: want.meta.facts.chunk_size.bytes(),
        parent: want.meta.facts.parent,
        stands_for: want.meta.facts.stands_for,
        file_system: want.meta.facts.file_system.name().into(),
        labels: BTreeMap::new(),
        info_hash: Some(want.delta.info_hash),
        meta_sha256: Some(Sha256::of(&want.bytes)),
        meta_len_bytes: Bytes(want.bytes.len() as u64),
        meta_info_hash: Some(want.delta.meta_info_hash),
        made_by: "pull".into(),
        created_unix_seconds: HistoryEntry::now("", "").time_unix_seconds,
    }
}

/// The object has its own name now.
fn remove(part: &Path) -> Result<(), ServiceError> {
    std::fs::remove_file(part).map_err(|error| super::mount::failed("remove", part, &error))
}

fn short(digest: &Digest) -> String {
    digest.to_string()[..12].into()
}

/// Follows a fetch on the swarm's threads; the verb's own thread tells its asker.
struct Watch {
    seen: Mutex<Seen>,
    patience: Option<Duration>,
}

struct Seen {
    what: String,
    step: Option<Step>,
    /// When something last came nearer.
    moved: Instant,
    is_cancelled: bool,
}

impl Watch {
    fn new(patience: Option<Duration>) -> Arc<Watch> {
        let seen = Seen {
            what: String::new(),
            step: None,
            moved: Instant::now(),
            is_cancelled: false,
        };
        Arc::new(Watch {
            seen: Mutex::new(seen),
            patience,
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Seen) -> T) -> T {
        work(&mut self.seen.lock().expect("no thread panics while it holds this lock"))
    }

    fn say(&self, what: &str) {
        self.with(|seen| {
            seen.what = what.into();
            seen.step = None;
            seen.moved = Instant::now();
        });
    }

    /// Does the work beside a thread that tells `progress` what is seen.
    fn follow<T>(self: &Arc<Watch>, progress: &dyn Progress, work: impl FnOnce(&Arc<Watch>) -> T) -> T {
        let done = Mutex::new(false);
        let changed = std::sync::Condvar::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut ended = done.lock().expect("no thread panics while it holds this lock");
                while !*ended {
                    self.tell(progress);
                    let waited = changed.wait_timeout(ended, Duration::from_millis(100));
                    ended = waited.expect("no thread panics while it holds this lock").0;
                }
            });
            let result = work(self);
            *done.lock().expect("no thread panics while it holds this lock") = true;
            changed.notify_all();
            result
        })
    }

    fn tell(&self, progress: &dyn Progress) {
        let cancelled = progress.cancelled();
        let (what, step) = self.with(|seen| {
            seen.is_cancelled |= cancelled;
            (seen.what.clone(), seen.step)
        });
        match step {
            None => {}
            Some(Step::Looking { peers: 0 }) => progress.update(&format!("{what}: looking for peers"), 0, None),
            Some(Step::Looking { peers }) => progress.update(&format!("{what}: asking {peers} peers"), 0, None),
            Some(Step::Checking { done, len }) => progress.update(&format!("check {what}"), done.0, Some(len.0)),
            Some(Step::Fetching { have, len, peers, .. }) => progress.update(&format!("fetch {what} ({peers} peers)"), have.0, Some(len.0)),
        }
    }
}

impl Watcher for Watch {
    fn step(&self, step: Step) {
        let position = |step: Option<Step>| match step {
            Some(Step::Fetching { have, .. }) => have.0,
            Some(Step::Checking { done, .. }) => done.0,
            _ => 0,
        };
        self.with(|seen| {
            if position(Some(step)) != position(seen.step) {
                seen.moved = Instant::now();
            }
            seen.step = Some(step);
        });
    }

    fn cancelled(&self) -> bool {
        self.with(|seen| seen.is_cancelled || self.patience.is_some_and(|patience| seen.moved.elapsed() > patience))
    }
}
