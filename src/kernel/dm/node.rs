//! Nodes below `/dev/mapper`: udev's links where it runs, ours where it does not.
//!
//! Refuses to know devices but by name and number. Invariant: a node that we make takes the place of another one in one step, so that
//! nobody opens a number that was somebody else's.

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
    let path = path(name);
    if udev_runs() && udev_makes(&path, device) {
        return Ok(path);
    }
    let number = makedev(device.major.into(), device.minor.into());
    let make = |path: &Path| mknod(path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number).map_err(io::Error::from);
    match make(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(DIR).and_then(|()| make(&path))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !shows(&path, device) => {
            let fresh = Path::new(DIR).join(format!(".{name}.{}", std::process::id()));
            let _ = fs::remove_file(&fresh);
            make(&fresh)?;
            fs::rename(&fresh, &path).inspect_err(|_| drop(fs::remove_file(&fresh)))?;
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    Ok(path)
}

/// Whether it does so in time.
fn udev_makes(path: &Path, device: DevNo) -> bool {
    let start = Instant::now();
    while !shows(path, device) {
        if start.elapsed() > UDEV_PATIENCE {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
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
