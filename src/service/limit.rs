//! `resize --limit`: how much space an image's head may take.
//!
//! Refuses to take anything from a head, and to lower the limit of an image that is attached. Invariant: the limit in `image.json` is never below what the head's file has in use, and what is
//! reserved has its space before the record says so.

use super::engine::Engine;
use super::{ErrorKind, ServiceError};
use crate::attach;
use crate::blockio::{FileIo, WriteAt};
use crate::format::head::{Head, HeadBounds, check_limit, usable_len};
use crate::ids::ImageName;
use crate::store::{HistoryEntry, ImageRecord, StoreError};
use crate::units::{Bytes, ChunkSize};
use std::fs::File;

impl Engine {
    /// Gives the head, or the one that is made next, another limit. A head that was full has room again.
    pub(super) fn set_limit(&self, name: &ImageName, limit: Bytes) -> Result<ImageRecord, ServiceError> {
        let mine = match self.store.lock_image(name) {
            // A kernel that writes to it can be given more room.
            Err(in_use @ StoreError::InUse { .. }) => Err(in_use),
            other => Ok(other?),
        };
        let record = self.store.image(name)?;
        let usage = |error| ServiceError::from_error(ErrorKind::Usage, &error);
        match record.head {
            None => {
                check_limit(limit, ChunkSize::HEAD).map_err(usage)?;
                if let Err(in_use) = mine {
                    return Err(in_use.into());
                }
            }
            Some(head) => {
                let chunk = ChunkSize::new(head.chunk_size)?;
                check_limit(limit, chunk).map_err(usage)?;
                let bounds = HeadBounds {
                    limit_bytes: Some(limit),
                    ..head.bounds()
                };
                match &mine {
                    Ok(_) => self.fit_head(&record, chunk, limit, bounds)?,
                    Err(_)
                        if head.limit_bytes.is_some_and(|old| old <= limit) && attach::grow_head(&self.store, &record, &head, limit)? => {}
                    Err(_) => {
                        let what = format!(
                            "image \"{name}\" is in use, and its head can only grow, before it is full, where the kernel writes to it"
                        );
                        return Err(ServiceError::new(ErrorKind::InUse, what));
                    }
                }
            }
        }
        let is_live = mine.is_err();
        let record = self.store.update_image(name, |record| {
            // Of two who raise it at once under a mounted image, the file has the larger.
            let now = record.head.and_then(|head| head.limit_bytes).filter(|_| is_live);
            let limit = now.map_or(limit, |now| now.max(limit));
            record.next_head.limit_bytes = Some(limit);
            record.head.iter_mut().for_each(|head| head.limit_bytes = Some(limit));
            record.add_history(HistoryEntry::now("resize", &format!("limit {} bytes", limit.0)));
        })?;
        self.index(|catalog| catalog.put_image(&record))?;
        Ok(record)
    }

    fn fit_head(&self, record: &ImageRecord, chunk: ChunkSize, limit: Bytes, bounds: HeadBounds) -> Result<(), ServiceError> {
        let used = self.open_head(&record.name)?.used_len();
        if usable_len(limit, chunk) < used {
            let message = format!(
                "image \"{}\": a limit of {} bytes, and its head has {} bytes in use",
                record.name, limit.0, used.0
            );
            return Err(ServiceError::new(ErrorKind::Usage, message));
        }
        if !bounds.reserve {
            return Ok(());
        }
        let path = self.store.head_path(&record.name);
        let failed = |error| super::mount::failed("open", &path, &error);
        let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
        let head = Head::open_within(FileIo(file), record.virtual_size, bounds)?;
        // What a smaller limit leaves over is given back.
        let len = head.full_len(record.virtual_size, Some(limit))?;
        let cut = head.io().set_len(len).and_then(|()| head.io().sync());
        cut.map_err(|error| super::mount::failed("cut", &path, &error))
    }
}
