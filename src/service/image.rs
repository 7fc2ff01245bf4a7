//! Images as wholes: `clone`, `rename`, `rm`, `gc`.
//!
//! Refuses to know what is in them. Invariant: none of it depends on an image's size.

use super::engine::Engine;
use super::look::allocated;
use super::make::bounds;
use super::{Clone, CloneReply, Gc, GcObject, GcPart, GcReply, Rename, RenameReply, Rm, RmReply, ServiceError};
use crate::store::{GIVEN_UP_AFTER, ImageRecord, ObjectKind, Txn};
use crate::units::Bytes;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// How much the catalogue may have to catch up on.
const MAX_UNTOLD: usize = 256;

impl Engine {
    /// With an empty head: what the source's head has is not looked at, so that the source may be in use, and its size costs nothing.
    pub(super) fn clone_image(&self, ask: Clone) -> Result<CloneReply, ServiceError> {
        let start = Instant::now();
        let source = self.store.image(&ask.source)?;
        if !ask.reserve {
            self.must_have_room()?;
        }
        // An empty head is its header and one area.
        let left_out = source.head.map_or(0, |head| {
            let stored = allocated(&self.store.head_path(&ask.source)).0;
            stored.saturating_sub(2 * head.chunk_size.0)
        });
        let (record, txn) = self
            .store
            .clone_image(&ask.source, &ask.target, bounds(ask.limit_bytes, ask.reserve))?;
        self.leave_untold(txn)?;
        Ok(CloneReply {
            name: ask.target,
            source: ask.source,
            deltas: record.chain.len() as u64,
            left_out_bytes: Bytes(left_out),
            took_us: start.elapsed().as_micros() as u64,
        })
    }

    pub(super) fn rename(&self, ask: Rename) -> Result<RenameReply, ServiceError> {
        let (_, txn) = self.store.rename_image(&ask.from, &ask.to)?;
        self.leave_untold(txn)?;
        Ok(RenameReply {
            from: ask.from,
            to: ask.to,
        })
    }

    pub(super) fn rm(&self, ask: Rm) -> Result<RmReply, ServiceError> {
        let record = self.store.image(&ask.name)?;
        // Counted by this image's links: to look through the whole store would cost more than all the rest.
        let (objects, bytes) = self.only_in(&record)?;
        if ask.dry_run {
            let _free = self.store.lock_image(&ask.name)?;
        } else {
            let txn = self.store.remove_image(&ask.name)?;
            self.leave_untold(txn)?;
        }
        Ok(RmReply {
            name: ask.name,
            dry_run: ask.dry_run,
            unreferenced_objects: objects,
            unreferenced_bytes: Bytes(bytes),
        })
    }

    /// How many deltas only this image has, and their bytes.
    fn only_in(&self, record: &ImageRecord) -> Result<(u64, u64), ServiceError> {
        let mut sum = (0, 0);
        for digest in record.chain.iter().collect::<BTreeSet<_>>() {
            let paths = self.store.object_paths(digest);
            // Two names: the object's own, and this image's.
            if paths.delta.metadata().is_ok_and(|meta| meta.nlink() == 2) {
                let all = [&paths.delta, &paths.meta, &paths.description, &paths.torrent, &paths.meta_torrent];
                sum = (sum.0 + 1, sum.1 + all.iter().map(|path| allocated(path).0).sum::<u64>());
            }
        }
        Ok(sum)
    }

    pub(super) fn gc(&self, ask: Gc) -> Result<GcReply, ServiceError> {
        let report = self.store.gc(ask.dry_run, &|_| false)?;
        let deltas: Vec<GcObject> = report
            .removed
            .iter()
            .filter_map(|removed| match removed.kind {
                ObjectKind::Delta(digest) => Some(GcObject {
                    digest,
                    stored_bytes: removed.freed,
                }),
                ObjectKind::Manifest(_) => None,
            })
            .collect();
        if !ask.dry_run {
            self.forget(&deltas)?;
        }
        let there = self.store.objects()?;
        let all = there.iter().filter(|object| matches!(object.kind, ObjectKind::Delta(_))).count();
        let kept = if ask.dry_run { all - deltas.len() } else { all };
        Ok(GcReply {
            dry_run: ask.dry_run,
            removed: deltas,
            parts: report
                .parts
                .into_iter()
                .map(|part| GcPart {
                    path: part.path,
                    stored_bytes: part.freed,
                })
                .collect(),
            given_up_after_seconds: GIVEN_UP_AFTER.as_secs(),
            freed_bytes: Bytes(report.freed.0),
            kept_objects: kept as u64,
        })
    }

    /// Ends a change of images that the catalogue may learn later; not ever later.
    fn leave_untold(&self, txn: Txn) -> Result<(), ServiceError> {
        txn.done_untold()?;
        match self.store.untold_count()? {
            0..MAX_UNTOLD => Ok(()),
            _ => self.index(|_| Ok(())),
        }
    }

    /// The catalogue and the swarm need not know of them any more.
    fn forget(&self, gone: &[GcObject]) -> Result<(), ServiceError> {
        self.index(|catalog| gone.iter().try_for_each(|object| catalog.remove_object(&object.digest)))?;
        self.seed_only_published()
    }
}
