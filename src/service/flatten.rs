//! `flatten`: the oldest deltas of an image become one.
//!
//! Refuses to work on an attached image, and to make a new delta of damaged ones. Invariant: the image reads the same before, while and after; no
//! other image is touched, and children of the newest delta that was replaced stay good, as the new one stands for it.

use super::engine::Engine;
use super::make::{ms, new_delta};
use super::{ErrorKind, Flatten, FlattenReply, Progress, ServiceError};
use crate::blockio::FileIo;
use crate::chain;
use crate::format::check::{self, Expected};
use crate::format::seal::Sealer;
use crate::format::sealed::Sealed;
use crate::format::trailer::{Facts, SEAL_RULES};
use crate::ids::Digest;
use crate::store::{HistoryEntry, ImageRecord, Txn, stop};
use crate::sys::verity;
use crate::units::{Bytes, ChunkSize};
use std::fs::File;
use std::time::Instant;

impl Engine {
    pub(super) fn flatten(&self, ask: Flatten, progress: &dyn Progress) -> Result<FlattenReply, ServiceError> {
        let start = Instant::now();
        let (record, txn) = self.store.begin_flatten(&ask.name, ask.keep)?;
        let reply = |deltas: usize| FlattenReply {
            name: ask.name.clone(),
            digest: None,
            replaced_deltas: 0,
            replaced_bytes: Bytes::ZERO,
            delta_bytes: Bytes::ZERO,
            deltas: deltas as u64,
            unpublished: false,
            took_ms: ms(start.elapsed()),
        };
        let Some(txn) = txn else { return Ok(reply(record.chain.len())) };
        let replaced = record.chain.len() - ask.keep;
        let (digest, len) = self.seal_flat(&txn, &record, replaced, progress)?;
        let mut flat = record.clone();
        flat.chain.splice(..replaced, [digest]);
        // A last look at what would be written down.
        self.disk_files(&flat, true).chain()?;
        let mut replaced_bytes = Bytes::ZERO;
        for digest in &record.chain[..replaced] {
            replaced_bytes.0 += self.store.description(digest)?.len_bytes.0;
        }
        let entry = HistoryEntry::now("flatten", &format!("{replaced} deltas into {digest}"));
        let (flat, unpublished) = txn.finish_flatten(&digest, ask.keep, entry)?;
        self.index(|catalog| catalog.put_image(&flat))?;
        txn.done()?;
        if unpublished {
            self.seed_only_published()?;
        }
        Ok(FlattenReply {
            digest: Some(digest),
            replaced_deltas: replaced as u64,
            replaced_bytes,
            delta_bytes: len,
            unpublished,
            ..reply(flat.chain.len())
        })
    }

    /// Seals what the oldest `replaced` deltas of an image show as one base, and puts it into the store.
    fn seal_flat(
        &self,
        txn: &Txn,
        record: &ImageRecord,
        replaced: usize,
        progress: &dyn Progress,
    ) -> Result<(Digest, Bytes), ServiceError> {
        let (old, kept) = record.chain.split_at(replaced);
        for digest in old {
            self.must_be_whole(digest, progress)?;
        }
        let facts_of = |digest: &Digest| -> Result<Facts, ServiceError> {
            let table = Sealed::open(&FileIo(self.store.open_object(digest)?));
            Ok(table.map_err(|error| ServiceError::from_error(ErrorKind::Damaged, &error))?.facts)
        };
        let newest = &old[replaced - 1];
        let newest_facts = facts_of(newest)?;
        let facts = Facts {
            parent: Digest::NONE,
            // By the name the delta above knows it by: that may be one that the newest stands for itself.
            stands_for: kept
                .first()
                .map_or(Ok(*newest), |above| facts_of(above).map(|facts| facts.parent))?,
            chunk_size: ChunkSize::BASE,
            seal_rules: SEAL_RULES,
            ..newest_facts
        };
        let mut below = record.clone();
        below.chain.truncate(replaced);
        below.virtual_size = facts.virtual_size;
        let chain = self.disk_files(&below, true).chain()?;
        let path = txn.dir().join("flat.delta");
        let mut sealer = Sealer::new(new_delta(&path)?, facts)?;
        chain::seal::from_chain(&chain, &facts, &mut sealer, &mut |done: Bytes, total: Bytes| {
            progress.update("seal", done.0, Some(total.0));
        })?;
        let sealed = sealer.finish()?;
        stop::point("flatten.sealed");
        progress.update("sync", 0, None);
        self.keep(txn, &path, &sealed, &facts)?;
        Ok((sealed.digest, sealed.len))
    }

    /// What has rotted in an old delta would be as good as new in one made of it.
    fn must_be_whole(&self, digest: &Digest, progress: &dyn Progress) -> Result<(), ServiceError> {
        let file: File = self.store.open_object(digest)?;
        // Then the kernel looks at every byte that is read.
        if verity::measure(&file).is_ok_and(|enforced| enforced == Some(*digest)) {
            return Ok(());
        }
        let len = file.metadata().map_or(0, |meta| meta.len());
        let step = format!("check {}", &digest.to_string()[..12]);
        let expected = Expected {
            digest: *digest,
            units: None,
        };
        let mut first = None;
        let mut tell = |done: Bytes| progress.update(&step, done.0, Some(len));
        check::check_deep(&FileIo(file), expected, &mut tell, &mut |finding| {
            first.get_or_insert(finding);
        });
        let Some(finding) = first else { return Ok(()) };
        let path = self.store.object_paths(digest).delta;
        Err(ServiceError::new(ErrorKind::Damaged, finding).of(format!("delta {}", path.display())))
    }
}
