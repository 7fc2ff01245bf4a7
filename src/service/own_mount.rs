//! Directories below `/run` where a verb mounts an image for itself.
//!
//! Refuses to mount anything. Invariant: a directory's name tells whose it is, and only empty ones are ever removed.

use super::ServiceError;
use super::mount::failed;
use crate::ids::{ImageId, ImageName};
use crate::store::Store;
use std::fs;
use std::path::{Path, PathBuf};

/// The verbs that mount for themselves: what the names begin with, before the number of the process and the image's id.
const VERBS: [&str; 2] = ["export", "resize"];

/// A directory to mount on, removed with the value.
pub(super) struct OwnMount {
    pub dir: PathBuf,
}

impl OwnMount {
    pub fn new(store: &Store, verb: &'static str, name: &ImageName) -> Result<OwnMount, ServiceError> {
        debug_assert!(VERBS.contains(&verb));
        let dir = store.run_dir().join(format!("{verb}-{}-{}", std::process::id(), ImageId::of(name)));
        fs::create_dir_all(&dir).map_err(|error| failed("make", &dir, &error))?;
        Ok(OwnMount { dir })
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), cause = %error, "a mount directory stays");
        }
    }
}

/// Removes the mount directories of the dead; what they had mounted went with their devices.
pub(super) fn sweep(store: &Store) {
    let Ok(entries) = fs::read_dir(store.run_dir()) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let words = name.to_str().map(|name| name.split('-').collect::<Vec<_>>());
        let Some([verb, pid, _image]) = words.as_deref() else { continue };
        if VERBS.contains(verb)
            && !Path::new("/proc").join(pid).exists()
            && let Err(error) = fs::remove_dir(entry.path())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %entry.path().display(), cause = %error, "a mount directory stays");
        }
    }
}
