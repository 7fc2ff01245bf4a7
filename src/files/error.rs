//! What can go wrong with an archive or a tree; every message names the entry.

use crate::ids::clip;
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The entry is hostile, or of a kind that has no place here.
    #[error("\"{entry}\": {why}")]
    Refused { entry: String, why: String },
    #[error("not a tar header at offset {offset}: {why}{}", after(last))]
    Header { offset: u64, why: &'static str, last: String },
    #[error("archive ends in the middle of {}", if entry.is_empty() { "its first header".into() } else { format!("\"{entry}\"") })]
    Truncated { entry: String },
    #[error("archive cannot be read at offset {offset}{}", after(last))]
    Read {
        offset: u64,
        last: String,
        #[source]
        source: io::Error,
    },
    /// A step on the file system, on either side.
    #[error("\"{entry}\": {step}")]
    Step {
        entry: String,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("archive cannot be written")]
    Write {
        #[source]
        source: io::Error,
    },
}

fn after(last: &str) -> String {
    if last.is_empty() {
        String::new()
    } else {
        format!(", after \"{last}\"")
    }
}

/// A name from outside, fit for a message.
pub(super) fn shown(name: &[u8]) -> String {
    clip(&String::from_utf8_lossy(&name[..name.len().min(512)]))
}

impl FilesError {
    pub(super) fn refused(entry: &[u8], why: impl Into<String>) -> FilesError {
        FilesError::Refused {
            entry: shown(entry),
            why: why.into(),
        }
    }

    /// For `map_err`: what was done to which entry. A path that leads out through a link is told as such.
    pub(super) fn step<E: Into<io::Error>>(entry: &[u8], step: &'static str) -> impl FnOnce(E) -> FilesError {
        let entry = shown(entry);
        move |source| {
            let source = source.into();
            match source.raw_os_error() {
                Some(libc::EXDEV) => FilesError::Refused {
                    entry,
                    why: "its path leads out of the image through a symbolic link or a mount".into(),
                },
                Some(libc::ELOOP) => FilesError::Refused {
                    entry,
                    why: "its path goes through a symbolic link that cannot be followed".into(),
                },
                _ => FilesError::Step { entry, step, source },
            }
        }
    }

    /// The full disk is the one failure a caller has advice for.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, FilesError::Step { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}
