//! What is left in `incoming/` of pulls that nobody has said again.
//!
//! Refuses to touch what a pull is at work on: it has the part's lock. Invariant: a part goes under its lock, which is what a pull that comes
//! back looks at it by, and the note of what is believed of it goes after it.

use super::error::{At, StoreError};
use super::{Store, fs};
use crate::units::Bytes;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A pull to which nothing has come for so long is given up.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// What was, or would be, removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub path: PathBuf,
    pub freed: Bytes,
}

impl Store {
    /// Removes the parts of pulls that were given up.
    pub(super) fn gc_parts(&self, dry_run: bool) -> Result<Vec<Part>, StoreError> {
        let incoming = self.incoming_dir();
        let mut gone = Vec::new();
        for dir in [incoming.join("small"), incoming] {
            let names = match fs::list(&dir) {
                Err(error) if error.is_missing() => continue,
                other => other?,
            };
            for path in names.into_iter().map(|name| dir.join(name)) {
                let is_part = matches!(path.extension().and_then(|ending| ending.to_str()), Some("part" | "blob"));
                match is_part.then(|| give_up(&path, dry_run)) {
                    Some(Ok(Some(freed))) => gone.push(Part { path, freed }),
                    Some(Err(error)) => tracing::warn!(part = %path.display(), cause = %error, "what came of a pull stays"),
                    _ => {}
                }
            }
        }
        gone.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(gone)
    }
}

/// What it took; `None` where it stays.
fn give_up(path: &Path, dry_run: bool) -> Result<Option<Bytes>, StoreError> {
    if !std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Ok(None);
    }
    let file = match fs::open_read(path) {
        // Gone meanwhile; or nothing that a pull has made.
        Err(error) if error.is_missing() || matches!(error, StoreError::Damaged { .. }) => return Ok(None),
        other => other?,
    };
    let meta = file.metadata().at("look at", path)?;
    let idle = meta.modified().ok().and_then(|when| SystemTime::now().duration_since(when).ok());
    if idle.is_none_or(|idle| idle < GIVEN_UP_AFTER) || !fs::try_lock(&file, path)? || !fs::is_at(&file, path)? {
        return Ok(None);
    }
    let units = path.with_extension("units");
    let beside = std::fs::symlink_metadata(&units).map_or(0, |meta| meta.blocks());
    if !dry_run {
        fs::unlink_if_there(path)?;
        fs::unlink_if_there(&units)?;
    }
    Ok(Some(Bytes((meta.blocks() + beside) * 512)))
}
