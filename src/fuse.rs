//! A disk shown as one file: `<mount point>/disk`, which a loop device sits on.
//!
//! Refuses to know what the disk is made of, who mounts what above it, or how the process lives. Invariant: an `fsync` that was answered
//! with success was a successful flush of the disk, and each request has exactly one answer.

mod ahead;
mod disk;

use crate::blockio::BlockDevice;
use disk::DiskFs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file's name.
pub const FILE: &str = "disk";
/// Threads that a server runs: loop keeps that many requests of one device busy, and more gave nothing on the hosts measured.
pub const THREADS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    #[error("mount FUSE at {}", dir.display())]
    Mount { dir: PathBuf, source: io::Error },
    #[error("serve FUSE at {}", dir.display())]
    Serve { dir: PathBuf, source: io::Error },
}

/// A mounted server that does not answer yet: requests wait in the kernel.
pub struct Server {
    session: fuser::Session<DiskFs>,
    dir: PathBuf,
}

impl Server {
    /// Mounts at `dir`, an empty directory.
    pub fn mount(disk: Arc<dyn BlockDevice>, dir: &Path, threads: usize) -> Result<Server, FuseError> {
        use fuser::MountOption;
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName("blockbt".into()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
            MountOption::NoAtime,
            if disk.read_only() { MountOption::RO } else { MountOption::RW },
        ];
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        match fuser::Session::new(DiskFs::new(disk), dir, &config) {
            Ok(session) => Ok(Server { session, dir: dir.into() }),
            Err(source) => Err(FuseError::Mount { dir: dir.into(), source }),
        }
    }

    /// Answers until somebody unmounts the file system.
    pub fn run(self) -> Result<(), FuseError> {
        let Server { session, dir } = self;
        session.run().map_err(|source| FuseError::Serve { dir, source })
    }
}

/// [`Server::mount`] and [`Server::run`].
pub fn serve(disk: Arc<dyn BlockDevice>, dir: &Path, threads: usize) -> Result<(), FuseError> {
    Server::mount(disk, dir, threads)?.run()
}
