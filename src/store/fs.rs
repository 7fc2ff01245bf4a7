//! The few things that a store does to files: bounded reads, durable writes, renames that claim, copies that keep holes.
//!
//! Knows no layout. Invariant: nothing here follows a symbolic link at the end of a path, or waits for what is not a file.

use super::error::{At, StoreError};
use crate::units::Bytes;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use std::ffi::OsString;
use std::fs::{DirEntry, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Room for most of the small files that are read as a whole.
const USUAL_FILE: usize = 16 << 10;

/// Random bytes for a name that nobody else has.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux's random source never fails once it has started");
    bytes
}

/// Opens a plain file for reading.
pub fn open_read(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).at("open", path)?;
    let file = File::from(fd);
    if !file.metadata().at("look at", path)?.is_file() {
        return Err(StoreError::Damaged {
            path: path.into(),
            why: "not a plain file".into(),
        });
    }
    Ok(file)
}

/// All of a small file. Errors: [`StoreError::TooLarge`] past `max` bytes, before they are read.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, StoreError> {
    let file = open_read(path)?;
    // With room from the start it is one read, and not one for each doubling.
    let mut bytes = Vec::with_capacity(USUAL_FILE.min(max as usize + 1));
    (&file).take(max + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > max {
        let len = Bytes(file.metadata().at("look at", path)?.len());
        return Err(StoreError::TooLarge {
            path: path.into(),
            len,
            max: Bytes(max),
        });
    }
    Ok(bytes)
}

/// Writes a file of our own, over what a crash left there, and syncs it; its directory is the caller's.
pub fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    write_then(path, bytes, mode, File::sync_all)
}

/// The same for a file that [`sync_all`] syncs later, before anybody relies on it.
pub fn write_unsynced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    write_then(path, bytes, mode, |_| Ok(()))
}

fn write_then(path: &Path, bytes: &[u8], mode: u32, finish: impl FnOnce(&File) -> io::Result<()>) -> Result<(), StoreError> {
    unlink_if_there(path)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .at("make", path)?;
    let written = file.write_all(bytes).and_then(|()| finish(&file));
    if written.is_err() {
        unlink_if_there(path)?;
    }
    written.at("write", path)
}

/// Replaces `path` with `bytes`, all of them or none; durable when it returns.
pub fn replace(path: &Path, draft: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    write_synced(draft, bytes, mode)?;
    if let Err(error) = rename(draft, path) {
        unlink_if_there(draft)?;
        return Err(error);
    }
    sync_parent(path)
}

/// Syncs new files and then the directories that name them: durable when it returns. All of them are on their way to disk before the first is
/// waited for, so that the file system writes its own journal once and not once per file.
pub fn sync_all(files: &[&Path], dirs: &[&Path]) -> Result<(), StoreError> {
    let mut open = Vec::with_capacity(files.len());
    for path in files {
        let file = open_read(path)?;
        // Only for speed, and not every file system can.
        let _not_supported = crate::sys::writeback::start(&file);
        open.push((path, file));
    }
    for (path, file) in open {
        file.sync_all().at("sync", path)?;
    }
    dirs.iter().try_for_each(|dir| sync_dir(dir))
}

pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).at("rename to", to)
}

/// A rename that replaces nothing: who comes first has the name.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), StoreError> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).at("rename to", to)
}

/// Two names change places, at once. Errors: also where the file system cannot do that.
pub fn exchange(a: &Path, b: &Path) -> Result<(), StoreError> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).at("exchange for a prepared one", b)
}

pub fn unlink_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// Removes a tree, or what another process that removes it too has left. `last` goes after everything else; who puts it back meanwhile takes the
/// rest over.
pub fn remove_tree(path: &Path, last: &str) -> Result<(), StoreError> {
    let is_gone = |error: &StoreError| error.is_missing();
    let entries: Vec<DirEntry> = match std::fs::read_dir(path).and_then(Iterator::collect).at("list", path) {
        Err(error) if is_gone(&error) => return Ok(()),
        other => other?,
    };
    for entry in entries.iter().filter(|entry| entry.file_name() != last) {
        let kind = entry.file_type();
        let entry = entry.path();
        match kind {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(kind) if kind.is_dir() => remove_tree(&entry, "")?,
            Ok(_) => unlink_if_there(&entry)?,
            Err(error) => return Err(error).at("look at", &entry),
        }
    }
    if !last.is_empty() {
        unlink_if_there(&path.join(last))?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && !last.is_empty() => Ok(()),
        other => other.at("remove", path),
    }
}

pub fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).at("sync", path)
}

pub fn sync_parent(path: &Path) -> Result<(), StoreError> {
    sync_dir(path.parent().expect("a path in a store has a parent"))
}

/// The names in a directory.
pub fn list(path: &Path) -> Result<Vec<OsString>, StoreError> {
    let entries = std::fs::read_dir(path).at("list", path)?;
    entries.map(|entry| Ok(entry.at("list", path)?.file_name())).collect()
}

/// Makes a directory unless it is there; durable when it returns.
pub fn ensure_dir(path: &Path) -> Result<(), StoreError> {
    match make_dir(path) {
        Err(error) if error.is_exists() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

pub fn make_dir(path: &Path) -> Result<(), StoreError> {
    rustix::fs::mkdir(path, Mode::RWXU).at("make", path)
}

/// Whether the lock was free; the caller's file then has it.
pub fn try_lock(file: &File, path: &Path) -> Result<bool, StoreError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        other => other.map(|()| true).at("lock", path),
    }
}

/// Waits for a lock that is only held for moments.
pub fn wait_lock(file: &File, operation: FlockOperation, path: &Path) -> Result<(), StoreError> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)).at("lock", path)
}

/// Opens a lock file, makes it when need be.
pub fn open_lock(path: &Path) -> Result<File, StoreError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .at("open", path)
}

/// Whether `file` is what `path` names now.
pub fn is_at(file: &File, path: &Path) -> Result<bool, StoreError> {
    let ours = file.metadata().at("look at", path)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other
            .at("look at", path)
            .map(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())),
    }
}

/// A second name for a file; where the file system cannot give one (`EMLINK`, `EXDEV`), a reflink or a copy.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
        Err(errno @ (rustix::io::Errno::MLINK | rustix::io::Errno::XDEV)) => {
            tracing::warn!(from = %from.display(), to = %to.display(), cause = %errno, "a copy in place of a hardlink");
            copy(from, to, 0o400)
        }
        other => other.at("link", to),
    }
}

/// A copy with the same holes, durable when it returns: a reflink where the file system can.
pub fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), StoreError> {
    copy_then(from, to, mode, File::sync_all)
}

/// The same, as durable as any file that nobody syncs.
pub fn copy_unsynced(from: &Path, to: &Path, mode: u32) -> Result<(), StoreError> {
    copy_then(from, to, mode, |_| Ok(()))
}

fn copy_then(from: &Path, to: &Path, mode: u32, finish: impl FnOnce(&File) -> io::Result<()>) -> Result<(), StoreError> {
    let source = open_read(from)?;
    let target = File::options().write(true).create_new(true).mode(mode).open(to).at("make", to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        copy_data(&source, &target).at("copy to", to)?;
    }
    finish(&target).at("sync", to)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    use rustix::fs::SeekFrom;
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut buffer = vec![0; 1 << 20];
    let mut end = 0;
    while end < len {
        let mut at = match rustix::fs::seek(source, SeekFrom::Data(end)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            other => other?,
        };
        end = rustix::fs::seek(source, SeekFrom::Hole(at))?.min(len);
        while at < end {
            let part = buffer.len().min((end - at) as usize);
            source.read_exact_at(&mut buffer[..part], at)?;
            target.write_all_at(&buffer[..part], at)?;
            at += part as u64;
        }
    }
    Ok(())
}
