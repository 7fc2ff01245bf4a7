//! `pull`: an image from the swarm, by its link.
//!
//! Refuses to believe anything that the link's SHA-256 does not vouch for, or its info-hash, where the user says that it is enough. Invariant: an image enters the store when all its deltas are there,
//! and a delta when every byte of it hashes to its name.

use super::engine::Engine;
use super::make::ms;
use super::watch::Watch;
use super::{ErrorKind, Progress, Pull, PullReply, ServiceError};
use crate::blockio::FileIo;
use crate::chain::{ChainMap, Delta};
use crate::format::check::{self, Kind};
use crate::format::manifest::{Manifest, ManifestDelta};
use crate::format::meta::Meta;
use crate::format::sealed::Sealed;
use crate::ids::{Digest, ImageName, InfoHash, Sha256};
use crate::store::{Description, HistoryEntry, ImageRecord, Intent, StoreError, Txn};
use crate::swarm::link::Link;
use crate::swarm::{ObjectItem, Swarm};
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
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
        let link = match ask.insecure_sha1 {
            true => Link::parse_insecure(&ask.link)?,
            false => Link::parse(&ask.link)?,
        };
        let (record, sums) = match self.pulled_before(&ask, &link)? {
            Some(there) => there,
            None => {
                let session = self.session(&ask.bootstrap)?;
                let watch = Watch::new(ask.timeout_ms.map(Duration::from_millis));
                let pulled = watch.follow(progress, |watch| self.pull_link(&ask, &link, session.swarm(), watch));
                session.end();
                pulled?
            }
        };
        Ok(PullReply {
            name: record.name,
            deltas: sums.deltas,
            skipped_deltas: sums.skipped,
            total_bytes: sums.total,
            fetched_bytes: sums.fetched,
            took_ms: ms(start.elapsed()),
        })
    }

    /// What a link stands for may be here already: then nobody else is needed.
    fn pulled_before(&self, ask: &Pull, link: &Link) -> Result<Option<(ImageRecord, Sums)>, ServiceError> {
        match self.known_manifest(link)? {
            Some(bytes) => self.already(ask, &Manifest::parse(&bytes)?),
            None => Ok(None),
        }
    }

    /// The link's manifest, if the store has it.
    fn known_manifest(&self, link: &Link) -> Result<Option<Vec<u8>>, ServiceError> {
        let Some(sha256) = link.sha256 else { return Ok(None) };
        match self.store.manifest(&sha256) {
            Ok(bytes) => Ok((Sha256::of(&bytes) == sha256).then_some(bytes)),
            Err(StoreError::Io { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// The image, if it is here. Errors: another one has its name.
    fn already(&self, ask: &Pull, manifest: &Manifest) -> Result<Option<(ImageRecord, Sums)>, ServiceError> {
        let name = name_of(ask, manifest);
        match self.store.image(&name) {
            Ok(there) if there.chain.iter().eq(manifest.deltas.iter().map(|delta| &delta.digest)) => {
                let mut sums = Sums::of(manifest);
                sums.skipped = sums.deltas;
                Ok(Some((there, sums)))
            }
            Ok(_) => {
                let error = ServiceError::from(StoreError::Exists { name });
                let message = format!(
                    "{}, and is not the one of the link: pull it under another name (--name)",
                    error.message
                );
                Err(ServiceError { message, ..error })
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    fn pull_link(&self, ask: &Pull, link: &Link, swarm: &Swarm, watch: &Arc<Watch>) -> Result<(ImageRecord, Sums), ServiceError> {
        let bytes = match self.known_manifest(link)? {
            Some(bytes) => bytes,
            None => {
                watch.say("manifest");
                unseed_gone(swarm, link.info_hash);
                let fetched = swarm.fetch_blob(link.info_hash, MAX_MANIFEST, link.sha256, link.peers.clone(), watch.clone());
                fetched.map_err(|error| watch.explain(error))?.0
            }
        };
        let manifest = Manifest::parse(&bytes)?;
        if let Some(there) = self.already(ask, &manifest)? {
            return Ok(there);
        }
        let name = name_of(ask, &manifest);
        let mut sums = Sums::of(&manifest);
        let txn = self.store.begin(Intent::Pull { name: name.clone() })?;
        let _lock = txn.new_image()?;
        let wanted = self.metas(&txn, &manifest, swarm, &link.peers, watch)?;
        check_chain(&wanted, manifest.virtual_size)?;
        for want in &wanted {
            if want.is_here {
                sums.skipped += 1;
            } else {
                sums.fetched.0 += self.pull_delta(&txn, want, swarm, &link.peers, watch)?.0;
            }
        }
        let sha256 = txn.commit_manifest(&bytes)?;
        let mut record = ImageRecord::new(name, manifest.virtual_size, manifest.file_system.name());
        record.chain = manifest.deltas.iter().map(|delta| delta.digest).collect();
        record.published = Some(self.note_manifest(sha256)?);
        record.history.push(HistoryEntry::now("pull", &link.info_hash.to_string()));
        self.enter(&record, txn)?;
        // The image is here, whatever becomes of giving it on.
        if let Err(error) = self.seed_image(&record) {
            tracing::error!(image = %record.name, cause = %error, "cannot be seeded");
        }
        Ok((record, sums))
    }

    /// The `.meta` of each delta: from the store, or from the swarm.
    fn metas(
        &self,
        txn: &Txn,
        manifest: &Manifest,
        swarm: &Swarm,
        peers: &[SocketAddr],
        watch: &Arc<Watch>,
    ) -> Result<Vec<Wanted>, ServiceError> {
        let mut wanted = Vec::with_capacity(manifest.deltas.len());
        for delta in &manifest.deltas {
            let is_here = match txn.hold(&delta.digest) {
                Ok(()) => true,
                Err(StoreError::NoObject { .. }) => false,
                Err(other) => return Err(other.into()),
            };
            watch.say(&format!("meta of {}", short(&delta.digest)));
            let bytes = match is_here {
                true => self.store.meta(&delta.digest)?,
                false => {
                    unseed_gone(swarm, delta.meta_info_hash);
                    let (want, sha256) = (delta.meta_info_hash, Some(delta.meta_sha256));
                    let fetched = swarm.fetch_blob(want, delta.meta_len, sha256, peers.to_vec(), watch.clone());
                    fetched.map_err(|error| watch.explain(error))?.0
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
    fn pull_delta(&self, txn: &Txn, want: &Wanted, swarm: &Swarm, peers: &[SocketAddr], watch: &Arc<Watch>) -> Result<Bytes, ServiceError> {
        let digest = want.delta.digest;
        watch.say(&short(&digest));
        let item = ObjectItem {
            digest,
            len: want.delta.len,
            info_hash: want.delta.info_hash,
            units: Arc::new(want.meta.units.clone()),
            dir: self.store.incoming_dir(),
            peers: peers.to_vec(),
        };
        if !item.dir.join(format!("{digest}.part")).exists() {
            unseed_gone(swarm, want.delta.info_hash);
        }
        let fetched = swarm.fetch_object(item, watch.clone()).map_err(|error| watch.explain(error))?;
        if let Err(error) = same_as_meta(&fetched.path, &want.meta) {
            swarm.unseed(want.delta.info_hash);
            remove(&fetched.path)?;
            return Err(error.of(format!("delta {digest} was made wrong by who published it; nothing of it was kept")));
        }
        let description = describe(want);
        txn.commit_arrived(&digest, &want.bytes, &description)?;
        self.index(|catalog| catalog.put_object(&description))?;
        let paths = self.store.object_paths(&digest);
        self.store.write_torrent(&paths.torrent, &fetched.info.info_dict())?;
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

impl Sums {
    fn of(manifest: &Manifest) -> Sums {
        Sums {
            deltas: manifest.deltas.len() as u64,
            total: Bytes(manifest.deltas.iter().map(|delta| delta.len.0).fold(0, u64::saturating_add)),
            ..Sums::default()
        }
    }
}

fn name_of(ask: &Pull, manifest: &Manifest) -> ImageName {
    ask.name.clone().unwrap_or_else(|| manifest.name.clone())
}

/// What the store does not have any more, as another process has collected it, is seeded no longer: it can be fetched again.
fn unseed_gone(swarm: &Swarm, info_hash: InfoHash) {
    if swarm.is_seeded(info_hash) {
        swarm.unseed(info_hash);
    }
}

/// Parents and sizes fit before a byte of data is asked for.
fn check_chain(wanted: &[Wanted], virtual_size: Bytes) -> Result<(), ServiceError> {
    let delta = |want: &Wanted| Delta {
        extents: want.meta.extents.clone(),
        chunk_size: want.meta.facts.chunk_size,
        virtual_size: want.meta.facts.virtual_size,
        digest: want.delta.digest,
        parent: want.meta.facts.parent,
        stands_for: want.meta.facts.stands_for,
    };
    let deltas: Vec<Delta> = wanted.iter().map(delta).collect();
    ChainMap::build(&deltas, virtual_size)?;
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

fn remove(part: &Path) -> Result<(), ServiceError> {
    std::fs::remove_file(part).map_err(|error| super::mount::failed("remove", part, &error))
}

fn short(digest: &Digest) -> String {
    digest.to_string()[..12].into()
}
