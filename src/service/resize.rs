//! `resize`: an image's disk, and the file system on it, made larger or smaller.
//!
//! Refuses to work on an attached image. Invariant: whatever interrupts it, the image has its old size or its new one, and a file system that is
//! no larger than that.

use super::engine::Engine;
use super::{ErrorKind, Progress, Resize, ResizeReply, ServiceError};

impl Engine {
    pub(super) fn resize(&self, ask: Resize, _progress: &dyn Progress) -> Result<ResizeReply, ServiceError> {
        let record = self.store.image(&ask.name)?;
        if let Some(size) = ask.size {
            size.of(record.virtual_size)?;
        }
        Err(ServiceError::new(ErrorKind::Failed, "resize is not there yet"))
    }
}
