//! A store's run directory, read once.
//!
//! Refuses to know the kernel. Invariant: it says what verbs have left a note of, so that its cost does not grow with what is attached by the kernel.

use super::{DOING, MAPPED, mapped_dir};
use crate::ids::ImageId;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What there is in a store's run directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// Images that user mode has a directory of.
    pub places: BTreeSet<ImageId>,
    /// Images that a verb of the kernel modes is at work on, or was when it died.
    pub marked: BTreeSet<ImageId>,
    /// What the kernel modes noted before a reboot.
    pub other_boots: Vec<PathBuf>,
}

/// Reads a run directory; one that is not there is empty.
pub fn list(run_dir: &Path) -> io::Result<Listing> {
    let mut found = Listing::default();
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    let this = mapped_dir(run_dir);
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if let Some(image) = name.strip_prefix(DOING) {
            found.marked.extend(image.parse::<ImageId>());
        } else if name.starts_with(MAPPED) {
            found.other_boots.extend(Some(run_dir.join(name)).filter(|dir| *dir != this));
        } else {
            found.places.extend(name.parse::<ImageId>());
        }
    }
    Ok(found)
}
