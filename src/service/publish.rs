//! `publish`: an image's manifest and torrents, and the link to give away.
//!
//! Refuses to publish what is not sealed. Invariant: the same image gives the same link on every host that has it.

use super::engine::Engine;
use super::make::known;
use super::seeding::torrent_of;
use super::{ErrorKind, Progress, Publish, PublishReply, ServiceError};
use crate::format::manifest::{Manifest, ManifestDelta};
use crate::ids::{Digest, ImageName, Sha256};
use crate::store::{Intent, Published, Txn};
use crate::swarm::link::Link;
use crate::units::Bytes;
use std::collections::BTreeMap;

impl Engine {
    pub(super) fn publish(&self, ask: Publish, progress: &dyn Progress) -> Result<PublishReply, ServiceError> {
        let record = self.store.image(&ask.name)?;
        if record.chain.is_empty() {
            let message = format!("image \"{}\" has no sealed delta: commit it first", ask.name);
            return Err(ServiceError::new(ErrorKind::Usage, message));
        }
        let txn = self.store.begin(Intent::Publish { name: ask.name.clone() })?;
        let mut deltas = Vec::with_capacity(record.chain.len());
        for digest in &record.chain {
            deltas.push(self.publish_delta(&txn, digest, progress)?);
        }
        let manifest = Manifest {
            name: ask.name.clone(),
            // A size that only its head has is not in what is published.
            virtual_size: self.store.sealed_size(&record)?,
            file_system: known(&record.file_system),
            labels: BTreeMap::new(),
            deltas,
        };
        let sha256 = txn.commit_manifest(&manifest.encode()?)?;
        let published = self.note_manifest(sha256)?;
        let total_bytes = Bytes(manifest.deltas.iter().map(|delta| delta.len.0).sum());
        let record = txn.finish_publish(&ask.name, &record.chain, published)?;
        self.index(|catalog| catalog.put_image(&record))?;
        txn.done()?;
        Ok(PublishReply {
            link: link_of(&ask.name, &published),
            info_hash: published.info_hash,
            manifest_sha256: sha256,
            deltas: manifest.deltas.len() as u64,
            total_bytes,
            seeding: self.seed_image(&record)?,
            not_seeding_because: self.why_no_swarm().map(|why| why.to_string()),
            name: ask.name,
        })
    }

    /// Makes what of a delta's torrents is not there yet.
    fn publish_delta(&self, txn: &Txn, digest: &Digest, progress: &dyn Progress) -> Result<ManifestDelta, ServiceError> {
        txn.hold(digest)?;
        let mut description = self.store.description(digest)?;
        let paths = self.store.object_paths(digest);
        let step = format!("hash {}", &digest.to_string()[..12]);
        let total = description.len_bytes.0;
        let tell = |done: Bytes| progress.update(&step, done.0, Some(total));
        let (info, info_hash) = torrent_of(
            &self.store,
            &paths.torrent,
            &digest.to_string(),
            &paths.delta,
            description.info_hash,
            &tell,
        )?;
        let meta = self.store.meta(digest)?;
        let meta_sha256 = Sha256::of(&meta);
        let (name, known) = (meta_sha256.to_string(), description.meta_info_hash);
        let (_, meta_info_hash) = torrent_of(&self.store, &paths.meta_torrent, &name, &paths.meta, known, &|_| ())?;
        if description.info_hash != Some(info_hash) || description.meta_info_hash != Some(meta_info_hash) {
            description.info_hash = Some(info_hash);
            description.meta_info_hash = Some(meta_info_hash);
            self.store.write_description(&description)?;
            self.index(|catalog| catalog.put_object(&description))?;
        }
        Ok(ManifestDelta {
            digest: *digest,
            len: info.len,
            info_hash,
            meta_sha256,
            meta_len: Bytes(meta.len() as u64),
            meta_info_hash,
        })
    }

    /// Makes the torrent of a manifest that is in the store.
    pub(super) fn note_manifest(&self, manifest: Sha256) -> Result<Published, ServiceError> {
        let (path, torrent) = (self.store.manifest_path(&manifest), self.store.manifest_torrent_path(&manifest));
        let (_, info_hash) = torrent_of(&self.store, &torrent, &manifest.to_string(), &path, None, &|_| ())?;
        Ok(Published { manifest, info_hash })
    }
}

/// What others are given.
pub(super) fn link_of(name: &ImageName, published: &Published) -> String {
    let link = Link {
        info_hash: published.info_hash,
        sha256: Some(published.manifest),
        name: Some(name.to_string()),
        trackers: Vec::new(),
        peers: Vec::new(),
        web_seeds: Vec::new(),
    };
    link.to_string()
}
