//! Objects that nobody refers to any more.
//!
//! Refuses to decide whether they should be kept for others; who calls it does. Invariant: counting and unlinking happen alone in the store, and a
//! verb links what it needs into its own folder under the same lock, so that nothing goes that somebody is about to use.

use super::error::{At, StoreError};
use super::objects::{ObjectInfo, ObjectKind, kind_of, object_name};
use super::parts::Part;
use super::{ImageRecord, Store, fs, stop};
use crate::ids::{Digest, ImageName, Sha256};
use crate::units::Bytes;
use rustix::fs::AtFlags;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What was, or in a dry run would be, collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    pub removed: Vec<Removed>,
    /// Of pulls that were given up, see [`GIVEN_UP_AFTER`](super::GIVEN_UP_AFTER).
    pub parts: Vec<Part>,
    /// What belonged to objects that are no longer there.
    pub orphans: Vec<PathBuf>,
    pub freed: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub kind: ObjectKind,
    /// What it took on disk, with what belongs to it.
    pub freed: Bytes,
}

impl Store {
    /// Removes the objects with one name that no image's record names either (an image may have a copy of its own, where no hardlink could be
    /// made), and manifests that no image has published; `keep` speaks for those that are to stay all the same.
    ///
    /// Errors: [`StoreError::Busy`] when others use the store without a pause.
    pub fn gc(&self, dry_run: bool, keep: &dyn Fn(&ObjectInfo) -> bool) -> Result<GcReport, StoreError> {
        let _alone = self.exclude(PATIENCE)?;
        let listing = self.images()?;
        let chains: BTreeSet<Digest> = listing.images.iter().flat_map(|image| image.chain.iter().copied()).collect();
        let published: BTreeSet<Sha256> = listing
            .images
            .iter()
            .filter_map(|image| image.published.map(|p| p.manifest))
            .collect();
        let parts = self.gc_parts(dry_run)?;
        stop::point("gc.parts");
        let mut report = GcReport {
            freed: Bytes(parts.iter().map(|part| part.freed.0).sum()),
            parts,
            ..GcReport::default()
        };
        let mut gone = BTreeSet::new();
        for object in self.objects()? {
            let named = match object.kind {
                ObjectKind::Delta(digest) => chains.contains(&digest),
                // An image that cannot be read may have published any.
                ObjectKind::Manifest(manifest) => !listing.unreadable.is_empty() || published.contains(&manifest),
            };
            if object.names > 1 || named || keep(&object) {
                continue;
            }
            let mut freed = object.allocated;
            // The object first: a delta without what belongs to it would not be whole, the other way round it is an orphan.
            if !dry_run {
                fs::unlink_if_there(&object.path)?;
                stop::point("gc.delta");
            }
            for path in self.beside(&object.kind) {
                freed = Bytes(freed.0 + discard(&path, dry_run)?.0);
                gone.insert(path);
            }
            report.freed = Bytes(report.freed.0 + freed.0);
            report.removed.push(Removed { kind: object.kind, freed });
        }
        for path in self.object_files()? {
            if !gone.contains(&path) && kind_of(&path).is_none() && self.is_orphan(&path, &report.parts)? {
                report.freed = Bytes(report.freed.0 + discard(&path, dry_run)?.0);
                report.orphans.push(path);
            }
        }
        stop::point("gc.done");
        Ok(report)
    }

    /// How many deltas only this image has, and their bytes. Counted by its links: to look through the whole store would cost more than all the
    /// rest of an `rm`. What the image that it was cloned from has as well needs no look.
    pub fn only_in(&self, record: &ImageRecord) -> Result<(u64, Bytes), StoreError> {
        let (mut count, mut bytes) = (0, 0);
        let objects = self.objects_dir();
        let shelves = std::fs::File::open(&objects).at("open", &objects)?;
        let cloned = record.history.iter().find(|entry| entry.verb == "clone");
        let source = cloned
            .and_then(|entry| ImageName::new(&entry.detail).ok())
            .filter(|name| *name != record.name);
        let shared = source.and_then(|name| self.image(&name).ok()).map_or(0, |source| {
            let pairs = source.chain.iter().zip(&record.chain);
            pairs.take_while(|(theirs, ours)| theirs == ours).count()
        });
        for digest in record.chain[shared..].iter().collect::<BTreeSet<_>>() {
            // Two names: the object's own, and this image's.
            let stat = rustix::fs::statat(&shelves, object_name(digest, "delta"), AtFlags::empty());
            let Some(stat) = stat.ok().filter(|stat| stat.st_nlink == 2) else {
                continue;
            };
            let beside = self.beside(&ObjectKind::Delta(*digest));
            count += 1;
            bytes += stat.st_blocks as u64 * 512 + beside.iter().map(|path| allocated(path).0).sum::<u64>();
        }
        Ok((count, Bytes(bytes)))
    }

    fn beside(&self, kind: &ObjectKind) -> Vec<PathBuf> {
        match kind {
            ObjectKind::Delta(digest) => {
                let paths = self.object_paths(digest);
                vec![paths.meta, paths.description, paths.torrent, paths.meta_torrent]
            }
            ObjectKind::Manifest(manifest) => vec![self.manifest_torrent_path(manifest)],
        }
    }

    /// Whether a file belongs to an object that is neither here nor arriving. What we do not know is nobody's orphan.
    fn is_orphan(&self, path: &Path, parts: &[Part]) -> Result<bool, StoreError> {
        let Some((name, suffix)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once('.'))
        else {
            return Ok(false);
        };
        let (Ok(digest), "meta" | "json" | "torrent" | "meta.torrent") = (name.parse::<Digest>(), suffix) else {
            return Ok(false);
        };
        let owners = [
            self.object_paths(&digest).delta,
            self.manifest_path(&Sha256(digest.0)),
            self.incoming_dir().join(format!("{digest}.part")),
        ];
        for owner in &owners {
            if !parts.iter().any(|gone| gone.path == *owner) && owner.try_exists().at("look for", owner)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Removes a file that may not be there; tells what it took.
fn discard(path: &Path, dry_run: bool) -> Result<Bytes, StoreError> {
    let freed = allocated(path);
    if !dry_run {
        fs::unlink_if_there(path)?;
    }
    Ok(freed)
}

fn allocated(path: &Path) -> Bytes {
    Bytes(std::fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512))
}
