//! `resize --limit`, `--reserve`: how much space an image's head may take, and whether it has that for certain.
//!
//! Refuses to take anything from a head, and to do more to the head of an attached image than to raise its limit. Invariant: the limit in
//! `image.json` is never below what the head's file has in use, and what is reserved has its space before the record says so; what it has too
//! much is given back after.

use super::engine::Engine;
use super::mount::failed;
use super::{ErrorKind, Resize, ServiceError};
use crate::attach;
use crate::blockio::FileIo;
use crate::format::head::{Head, HeadBounds, LimitError, check_limit, usable_len};
use crate::ids::ImageName;
use crate::store::{HistoryEntry, ImageRecord, StoreError, stop};
use crate::units::{Bytes, ChunkSize};
use std::fs::File;

/// What is to become of a head's bounds.
#[derive(Clone, Copy)]
pub(super) struct NewBounds {
    /// `Some(None)`: no limit any more.
    limit: Option<Option<Bytes>>,
    reserve: Option<bool>,
}

impl NewBounds {
    pub fn of(ask: &Resize) -> NewBounds {
        NewBounds {
            limit: ask.limit_bytes.map(Some).or(ask.no_limit.then_some(None)),
            reserve: ask.reserve,
        }
    }

    pub fn over(self, old: HeadBounds) -> HeadBounds {
        HeadBounds {
            limit_bytes: self.limit.unwrap_or(old.limit_bytes),
            reserve: self.reserve.unwrap_or(old.reserve),
        }
    }

    /// For the image's history.
    pub fn words(self) -> Vec<String> {
        let limit = self.limit.map(|limit| match limit {
            Some(limit) => format!("limit {} bytes", limit.0),
            None => "no limit".into(),
        });
        let reserve = self.reserve.map(|reserve| match reserve {
            true => "reserved".into(),
            false => "not reserved".into(),
        });
        limit.into_iter().chain(reserve).collect()
    }

    fn entry(self) -> HistoryEntry {
        HistoryEntry::now("resize", &self.words().join(", "))
    }
}

impl Engine {
    /// Gives the head, or the one that is made next, other bounds. A head that was full has room again with a larger limit, or without one.
    pub(super) fn set_bounds(&self, name: &ImageName, new: NewBounds) -> Result<ImageRecord, ServiceError> {
        let _lock = match self.store.lock_image(name) {
            // A kernel that writes to it can be given more room.
            Err(StoreError::InUse { .. }) => return self.raise_limit(name, new),
            other => other?,
        };
        let before = self.store.image(name)?;
        let (size, bounds) = (before.virtual_size, new.over(before.bounds()));
        self.check_bounds(&before, size, bounds)?;
        self.take_room(&before, size, bounds)?;
        stop::point("bounds.taken");
        let record = self.store.update_image(name, |record| {
            record.set_bounds(bounds);
            record.add_history(new.entry());
        })?;
        stop::point("bounds.recorded");
        self.index(|catalog| catalog.put_image(&record))?;
        self.give_back(&record, before.bounds())?;
        stop::point("bounds.done");
        Ok(record)
    }

    fn raise_limit(&self, name: &ImageName, new: NewBounds) -> Result<ImageRecord, ServiceError> {
        let before = self.store.image(name)?;
        let in_use = |what: &str| Err(ServiceError::new(ErrorKind::InUse, format!("image \"{name}\" is in use{what}")));
        let (Some(head), Some(limit)) = (before.head, new.limit) else {
            return in_use("");
        };
        let raised = head.limit_bytes.is_some_and(|old| limit.is_none_or(|limit| old <= limit));
        // For the whole disk it would be more than anybody asked for.
        let is_certain = head.reserve && limit.is_none();
        if let Some(limit) = limit {
            check_limit(limit, ChunkSize::new(head.chunk_size)?).map_err(usage)?;
        }
        if new.reserve.is_some() || is_certain || !raised || !attach::grow_head(&self.store, &before, &head, limit)? {
            return in_use(", and its head can only grow, before it is full, where the kernel writes to it");
        }
        let record = self.store.update_image(name, |record| {
            // Of two who raise it at once under a mounted image, the file has the larger.
            let now = record.bounds();
            let limit_bytes = now.limit_bytes.zip(limit).map(|(now, limit)| now.max(limit));
            record.set_bounds(HeadBounds { limit_bytes, ..now });
            record.add_history(new.entry());
        })?;
        self.index(|catalog| catalog.put_image(&record))?;
        Ok(record)
    }

    /// What a head of a disk of `size` bytes cannot have, or less than it has in use. What is cut off the disk is not in use.
    pub(super) fn check_bounds(&self, record: &ImageRecord, size: Bytes, bounds: HeadBounds) -> Result<(), ServiceError> {
        let Some(limit) = bounds.limit_bytes else { return Ok(()) };
        let chunk = record.head.map_or(Ok(ChunkSize::HEAD), |head| ChunkSize::new(head.chunk_size))?;
        check_limit(limit, chunk).map_err(usage)?;
        if record.head.is_none() || size < record.virtual_size {
            return Ok(());
        }
        let used = self.open_head(&record.name)?.used_len();
        if usable_len(limit, chunk) < used {
            let message = format!(
                "image \"{}\": a limit of {} bytes, and its head has {} bytes in use",
                record.name, limit.0, used.0
            );
            return Err(ServiceError::new(ErrorKind::Usage, message));
        }
        Ok(())
    }

    /// The space that bounds promise, for a disk of `size` bytes, before the record says that it is there. Errors: nothing is taken.
    pub(super) fn take_room(&self, record: &ImageRecord, size: Bytes, bounds: HeadBounds) -> Result<(), ServiceError> {
        if record.head.is_none() || !bounds.reserve {
            return Ok(());
        }
        self.open_within(record, size, bounds).map(drop)
    }

    /// What a head has too much by its record's bounds: with `old` ones it had more, or was as long as the kernel could have made it.
    pub(super) fn give_back(&self, record: &ImageRecord, old: HeadBounds) -> Result<(), ServiceError> {
        let Some(head) = record.head.filter(|head| (old.reserve || head.reserve) && head.bounds() != old) else {
            return Ok(());
        };
        let give = || -> Result<(), ServiceError> {
            let (size, bounds) = (record.virtual_size, head.bounds());
            Ok(self.open_within(record, size, bounds)?.give_back(size, bounds)?)
        };
        give().map_err(|error| {
            let then = "what its head has too much is given back when it is next attached";
            error.of(format!("image \"{}\" has its new bounds, and {then}", record.name))
        })
    }

    fn open_within(&self, record: &ImageRecord, size: Bytes, bounds: HeadBounds) -> Result<Head<FileIo>, ServiceError> {
        let path = self.store.head_path(&record.name);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| failed("open", &path, &error))?;
        Ok(Head::open_within(FileIo(file), size, bounds)?)
    }
}

fn usage(error: LimitError) -> ServiceError {
    ServiceError::from_error(ErrorKind::Usage, &error)
}
