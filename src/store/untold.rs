//! What the catalogue has not heard: of images that were cloned, renamed or removed without opening it.
//!
//! Refuses to know the catalogue. Invariant: from before a change until it is told, its entry is the transaction's or, once the work is whole, in
//! `catalog.untold/`. A power cut may take it: after that the catalogue is made again anyway.

use super::error::StoreError;
use super::txn::{Intent, Txn, read_entry_at};
use super::{Store, fs, stop};
use crate::ids::ImageName;
use std::ffi::OsString;
use std::path::PathBuf;

/// A change of images that the catalogue does not know.
#[derive(Debug)]
pub struct Untold {
    path: PathBuf,
    /// `None` where it cannot be read: it may be any.
    pub names: Option<Vec<ImageName>>,
}

impl Store {
    /// What [`Txn::done_untold`] has left for the catalogue.
    ///
    /// To be listed before the images are looked at, and to be given to [`Store::told`] when what they are now is in the catalogue, on disk.
    pub fn untold(&self) -> Result<Vec<Untold>, StoreError> {
        let dir = self.untold_dir();
        let read = |name| {
            let path = dir.join(name);
            let names = read_entry_at(&path).ok().flatten().map(|intent| intent.names());
            Untold { path, names }
        };
        Ok(self.untold_files()?.into_iter().map(read).collect())
    }

    pub fn untold_count(&self) -> Result<usize, StoreError> {
        Ok(self.untold_files()?.len())
    }

    pub fn told(&self, all: Vec<Untold>) -> Result<(), StoreError> {
        all.iter().try_for_each(|untold| fs::unlink_if_there(&untold.path))
    }

    fn untold_files(&self) -> Result<Vec<OsString>, StoreError> {
        match fs::list(&self.untold_dir()) {
            Err(error) if error.is_missing() => Ok(Vec::new()),
            other => other,
        }
    }

    fn untold_dir(&self) -> PathBuf {
        self.root().join("catalog.untold")
    }
}

impl Txn {
    /// The work is whole, and the catalogue hears of it from whoever opens it next: opening it takes longer than all the rest of a clone.
    pub fn done_untold(mut self) -> Result<(), StoreError> {
        stop::step(self.verb(), "done");
        if let Intent::Rm { .. } = self.intent() {
            // Nobody finds the image any more; and a file that goes while it is open costs the file system more.
            self.lock = None;
            // As long as the folder has its owner nobody else takes it for a dead one's.
            fs::remove_tree(&self.image_dir(), "")?;
        }
        let dir = self.store().untold_dir();
        let tell = || fs::rename(&self.entry_path(), &dir.join(self.id()));
        let told = tell().or_else(|error| match error.is_missing() {
            true => fs::ensure_dir(&dir).and_then(|()| tell()),
            false => Err(error),
        });
        match told {
            Err(error) if error.is_full() => self.store().mark_index_stale()?,
            other => other?,
        }
        self.done_quietly()
    }
}
