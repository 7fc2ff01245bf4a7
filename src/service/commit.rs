//! `commit`: the head becomes the newest sealed delta.
//!
//! Refuses to work on an attached image. Invariant: until the image's record names the new delta, the head has every byte.

use super::engine::Engine;
use super::make::{known, ms, new_delta};
use super::{Commit, CommitReply, ErrorKind, Progress, ServiceError};
use crate::attach::DiskFiles;
use crate::blockio::FileIo;
use crate::chain;
use crate::format::head::Head;
use crate::format::seal::Sealer;
use crate::format::trailer::Facts;
use crate::ids::{Digest, ImageName};
use crate::store::{HistoryEntry, ImageRecord, StoreError, stop};
use crate::units::{Bytes, ChunkSize};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// From so many deltas on, `commit` proposes to flatten: each costs a loop device of 0.2 to 0.75 ms when the image is attached, and that is most of
/// what attaching takes.
const FLATTEN_PROPOSED_AT: usize = 32;

impl Engine {
    pub(super) fn commit(&self, ask: Commit, progress: &dyn Progress) -> Result<CommitReply, ServiceError> {
        let start = Instant::now();
        let nothing = |record: &ImageRecord| CommitReply {
            name: ask.name.clone(),
            digest: None,
            delta_bytes: Bytes::ZERO,
            changed_bytes: Bytes::ZERO,
            deltas: record.chain.len() as u64,
            flatten_proposed: record.chain.len() >= FLATTEN_PROPOSED_AT,
            took_ms: ms(start.elapsed()),
        };
        let (record, txn) = match self.store.begin_commit(&ask.name) {
            Err(StoreError::NoHead { .. }) => return Ok(nothing(&self.store.image(&ask.name)?)),
            other => other?,
        };
        let chain = self.disk_files(&record, true).chain()?;
        let head = self.open_head(&ask.name)?;
        let suits = match record.chain.is_empty() {
            true => ChunkSize::BASE,
            false => ChunkSize::SEALED,
        };
        let facts = Facts {
            parent: record.chain.last().copied().unwrap_or(Digest::NONE),
            stands_for: Digest::NONE,
            virtual_size: record.virtual_size,
            chunk_size: ask.chunk_size_bytes.map_or(Ok(suits), ChunkSize::new)?,
            seal_rules: 1,
            file_system: known(&record.file_system),
        };
        let path = txn.dir().join("sealed.delta");
        let mut sealer = Sealer::new(new_delta(&path)?, facts)?;
        let clip = record.head.map_or(record.virtual_size, |head| head.smallest_size);
        chain::seal::from_head(&chain, &head, clip, &facts, &mut sealer, &mut |done: Bytes, total: Bytes| {
            progress.update("seal", done.0, Some(total.0));
        })?;
        let sealed = sealer.finish()?;
        stop::point("commit.sealed");
        if sealed.exceptions == 0 && !record.chain.is_empty() && self.store.sealed_size(&record)? == record.virtual_size {
            return Ok(nothing(&record));
        }
        progress.update("sync", 0, None);
        self.keep(&txn, &path, &sealed, &facts)?;
        let entry = HistoryEntry::now("commit", ask.message.as_deref().unwrap_or(""));
        let record = txn.finish_commit(&sealed.digest, None, entry)?;
        self.index(|catalog| catalog.put_image(&record))?;
        txn.done()?;
        Ok(CommitReply {
            digest: Some(sealed.digest),
            delta_bytes: sealed.len,
            changed_bytes: Bytes(sealed.exceptions * facts.chunk_size.bytes().0),
            ..nothing(&record)
        })
    }

    /// The files of an image's disk.
    pub(super) fn disk_files(&self, record: &ImageRecord, read_only: bool) -> DiskFiles {
        DiskFiles::of(record, &self.store, self.store.head_path(&record.name), read_only)
    }

    /// An image's head, for reading. The caller has the image locked, or can bear that it changes.
    pub(super) fn open_head(&self, name: &ImageName) -> Result<Head<FileIo>, ServiceError> {
        open_head(&self.store.head_path(name))
    }
}

/// A head, for reading.
pub(super) fn open_head(path: &Path) -> Result<Head<FileIo>, ServiceError> {
    let named = |error: ServiceError| error.of(format!("head {}", path.display()));
    let file = File::open(path).map_err(|error| named(ServiceError::from_error(ErrorKind::Failed, &error)))?;
    Head::open_read_only(FileIo(file)).map_err(|error| named(error.into()))
}
