//! Loop devices, device-mapper and mounts, as the kernel has them now.
//!
//! Has not heard of deltas, images or stores: a name is a string that its caller chose. Invariant: what is found here is read from the
//! kernel each time; nothing is remembered.

pub mod dm;
pub mod loops;
pub mod mounts;

use std::path::PathBuf;
use std::time::Duration;

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

/// What is left of a wait for somebody else, in pauses and not by the clock: while the machine stands still, nobody else gets on either.
struct Patience {
    left: Duration,
    pause: Duration,
}

impl Patience {
    fn new(left: Duration) -> Patience {
        let pause = Duration::from_micros(200);
        Patience { left, pause }
    }

    /// A pause, each a longer one up to 20 ms; `false` when there is no patience left.
    fn pause(&mut self) -> bool {
        if self.left.is_zero() {
            return false;
        }
        std::thread::sleep(self.pause);
        self.left = self.left.saturating_sub(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(20));
        true
    }
}
