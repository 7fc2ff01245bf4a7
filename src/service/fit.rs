//! The file system on a disk that changes its size.
//!
//! Refuses to know whose disk it is. Invariant: a file system that is in use grows through its own journal, so that a power cut leaves it whole;
//! one becomes smaller only where it is not mounted, and there nothing is safe: who calls has a copy.

use super::tool::{Tool, ToolError};
use crate::blockio::{FileIo, ReadAt};
use crate::sys;
use crate::units::{Bytes, SECTOR};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

const RESIZE2FS: Tool = Tool {
    program: "resize2fs",
    package: "e2fsprogs",
    fails_from: 1,
};
/// 1: it has mended something, 2: which a mounted root file system would have to be told.
const E2FSCK: Tool = Tool {
    program: "e2fsck",
    package: "e2fsprogs",
    fails_from: 4,
};
const XFS_GROWFS: Tool = Tool {
    program: "xfs_growfs",
    package: "xfsprogs",
    fails_from: 1,
};

#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("its file system has errors that are not mended unasked: attach it and run e2fsck")]
    Damaged(#[source] ToolError),
    #[error("its file system needs at least {minimum} ({} bytes)", minimum.0)]
    TooSmall { minimum: Bytes },
    #[error("resize2fs -P says \"{said}\", and no number of blocks")]
    Unknown { said: String },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Whether a file system of this name can be made to fit.
pub fn is_known(file_system: &str) -> bool {
    matches!(file_system, "ext4" | "xfs")
}

/// Errors: what [`grow`] will need is not installed.
pub fn can_grow(file_system: &str) -> Result<(), FitError> {
    Ok(grower(file_system).must_be_there()?)
}

fn grower(file_system: &str) -> Tool {
    match file_system {
        "xfs" => XFS_GROWFS,
        _ => RESIZE2FS,
    }
}

/// What it is to be mounted with to grow.
pub fn options(file_system: &str) -> &'static str {
    match file_system {
        // Clones of one image have the same UUID.
        "xfs" => "nouuid",
        // New inode tables are zeroed at once, which costs nothing where the disk is all zeros, and not bit by bit by whoever mounts it next.
        _ => "noinit_itable",
    }
}

/// Makes a mounted file system as large as its device. One that is so large already stays as it is.
pub fn grow(file_system: &str, device: &Path, dir: &Path) -> Result<(), FitError> {
    let open = |path: &Path| {
        File::open(path).map_err(|source| FitError::Io {
            doing: "open",
            path: path.into(),
            source,
        })
    };
    let root = open(dir)?;
    match file_system {
        "xfs" => XFS_GROWFS.run(&[Path::new("-d"), dir])?,
        _ => RESIZE2FS.run(&[device])?,
    };
    rustix::fs::syncfs(&root).map_err(|errno| FitError::Io {
        doing: "sync",
        path: dir.into(),
        source: errno.into(),
    })
}

/// Gives an ext4 that is not mounted another size, after a check that replays its journal. Returns the least size it could have had.
///
/// Errors: [`FitError::TooSmall`], and then it is as it was; after any other it may be in pieces.
pub fn refit_ext4(device: &Path, size: Bytes) -> Result<Bytes, FitError> {
    let io = |doing| {
        let path = device.to_path_buf();
        move |source| FitError::Io { doing, path, source }
    };
    // What the kernel could not write is told to those who had the device open since before.
    let watch = File::open(device).map_err(io("open"))?;
    let watch = FileIo(watch);
    E2FSCK.run(&[Path::new("-fp"), device]).map_err(|error| match error {
        ToolError::Failed { .. } => FitError::Damaged(error),
        other => other.into(),
    })?;
    let mut log_size = [0; 4];
    // The superblock is at 1024, s_log_block_size at its byte 24.
    watch.read_at(&mut log_size, Bytes(1024 + 24)).map_err(io("read"))?;
    let said = RESIZE2FS.run(&[Path::new("-P"), device])?;
    let blocks = || {
        said.trim()
            .rsplit_once(": ")?
            .1
            .parse::<u64>()
            .ok()?
            .checked_shl(10 + u32::from_le_bytes(log_size))
    };
    let minimum = Bytes(blocks().ok_or_else(|| FitError::Unknown { said: said.trim().into() })?);
    let is_smaller = size < sys::block::size(&watch.0).map_err(io("measure"))?;
    if is_smaller && size < minimum {
        return Err(FitError::TooSmall { minimum });
    }
    RESIZE2FS.run(&[device, Path::new(&format!("{}s", size.0 / SECTOR))])?;
    watch.0.sync_all().map_err(io("sync"))?;
    Ok(minimum)
}
