//! One daemon per store: the lock, and the socket made under it.
//!
//! Refuses to know HTTP. Invariant: a socket file is removed only by who holds the lock, so never a living daemon's.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

pub const SOCKET_NAME: &str = "daemon.sock";
pub const LOCK_NAME: &str = "daemon.lock";

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("a daemon for this store runs already: {} is locked", path.display())]
    Taken { path: PathBuf },
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The right to be this store's daemon, as long as it lives; the kernel gives it back when the process dies.
pub struct Claim {
    socket: PathBuf,
    lock: File,
}

impl Claim {
    /// Locks `run_dir`, making it first (0700) where it is not there.
    pub fn take(run_dir: &Path) -> Result<Claim, ClaimError> {
        let failed = |what, path: &Path| {
            let path = path.to_path_buf();
            move |source| ClaimError::Io { what, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(failed("directory", run_dir))?;
        std::fs::set_permissions(run_dir, Permissions::from_mode(0o700)).map_err(failed("directory", run_dir))?;
        let path = run_dir.join(LOCK_NAME);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("lock", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(ClaimError::Taken { path }),
            Err(error) => {
                return Err(ClaimError::Io {
                    what: "lock",
                    path,
                    source: error.into(),
                });
            }
        }
        Ok(Claim {
            socket: run_dir.join(SOCKET_NAME),
            lock,
        })
    }

    /// Listens. What a dead daemon left is replaced; nobody but the owner can connect at any time, as the directory is 0700.
    pub fn listen(&self) -> Result<UnixListener, ClaimError> {
        let failed = |source| ClaimError::Io {
            what: "socket",
            path: self.socket.clone(),
            source,
        };
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(failed)?;
        std::fs::set_permissions(&self.socket, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Under the lock still, so it is ours. A leftover does no harm: nobody answers there.
        let _ = std::fs::remove_file(&self.socket);
        // Closing alone would leave the lock to a child that another thread has forked and that has not reached its `exec`.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}
