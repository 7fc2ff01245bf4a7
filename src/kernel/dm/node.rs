//! Nodes below `/dev/mapper`: udev's links where it runs, ours where it does not.
//!
//! Refuses to know devices but by name and number. Invariant: a node that we make is renamed into place, so that nobody opens a number that
//! was somebody else's.

use super::DevNo;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const DIR: &str = "/dev/mapper";
const UDEV_SOCKET: &str = "/run/udev/control";
/// By then udev has made its link, or never will: our ioctls have waited for its rules already.
const UDEV_PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn udev_runs() -> bool {
    Path::new(UDEV_SOCKET).exists()
}

pub(super) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes a node, or waits for udev's. One that is there already and is the device stays.
pub(super) fn make(name: &str, device: DevNo) -> io::Result<PathBuf> {
    let (path, start) = (path(name), Instant::now());
    loop {
        if shows(&path, device) {
            return Ok(path);
        }
        if !udev_runs() || start.elapsed() > UDEV_PATIENCE {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    fs::create_dir_all(DIR)?;
    let fresh = Path::new(DIR).join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let number = makedev(device.major.into(), device.minor.into());
    mknod(&fresh, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    fs::rename(&fresh, &path)
        .inspect_err(|_| drop(fs::remove_file(&fresh)))
        .map(|()| path)
}

/// Removes a node of ours; a link is udev's.
pub(super) fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    match fs::symlink_metadata(&path) {
        Ok(data) if data.file_type().is_block_device() => fs::remove_file(&path),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
    .or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    })
}

fn shows(path: &Path, device: DevNo) -> bool {
    fs::metadata(path)
        .is_ok_and(|data| data.file_type().is_block_device() && data.rdev() == makedev(device.major.into(), device.minor.into()))
}
