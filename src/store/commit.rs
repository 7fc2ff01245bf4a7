//! A head becomes the newest sealed delta of its image.
//!
//! Refuses to know how a head is sealed. Invariant: between any two steps the image reads the same: before the record names the new delta the head
//! says it, after that both say it, and the head goes last.

use super::error::{At, StoreError};
use super::image::{HeadRecord, HistoryEntry, ImageRecord, delta_name};
use super::txn::{FileIdentity, Intent, Txn};
use super::{Store, fs, stop};
use crate::ids::{Digest, ImageId, ImageName};
use std::path::PathBuf;

impl Store {
    /// Locks an image and says that its head will be sealed.
    ///
    /// Errors: [`StoreError::InUse`], [`StoreError::NotFound`], [`StoreError::NoHead`].
    pub fn begin_commit(&self, name: &ImageName) -> Result<(ImageRecord, Txn), StoreError> {
        let lock = self.lock_image(name)?;
        let record = self.image(name)?;
        if record.head.is_none() {
            return Err(StoreError::NoHead { name: name.clone() });
        }
        let path = self.head_path(name);
        let head = FileIdentity::of(&std::fs::symlink_metadata(&path).at("look at", &path)?);
        let intent = Intent::Commit {
            name: name.clone(),
            depth: record.chain.len(),
            head,
        };
        let txn = self.begin_with(intent, Some(lock))?;
        Ok((record, txn))
    }
}

impl Txn {
    /// Where [`Txn::finish_commit`] finds the head that follows, formatted and synced.
    pub fn next_head_path(&self) -> PathBuf {
        self.dir().join("head.delta")
    }

    /// Puts `sealed`, an object that this transaction holds, on top of the chain, and in the head's place the one at
    /// [`Txn::next_head_path`] when `next` describes it, or none.
    pub fn finish_commit(&self, sealed: &Digest, next: Option<HeadRecord>, entry: HistoryEntry) -> Result<ImageRecord, StoreError> {
        let Intent::Commit { name, depth, .. } = self.intent() else {
            unreachable!("only a transaction of begin_commit ends as one");
        };
        let store = self.store();
        let dir = store.image_dir(ImageId::of(name));
        let _shared = store.share()?;
        let link = dir.join(delta_name(*depth));
        fs::unlink_if_there(&link)?;
        fs::link_or_copy(&store.object_paths(sealed).delta, &link)?;
        fs::sync_dir(&dir)?;
        stop::point("commit.linked");
        let record = store.update_record(name, |record| {
            record.chain.push(*sealed);
            record.next_head = record.bounds();
            record.head = next;
            record.add_history(entry);
        })?;
        stop::point("commit.recorded");
        let head = dir.join("head.delta");
        match next {
            Some(_) => fs::rename(&self.next_head_path(), &head)?,
            None => fs::unlink_if_there(&head)?,
        }
        fs::sync_dir(&dir)?;
        stop::point("commit.head");
        Ok(record)
    }
}
