//! The oldest deltas of an image become one new base.
//!
//! Refuses to know how that base is made. Invariant: the record says which deltas the image has, and readers open those as objects, so that the
//! image reads the same at every moment; the links in its directory follow the record, and until they have, what the record names is not collected.

use super::error::{At, StoreError};
use super::image::{HistoryEntry, ImageRecord, delta_name};
use super::txn::{Intent, Txn};
use super::{Store, fs, stop};
use crate::ids::{Digest, ImageName};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// In a transaction's folder: a link on its way into an image's directory.
pub(super) const LINK_DRAFT: &str = "link";

impl Store {
    /// Locks an image and says that all its sealed deltas but the newest `keep` will become one. No transaction where that would change nothing.
    ///
    /// Errors: [`StoreError::InUse`], [`StoreError::NotFound`].
    pub fn begin_flatten(&self, name: &ImageName, keep: usize) -> Result<(ImageRecord, Option<Txn>), StoreError> {
        let lock = self.lock_image(name)?;
        let record = self.image(name)?;
        if record.chain.len().saturating_sub(keep) < 2 {
            return Ok((record, None));
        }
        let txn = self.begin_with(Intent::Flatten { name: name.clone() }, Some(lock))?;
        Ok((record, Some(txn)))
    }

    /// Makes the links in an image's directory those of its record. Idempotent. A chain that became shorter is gone through upward: each of its
    /// deltas moves down, and so has its new link before its old one goes. `draft` is a free name on the store's file system.
    pub(super) fn align_links(&self, record: &ImageRecord, draft: &Path) -> Result<(), StoreError> {
        let dir = self.image_dir(record.id());
        for (index, digest) in record.chain.iter().enumerate() {
            let (object, link) = (self.object_paths(digest).delta, dir.join(delta_name(index)));
            if is_same_file(&object, &link)? {
                continue;
            }
            fs::unlink_if_there(draft)?;
            match fs::link_or_copy(&object, draft) {
                // The image may have the only copy of it, under a name that is right or was: `check` says so.
                Err(error) if error.is_missing() => {
                    tracing::warn!(image = %record.name, %digest, "an object is missing: its link stays as it is");
                    return Ok(());
                }
                other => other?,
            }
            fs::rename(draft, &link)?;
            stop::point("flatten.relinked");
        }
        fs::sync_dir(&dir)?;
        for name in fs::list(&dir)? {
            let index = name.to_str().and_then(|name| name.strip_suffix(".delta")?.parse().ok());
            if index.is_some_and(|index: usize| index >= record.chain.len() && *name == *delta_name(index)) {
                fs::unlink_if_there(&dir.join(name))?;
            }
        }
        fs::sync_dir(&dir)
    }
}

impl Txn {
    /// Puts `base`, an object that this transaction holds, in the place of all deltas but the newest `keep`. What was published of the old chain
    /// is published no more; returns also whether something was.
    pub fn finish_flatten(&self, base: &Digest, keep: usize, entry: HistoryEntry) -> Result<(ImageRecord, bool), StoreError> {
        let Intent::Flatten { name } = self.intent() else {
            unreachable!("only a transaction of begin_flatten ends as one");
        };
        let store = self.store();
        let _shared = store.share()?;
        let mut unpublished = false;
        let record = store.update_record(name, |record| {
            let replaced = record.chain.len().saturating_sub(keep);
            record.chain.splice(..replaced, [*base]);
            unpublished = record.published.take().is_some();
            record.add_history(entry);
        })?;
        stop::point("flatten.recorded");
        store.align_links(&record, &self.dir().join(LINK_DRAFT))?;
        stop::point("flatten.aligned");
        Ok((record, unpublished))
    }
}

/// Whether both names are there, and of one file.
fn is_same_file(a: &Path, b: &Path) -> Result<bool, StoreError> {
    let identity = |path: &Path| match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.at("look at", path).map(|meta| Some((meta.dev(), meta.ino()))),
    };
    let (a, b) = (identity(a)?, identity(b)?);
    Ok(a.is_some() && a == b)
}
