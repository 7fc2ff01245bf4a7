//! An image whose disk becomes larger or smaller.
//!
//! Refuses to know file systems, and what is in a head. Invariant: a larger disk is one change of the record; a smaller one, which has another head
//! as well, is one exchange of the image's directory for one that was prepared: so nobody ever sees the new size with the old head.

use super::error::{At, StoreError};
use super::image::{HeadRecord, HistoryEntry, ImageRecord};
use super::lock::ImageLock;
use super::make::make_head;
use super::txn::{Intent, Txn};
use super::{HeadBounds, Store, fs, stop};
use crate::ids::ImageId;
use crate::units::{Bytes, ChunkSize};
use rustix::fs::FlockOperation;
use std::path::PathBuf;

impl Store {
    /// Says that the disk of `record`, whose image `lock` is, will have `size`.
    pub fn begin_resize(&self, lock: ImageLock, record: &ImageRecord, size: Bytes) -> Result<Txn, StoreError> {
        let name = record.name.clone();
        let intent = match size < record.virtual_size {
            true => Intent::Shrink { name },
            false => Intent::Grow { name },
        };
        self.begin_with(intent, Some(lock))
    }

    /// The size of the disk that the sealed deltas of an image are, without what its head makes of it: that of its newest delta.
    pub fn sealed_size(&self, record: &ImageRecord) -> Result<Bytes, StoreError> {
        match record.chain.last() {
            Some(newest) => Ok(self.description(newest)?.virtual_size_bytes),
            None => Ok(record.virtual_size),
        }
    }
}

impl Txn {
    /// The lock of the image that this transaction changes.
    pub fn image_lock(&self) -> &ImageLock {
        self.lock.as_ref().expect("the verb began with the image's lock")
    }

    /// A larger disk, and a head for it, within `bounds`, if there is none: durable when it returns.
    pub fn finish_grow(&self, size: Bytes, bounds: HeadBounds, entry: HistoryEntry) -> Result<ImageRecord, StoreError> {
        let Intent::Grow { name } = self.intent() else {
            unreachable!("only a transaction that grows ends as one");
        };
        let store = self.store();
        let mut before = store.image(name)?;
        before.set_bounds(bounds);
        let head = match before.head {
            Some(head) => head,
            None => {
                let path = store.head_path(name);
                // One that the record does not name is left from a power cut, or from a commit: it holds nothing.
                fs::unlink_if_there(&path)?;
                let head = before.new_head(ChunkSize::HEAD);
                // What it reserves is for the larger disk; the smallest size is not in the file.
                let reserved = HeadRecord {
                    smallest_size: size,
                    ..head
                };
                let dir = store.image_dir(before.id());
                let make = || fs::sync_all(&[&make_head(&path, &reserved)?], &fs::open_dir(&dir)?, &dir);
                if let Err(error) = make() {
                    // It may have part of the space that it was to have.
                    fs::unlink_if_there(&path)?;
                    return Err(error);
                }
                head
            }
        };
        let record = store.update_image(name, |record| {
            record.virtual_size = size;
            record.head = Some(head);
            record.set_bounds(bounds);
            record.add_history(entry);
        })?;
        stop::point("grow.recorded");
        Ok(record)
    }

    /// Where a head is worked on while its image still has the old one.
    pub fn draft_dir(&self) -> PathBuf {
        self.dir().join("draft")
    }

    /// Makes that folder, with a copy of the image's head, or an empty one. Not durable: nobody asks for it after a crash.
    pub fn draft_head(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let dir = self.draft_dir();
        fs::make_dir(&dir)?;
        let path = dir.join("head.delta");
        match record.head {
            Some(_) => fs::copy_unsynced(&self.store().head_path(&record.name), &path, 0o600)?,
            None => {
                let head = HeadRecord {
                    limit_bytes: None,
                    reserve: false,
                    ..record.new_head(ChunkSize::HEAD)
                };
                make_head(&path, &head)?;
            }
        }
        stop::point("shrink.copied");
        Ok(())
    }

    /// Puts the folder of [`Txn::new_image`], in which the new head is, in the place of the image's own.
    pub fn finish_refit(&self, size: Bytes, head: HeadRecord, entry: Option<HistoryEntry>) -> Result<ImageRecord, StoreError> {
        let (Intent::Grow { name } | Intent::Shrink { name }) = self.intent() else {
            unreachable!("only a transaction of begin_resize ends as one");
        };
        let store = self.store();
        let (place, ready) = (store.image_dir(ImageId::of(name)), self.image_dir());
        let shared = store.share()?;
        // Until the exchange nobody changes the record that the new one is made from.
        let folder = std::fs::File::open(&place).at("open", &place)?;
        fs::wait_lock(&folder, FlockOperation::LockExclusive, &place)?;
        let mut record = store.image(name)?;
        record.virtual_size = size;
        record.head = Some(head);
        record.set_bounds(head.bounds());
        if let Some(entry) = entry {
            record.add_history(entry);
        }
        let file = fs::open_read(&ready.join("head.delta"))?;
        self.complete_image(&shared, &record, Some(file))?;
        stop::point("shrink.prepared");
        fs::exchange(&ready, &place)?;
        fs::sync_parent(&place)?;
        stop::point("shrink.exchanged");
        Ok(record)
    }
}
