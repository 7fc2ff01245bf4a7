//! Images as wholes: `clone`, `rename`, `rm`, `gc`.
//!
//! Refuses to know what is in them. Invariant: none of it depends on an image's size.

use super::engine::Engine;
use super::{Clone, CloneReply, Gc, GcObject, GcReply, Rename, RenameReply, Rm, RmReply, ServiceError};
use crate::store::{CloneHead, ObjectKind, Txn};
use crate::units::{Bytes, ChunkSize};
use std::time::Instant;

/// How much the catalogue may have to catch up on.
const MAX_UNTOLD: usize = 256;

impl Engine {
    /// With what the source's head has, if it has one; that one must not be attached then.
    pub(super) fn clone_image(&self, ask: Clone) -> Result<CloneReply, ServiceError> {
        let start = Instant::now();
        let source = self.store.image(&ask.source)?;
        let head = match source.head {
            Some(_) => CloneHead::Copy,
            None => CloneHead::Fresh(ChunkSize::HEAD),
        };
        let (record, txn) = self.store.clone_image(&ask.source, &ask.target, head)?;
        self.leave_untold(txn)?;
        Ok(CloneReply {
            name: ask.target,
            source: ask.source,
            deltas: record.chain.len() as u64,
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
        let txn = self.store.remove_image(&ask.name)?;
        self.leave_untold(txn)?;
        let left = self.store.gc(true, &|_| false)?;
        Ok(RmReply {
            name: ask.name,
            unreferenced_objects: left.removed.len() as u64,
            unreferenced_bytes: left.freed,
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
