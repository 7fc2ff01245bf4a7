//! `resize`: an image's disk, and the file system on it, made larger or smaller.
//!
//! Refuses to work on an attached image. Invariant: whatever interrupts it, the image has its old size or its new one, and a file system that is
//! whole and no larger than that.
//!
//! Larger: first the disk, then the file system, mounted, through its journal; who was interrupted says the same once more. Smaller, or where the
//! kernel does not grow it: first the file system, on a copy of the head, then disk and head at once; who was interrupted has lost the copy.

use super::commit::open_head;
use super::engine::Engine;
use super::fit::{self, FitError};
use super::limit::NewBounds;
use super::make::{ms, new_delta};
use super::own_mount::OwnMount;
use super::tool::ToolError;
use super::{ErrorKind, NewSize, Progress, Resize, ResizeReply, ServiceError};
use crate::attach;
use crate::blockio::{FileIo, WriteAt};
use crate::format::head::{Head, HeadBounds, trim, usable_len};
use crate::kernel::mounts;
use crate::store::{HeadRecord, HistoryEntry, ImageRecord, Txn, stop};
use crate::units::{Bytes, ChunkSize};
use std::time::Instant;

impl Engine {
    pub(super) fn resize(&self, ask: Resize, progress: &dyn Progress) -> Result<ResizeReply, ServiceError> {
        let start = Instant::now();
        let new = NewBounds::of(&ask);
        let (old, record, minimum) = match ask.size {
            Some(size) => self.resize_disk(&ask, size, new, progress)?,
            None => {
                let record = self.set_bounds(&ask.name, new)?;
                (record.virtual_size, record, None)
            }
        };
        let HeadBounds { limit_bytes, reserve } = record.bounds();
        Ok(ResizeReply {
            old_size_bytes: old,
            virtual_size_bytes: record.virtual_size,
            minimum_bytes: minimum,
            limit_bytes,
            reserve,
            file_system: record.file_system,
            name: record.name,
            took_ms: ms(start.elapsed()),
        })
    }

    /// Disk and bounds in one change of the record. Returns also the old size, and the least that the file system could have had.
    fn resize_disk(
        &self,
        ask: &Resize,
        size: NewSize,
        new: NewBounds,
        progress: &dyn Progress,
    ) -> Result<(Bytes, ImageRecord, Option<Bytes>), ServiceError> {
        let lock = self.store.lock_image(&ask.name)?;
        let before = self.store.image(&ask.name)?;
        let old = before.virtual_size;
        let size = size.of(old)?;
        let bounds = new.over(before.bounds());
        refuse(&before, size, ask.shrink)?;
        self.check_bounds(&before, size, bounds)?;
        let entry = entry(old, size, new);
        let txn = self.store.begin_resize(lock, &before, size)?;
        let (record, minimum) = match size < old {
            true => {
                let mut wanted = before;
                wanted.set_bounds(bounds);
                self.refit(&txn, &wanted, size, Some(entry), progress)?
            }
            false => (self.grow(&txn, before, size, bounds, entry, progress)?, None),
        };
        txn.done()?;
        tracing::info!(image = %record.name, from = %old, to = %size, "resized");
        Ok((old, record, minimum))
    }

    fn grow(
        &self,
        txn: &Txn,
        before: ImageRecord,
        size: Bytes,
        bounds: HeadBounds,
        entry: HistoryEntry,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, ServiceError> {
        let is_known = fit::is_known(&before.file_system);
        if is_known {
            fit::can_grow(&before.file_system)?;
        }
        if before.head.is_none() && !bounds.reserve {
            self.must_have_room()?;
        }
        let was = before.bounds();
        // All of the larger disk's, before anybody relies on it.
        self.take_room(&before, size, bounds)?;
        let record = match size == before.virtual_size && bounds == before.bounds() {
            // Nothing to do, or an interrupted one to finish.
            true => before,
            false => txn.finish_grow(size, bounds, entry)?,
        };
        self.index(|catalog| catalog.put_image(&record))?;
        // As long as the image is ours; what cannot be given back keeps nothing from growing.
        let given = self.give_back(&record, was);
        if !is_known {
            return given.map(|()| record);
        }
        progress.update("file system", 0, None);
        let grown = match self.grow_mounted(txn, &record) {
            // As in a container, which may mount and has not all of root's rights; or where the file system has errors.
            Ok(Some(refused)) if record.file_system == "ext4" => {
                tracing::debug!(cause = %refused, "does not grow mounted: on a copy of the head");
                self.refit(txn, &record, size, None, progress).map(|(record, _)| record)
            }
            Ok(Some(refused)) => Err(refused.into()),
            other => other.map(|_| record.clone()),
        };
        let grown = grown.map_err(|error| {
            let then = "and its file system is smaller: the same resize again finishes it";
            error.of(format!("image \"{}\" has a disk of {size} now, {then}", record.name))
        })?;
        stop::point("grow.grown");
        given.map(|()| grown)
    }

    /// On a mount of its own: only a mounted file system grows in a way that a power cut cannot break. Returns why it would not.
    fn grow_mounted(&self, txn: &Txn, record: &ImageRecord) -> Result<Option<FitError>, ServiceError> {
        let name = &record.name;
        let place = OwnMount::new(&self.store, "resize", name)?;
        let dir = self.store.image_dir(record.id());
        let held = attach::attach_held(&self.store, record.clone(), dir, txn.image_lock())?;
        let work = || -> Result<Option<FitError>, ServiceError> {
            let file_system = &*record.file_system;
            mounts::mount_device(&held.device, &place.dir, file_system, Some(fit::options(file_system)), false)?;
            stop::point("grow.mounted");
            match fit::grow(file_system, &held.device, &place.dir) {
                Err(FitError::Tool(refused @ ToolError::Failed { .. })) => Ok(Some(refused.into())),
                other => Ok(other.map(|()| None)?),
            }
        };
        let grown = work();
        let away = held.umount(&self.store, name);
        let refused = grown?;
        away?;
        Ok(refused)
    }

    /// On a copy of the head, which then takes its place. Returns also the least size that the file system could have had.
    fn refit(
        &self,
        txn: &Txn,
        before: &ImageRecord,
        size: Bytes,
        entry: Option<HistoryEntry>,
        progress: &dyn Progress,
    ) -> Result<(ImageRecord, Option<Bytes>), ServiceError> {
        progress.update("copy", 0, None);
        txn.draft_head(before)?;
        let head = before.head.unwrap_or_else(|| before.new_head(ChunkSize::HEAD));
        let minimum = match &*before.file_system {
            "ext4" => {
                progress.update("file system", 0, None);
                Some(self.refit_file_system(txn, before, head, size)?)
            }
            _ => None,
        };
        stop::point("shrink.fitted");
        progress.update("trim", 0, None);
        let _lock = txn.new_image()?;
        let draft = open_head(&txn.draft_dir().join("head.delta"))?;
        let trimmed = trim(&draft, new_delta(&txn.image_dir().join("head.delta"))?, size)?;
        take_space(before, head, &trimmed, size)?;
        stop::point("shrink.trimmed");
        let head = HeadRecord {
            smallest_size: head.smallest_size.min(size),
            ..head
        };
        let record = txn.finish_refit(size, head, entry)?;
        self.index(|catalog| catalog.put_image(&record))?;
        Ok((record, minimum))
    }

    /// On the copy of the head, which may become longer than the head may be: most of what is moved is cut off again.
    fn refit_file_system(&self, txn: &Txn, before: &ImageRecord, head: HeadRecord, size: Bytes) -> Result<Bytes, ServiceError> {
        let mut draft = before.clone();
        draft.head = Some(HeadRecord {
            limit_bytes: None,
            reserve: false,
            ..head
        });
        let held = attach::attach_held(&self.store, draft, txn.draft_dir(), txn.image_lock())?;
        let fitted = fit::refit_ext4(&held.device, size);
        let away = held.detach(&self.store, &before.name);
        let minimum = fitted.map_err(|error| ServiceError::from(error).of(format!("image \"{}\"", before.name)))?;
        away?;
        Ok(minimum)
    }
}

/// What cannot, or must not, be done.
fn refuse(record: &ImageRecord, size: Bytes, shrink: bool) -> Result<(), ServiceError> {
    let name = &record.name;
    let refused = |why: &str| Err(ServiceError::new(ErrorKind::Usage, format!("image \"{name}\": {why}")));
    if !record.frozen.is_empty() {
        let message = format!("image \"{name}\" has {} former heads that are not sealed yet", record.frozen.len());
        return Err(ServiceError::new(ErrorKind::Failed, message));
    }
    match &*record.file_system {
        _ if size >= record.virtual_size => Ok(()),
        "ext4" => Ok(()),
        "xfs" => refused("xfs cannot become smaller: make a new image, and copy what is in this one"),
        _ if shrink => Ok(()),
        other => refused(&format!(
            "what a disk with file system \"{other}\" has behind its new end would be lost: say --shrink"
        )),
    }
}

/// The space that the head was promised. Errors: also when the head is longer than its limit.
fn take_space(record: &ImageRecord, head: HeadRecord, trimmed: &Head<FileIo>, size: Bytes) -> Result<(), ServiceError> {
    let HeadBounds { limit_bytes, reserve } = head.bounds();
    let used = trimmed.used_len();
    if let Some(limit) = limit_bytes
        && usable_len(limit, trimmed.chunk_size()) < used
    {
        let message = format!(
            "image \"{}\": its head would take {used}, more than its limit of {limit}",
            record.name
        );
        return Err(ServiceError::new(ErrorKind::Failed, message));
    }
    if reserve {
        let len = trimmed.full_len(size, limit_bytes)?;
        let taken = trimmed.io().reserve(len).and_then(|()| trimmed.io().sync());
        taken.map_err(|error| ServiceError::new(ErrorKind::Failed, format!("{len} for the head")).because(Some(&error)))?;
    }
    Ok(())
}

fn entry(old: Bytes, size: Bytes, new: NewBounds) -> HistoryEntry {
    let mut words = new.words();
    words.insert(0, format!("{old} to {size}"));
    HistoryEntry::now("resize", &words.join(", "))
}
