//! Loop devices, device-mapper and mounts, as the kernel has them now.
//!
//! Has not heard of deltas, images or stores: a name is a string that its caller chose. Invariant: what is found here is read from the
//! kernel each time; nothing is remembered.

pub mod dm;
pub mod loops;
pub mod mounts;

use std::path::PathBuf;

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct KernelError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub cause: std::io::Error,
}

impl KernelError {
    fn new(action: &'static str, path: impl Into<PathBuf>, cause: impl Into<std::io::Error>) -> KernelError {
        KernelError {
            action,
            path: path.into(),
            cause: cause.into(),
        }
    }

    /// Whether something had to be written to what is read-only: for a file system, that its journal has to be replayed first.
    pub fn is_read_only(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::EROFS)
    }

    /// Whether the kernel said that somebody uses the thing.
    pub fn is_busy(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::EBUSY)
    }
}
