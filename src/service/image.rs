//! Images as wholes: `clone`, `rename`, `rm`, `gc`.
//!
//! Refuses to know what is in them. Invariant: none of it depends on an image's size.

use super::engine::Engine;
use super::look::allocated;
use super::make::bounds;
use super::{Clone, CloneReply, Gc, GcObject, GcPart, GcReply, Rename, RenameReply, Rm, RmReply, ServiceError};
use crate::store::{GIVEN_UP_AFTER, ObjectKind, Txn};
use crate::units::Bytes;
use std::time::Instant;

/// How much the catalogue may have to catch up on, more or less: one change of sixteen looks.
const MAX_UNTOLD: usize = 256;

impl Engine {
    /// With an empty head: what the source's head has is not looked at, so that the source may be in use, and its size costs nothing.
    pub(super) fn clone_image(&self, ask: Clone) -> Result<CloneReply, ServiceError> {
        let start = Instant::now();
        if !ask.reserve {
            self.must_have_room()?;
        }
        let bounds = bounds(ask.limit_bytes, ask.reserve);
        let made = self.store.clone_image(&ask.source, &ask.target, bounds)?;
        // An empty head is its header and one area.
        let left_out = made.left_out.map_or(0, |head| {
            let stored = allocated(&self.store.head_path(&ask.source)).0;
            stored.saturating_sub(2 * head.chunk_size.0)
        });
        self.leave_untold(made.txn)?;
        Ok(CloneReply {
            name: ask.target,
            source: ask.source,
            deltas: made.record.chain.len() as u64,
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
        let (objects, bytes) = self.store.only_in(&record)?;
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
            unreferenced_bytes: bytes,
        })
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
        let looks = txn.is_one_of_sixteen();
        txn.done_untold()?;
        match looks && self.store.untold_count()? >= MAX_UNTOLD {
            true => self.index(|_| Ok(())),
            false => Ok(()),
        }
    }

    /// The catalogue and the swarm need not know of them any more.
    fn forget(&self, gone: &[GcObject]) -> Result<(), ServiceError> {
        self.index(|catalog| gone.iter().try_for_each(|object| catalog.remove_object(&object.digest)))?;
        self.seed_only_published()
    }
}
