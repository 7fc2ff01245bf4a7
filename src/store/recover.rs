//! What becomes of the work of dead processes: undone, or completed where the decisive step was taken.
//!
//! Refuses to touch what lives. Invariant: settling is idempotent, so that a crash in the middle of it, or an entry that a power cut brings back,
//! does no harm.

use super::error::{At, StoreError};
use super::flatten::LINK_DRAFT;
use super::lock::{ImageLock, Moment};
use super::txn::{FileIdentity, Intent, Live};
use super::{Store, fs, image};
use crate::ids::{ImageId, ImageName};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How long a start waits to be alone in the store when there is something to tidy up; the next start tries again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The image of a transaction that is settled.
enum Locked {
    /// The caller has it.
    Before,
    Now(#[expect(dead_code, reason = "it is held")] ImageLock),
    Missing,
}

impl Store {
    /// Settles what dead processes left; says whether there was anything. Costs two listings when nobody died.
    pub fn recover(&self) -> Result<bool, StoreError> {
        let all = self.unfinished()?;
        for id in &all {
            if let Err(error) = self.read_entry(id)
                && self.seems_dead(id)
            {
                tracing::warn!(txn = id, cause = %error, "unfinished work that nobody here can settle stays");
            }
        }
        match all.is_empty() {
            true => Ok(false),
            false => self.recover_with(None),
        }
    }

    /// The same at the cost of one look, for who has recovered the store before: whoever died since then has left a folder in `tmp/`. With the lock of
    /// an image, if the caller has one.
    pub fn recover_again(&self, lock: Option<&ImageLock>) -> Result<bool, StoreError> {
        let tmp = self.tmp_dir();
        // A directory has a name in each that is in it. Where the file system does not count them it says 1, or what is found at the next start.
        match std::fs::metadata(&tmp).at("look at", &tmp)?.nlink() {
            2 => Ok(false),
            _ => self.recover_with(lock),
        }
    }

    fn recover_with(&self, lock: Option<&ImageLock>) -> Result<bool, StoreError> {
        if !self.has_dead()? {
            return Ok(false);
        }
        let dead = match self.exclude(PATIENCE) {
            Err(StoreError::Busy { .. }) => return Ok(false),
            // Alone: nobody is between making a folder and locking its owner, and no draft outside such a folder is anybody's.
            Ok(_alone) => self.adopt_dead()?,
            Err(error) => return Err(error),
        };
        for (id, _owner) in &dead {
            match self.settle(id, lock) {
                Ok(()) => tracing::info!(txn = id, "settled what a dead process left"),
                Err(error) => tracing::warn!(txn = id, cause = %error, "unfinished work of a dead process stays"),
            }
        }
        Ok(!dead.is_empty())
    }

    /// Whether there may be something to settle. What we cannot read, as a newer version's, is nothing to wait for.
    pub(super) fn has_dead(&self) -> Result<bool, StoreError> {
        let all = self.unfinished()?;
        Ok(all.iter().any(|id| self.seems_dead(id) && self.read_entry(id).is_ok()))
    }

    /// Transactions that have a folder or an entry, but those of this process.
    fn unfinished(&self) -> Result<BTreeSet<String>, StoreError> {
        let folders = fs::list(&self.tmp_dir())?.into_iter().filter_map(|name| name.into_string().ok());
        let all: BTreeSet<String> = folders.chain(self.journal_ids()?).collect();
        Ok(&all - &Live::all())
    }

    /// A guess, for a moment's worth: whoever makes the folder may not have locked it yet, and may be removing it by now.
    fn seems_dead(&self, id: &str) -> bool {
        let path = self.txn_dir(id).join("owner");
        let Ok(owner) = fs::open_read(&path) else { return true };
        let free = fs::try_lock(&owner, &path).unwrap_or(false);
        drop(free.then(|| Moment(owner)));
        free
    }

    fn try_adopt(&self, id: &str) -> Result<Option<Moment>, StoreError> {
        let path = self.txn_dir(id).join("owner");
        let owner = fs::open_lock(&path)?;
        Ok((fs::try_lock(&owner, &path)? && fs::is_at(&owner, &path)?).then(|| Moment(owner)))
    }

    /// Takes over the transactions of the dead: with their owner's lock, so that no other sweep has them too.
    fn adopt_dead(&self) -> Result<Vec<(String, Moment)>, StoreError> {
        let mut dead = Vec::new();
        for id in self.unfinished()? {
            match self.adopt(&id) {
                Ok(owner) => dead.extend(owner.map(|owner| (id, owner))),
                Err(error) if error.is_missing() => {}
                // One is not all.
                Err(error) => tracing::warn!(txn = id, cause = %error, "unfinished work of a dead process stays"),
            }
        }
        Ok(dead)
    }

    fn adopt(&self, id: &str) -> Result<Option<Moment>, StoreError> {
        let dir = self.txn_dir(id);
        // What cannot be read cannot be settled: a folder of it would be there for ever, and looked at before each verb.
        let Ok(intent) = self.read_entry(id) else { return Ok(None) };
        match std::fs::symlink_metadata(&dir) {
            Ok(meta) if !meta.is_dir() => {
                fs::unlink_if_there(&dir)?;
                return Ok(None);
            }
            // Who died between the two last steps has left it empty, and there may be no room for an owner.
            Ok(_) if intent.is_none() && std::fs::remove_dir(&dir).is_ok() => return Ok(None),
            Ok(_) => {}
            Err(_) => fs::make_dir(&dir)?,
        }
        self.try_adopt(id)
    }

    /// Completes or undoes one transaction whose owner's lock the caller has, and forgets it. `lock` is an image's, if the caller has one.
    pub(super) fn settle(&self, id: &str, lock: Option<&ImageLock>) -> Result<(), StoreError> {
        let intent = self.read_entry(id)?;
        match &intent {
            Some(Intent::Commit { name, depth, head }) => self.settle_commit(id, name, *depth, *head, lock)?,
            Some(Intent::Flatten { name }) => self.settle_flatten(id, name, lock)?,
            Some(Intent::Rename { from, to }) => self.settle_rename(from, to)?,
            // What these made is whole since one rename, or still in their folder.
            Some(Intent::Create { .. } | Intent::Import { .. } | Intent::Clone { .. } | Intent::Grow { .. } | Intent::Shrink { .. }) => {}
            Some(Intent::Pull { .. }) => self.sweep_arrived()?,
            Some(Intent::Publish { .. } | Intent::Rm { .. }) | None => {}
        }
        let dir = self.txn_dir(id);
        // First of all, as there may be no room for the mark.
        let emptied = fs::empty_tree(&dir, "owner");
        if intent.is_some() || std::fs::symlink_metadata(dir.join("owner")).is_ok_and(|owner| owner.len() > 0) {
            self.mark_index_stale()?;
        }
        emptied?;
        // The folder last, as it is looked for.
        fs::unlink_if_there(&self.entry_path(id))?;
        fs::remove_tree(&dir, "owner")
    }

    /// Renamed directory, old record: writes the record. Otherwise the rename did not happen, or all of it did.
    fn settle_rename(&self, from: &ImageName, to: &ImageName) -> Result<(), StoreError> {
        match self.image(to) {
            // The journal gives the record its new name as it is read; this writes it down.
            Ok(_) => self.update_image(to, |record| record.name = to.clone()).map(drop),
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => {
                tracing::warn!(%from, %to, cause = %error, "a rename cannot be completed");
                Ok(())
            }
        }
    }

    /// The record is what was decided, one way or the other: the links in the image's directory follow it.
    fn settle_flatten(&self, id: &str, name: &ImageName, lock: Option<&ImageLock>) -> Result<(), StoreError> {
        match self.lock_if_there(name, lock)? {
            Locked::Missing => Ok(()),
            Locked::Before | Locked::Now(_) => self.align_links(&self.image(name)?, &self.txn_dir(id).join(LINK_DRAFT)),
        }
    }

    /// Recorded: the sealed head, if nobody has written to it since, gives way. Not recorded: the new delta's link goes, the head is what it was.
    fn settle_commit(
        &self,
        id: &str,
        name: &ImageName,
        depth: usize,
        head: FileIdentity,
        lock: Option<&ImageLock>,
    ) -> Result<(), StoreError> {
        let _ours = match self.lock_if_there(name, lock)? {
            Locked::Missing => return Ok(()),
            ours => ours,
        };
        let dir = self.image_dir(ImageId::of(name));
        let record = self.image(name)?;
        if record.chain.len() <= depth {
            for index in record.chain.len()..=depth {
                fs::unlink_if_there(&dir.join(image::delta_name(index)))?;
            }
            return Ok(());
        }
        let path = dir.join("head.delta");
        let unchanged = std::fs::symlink_metadata(&path).is_ok_and(|meta| FileIdentity::of(&meta) == head);
        if unchanged {
            // Over the chain with the new delta the old head says the same once more, so that either order of the two is right.
            let fresh = self.txn_dir(id).join("head.delta");
            if record.head.is_none() {
                fs::unlink_if_there(&path)?;
            } else if fresh.try_exists().at("look for", &fresh)? {
                fs::rename(&fresh, &path)?;
            }
            fs::sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Locks an image, unless `lock` is its own.
    fn lock_if_there(&self, name: &ImageName, lock: Option<&ImageLock>) -> Result<Locked, StoreError> {
        if let Some(lock) = lock
            && lock.is_of(&self.image_dir(ImageId::of(name)))?
        {
            return Ok(Locked::Before);
        }
        match self.lock_unused(name) {
            Err(StoreError::NotFound { .. }) => Ok(Locked::Missing),
            other => other.map(Locked::Now),
        }
    }
}
