//! The few things that a store does to files: bounded reads, durable writes, renames that claim, copies that keep holes.
//!
//! Knows no layout. Invariant: nothing here follows a symbolic link at the end of a path, or waits for what is not a file.

use super::error::{At, StoreError};
use crate::units::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Room for the entries of a directory that are read at once.
const ENTRIES: usize = 16 << 10;

/// Random bytes for a name that nobody else has.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux's random source never fails once it has started");
    bytes
}

/// Opens a plain file for reading.
pub fn open_read(path: &Path) -> Result<File, StoreError> {
    open_sized(path).map(|(file, _)| file)
}

/// The same, and how long it is.
fn open_sized(path: &Path) -> Result<(File, u64), StoreError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).at("open", path)?;
    let file = File::from(fd);
    let meta = file.metadata().at("look at", path)?;
    if !meta.is_file() {
        return Err(StoreError::Damaged {
            path: path.into(),
            why: "not a plain file".into(),
        });
    }
    Ok((file, meta.len()))
}

/// All of a small file, that nobody changes: what is read is replaced, never written to. Errors: [`StoreError::TooLarge`] past `max` bytes, before
/// they are read.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, StoreError> {
    let (file, len) = open_sized(path)?;
    if len > max {
        return Err(StoreError::TooLarge {
            path: path.into(),
            len: Bytes(len),
            max: Bytes(max),
        });
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).at("read", path)?;
    Ok(bytes)
}

/// A directory of our own, to work in by names: the kernel does not walk a long path then for each.
pub fn open_dir(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from).at("open", path)
}

/// Writes a file of our own, over what a crash left there, and syncs it; its directory is the caller's.
pub fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    unlink_if_there(path)?;
    let written = write_new(path, bytes, mode).and_then(|file| file.sync_all().at("write", path));
    if written.is_err() {
        unlink_if_there(path)?;
    }
    written
}

/// Writes a file where there is none, for [`sync_all`] to sync before anybody relies on it.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<File, StoreError> {
    let made = File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = made.at("make", path)?;
    file.write_all(bytes).at("write", path)?;
    Ok(file)
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

/// Syncs new files and then the directory that names them: durable when it returns. All of them are on their way to disk before the first is
/// waited for, so that the file system writes its own journal once and not once per file.
pub fn sync_all(files: &[&File], dir: &File, path: &Path) -> Result<(), StoreError> {
    // The first is waited for at once. Only for speed, and not every file system can.
    for file in &files[1..] {
        let _not_supported = crate::sys::writeback::start(file);
    }
    files.iter().chain([&dir]).try_for_each(|file| file.sync_all()).at("sync", path)
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
    empty_tree(path, last)?;
    if !last.is_empty() {
        unlink_if_there(&path.join(last))?;
    }
    match remove_dir(path)? {
        true => Ok(()),
        false if !last.is_empty() => Ok(()),
        false => Err(Errno::NOTEMPTY).at("remove", path),
    }
}

/// Removes what is in a tree, but `last`.
pub fn empty_tree(path: &Path, last: &str) -> Result<(), StoreError> {
    let dir = match open_dir(path) {
        Err(error) if error.is_missing() => return Ok(()),
        other => other?,
    };
    let unlink = |name: &OsStr| match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        // Not every file system tells in its listing.
        Err(Errno::ISDIR) => remove_tree(&path.join(name), ""),
        other => other.at("remove", &path.join(name)),
    };
    for (name, kind) in entries(&dir, path)?.iter().filter(|(name, _)| name != last) {
        match kind {
            FileType::Directory => remove_tree(&path.join(name), "")?,
            _ => unlink(name)?,
        }
    }
    Ok(())
}

/// Removes an empty directory, if it is there; whether it was empty.
pub fn remove_dir(path: &Path) -> Result<bool, StoreError> {
    match rustix::fs::rmdir(path) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOENT) => Ok(true),
        other => other.map(|()| true).at("remove", path),
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
    // Of a pipe it would wait for the other end.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map(File::from).at("list", path)?;
    Ok(entries(&dir, path)?.into_iter().map(|(name, _)| name).collect())
}

fn entries(dir: &File, path: &Path) -> Result<Vec<(OsString, FileType)>, StoreError> {
    let mut buffer = Vec::with_capacity(ENTRIES);
    let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.at("list", path)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push((OsStr::from_bytes(name).into(), entry.file_type()));
        }
    }
    Ok(found)
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
        Err(Errno::WOULDBLOCK) => Ok(false),
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

/// A second name for a file, from one open directory into another.
pub fn link(from: &File, old: &str, to: &File, new: &str) -> Result<(), Errno> {
    rustix::fs::linkat(from, old, to, new, AtFlags::empty())
}

/// A second name for a file; where the file system cannot give one (`EMLINK`, `EXDEV`), a reflink or a copy.
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
        Err(errno @ (Errno::MLINK | Errno::XDEV)) => {
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
            Err(Errno::NXIO) => return Ok(()),
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
