//! Where the engine reads and writes a torrent's bytes: a finished object, or a `.part` that fills.
//!
//! Refuses to know hashes. Invariant: a finished object is opened read-only, and every attempt to write, resize or remove it is an
//! error that marks it damaged; a `.part` becomes such a file before it gets its second name.

use super::gather::{Gather, Put};
use crate::units::Bytes;
use librqbit::storage::{BoxStorageFactory, StorageFactory, StorageFactoryExt, TorrentStorage};
use librqbit::{ManagedTorrentShared, TorrentMetadata};
use librqbit_core::lengths::ValidPieceIndex;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;

/// Why a seeded file is no longer trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("{bad_bytes} bytes are in pieces that fail their SHA-1")]
    Pieces { bad_bytes: u64 },
    #[error("it has {found} bytes, want {want}")]
    Length { found: u64, want: u64 },
    #[error("byte {at} could not be read: {why}")]
    Read { at: u64, why: String },
    #[error("the engine asked to change it: {what}")]
    Change { what: &'static str },
}

/// What the engine's storage stands on.
pub trait Backing: Send + Sync + 'static {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn remove(&self) -> io::Result<()>;
    /// The engine's SHA-1 of this piece is right.
    fn piece(&self, index: u32);
}

/// A finished object.
#[derive(Debug)]
pub struct SeedFile {
    file: File,
    len: u64,
    damage: Mutex<Option<Damage>>,
}

impl SeedFile {
    pub fn open(path: &Path, len: Bytes) -> io::Result<SeedFile> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let found = file.metadata()?.len();
        let damage = (found != len.0).then_some(Damage::Length { found, want: len.0 });
        Ok(SeedFile {
            file,
            len: len.0,
            damage: Mutex::new(damage),
        })
    }

    pub fn damage(&self) -> Option<Damage> {
        self.damage.lock().expect("no thread panics while it holds this lock").clone()
    }

    pub fn mark(&self, damage: Damage) {
        self.damage
            .lock()
            .expect("no thread panics while it holds this lock")
            .get_or_insert(damage);
    }

    fn refuse(&self, what: &'static str) -> io::Result<()> {
        self.mark(Damage::Change { what });
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a sealed object: {what} is refused"),
        ))
    }
}

impl Backing for SeedFile {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at).inspect_err(|error| {
            self.mark(Damage::Read {
                at,
                why: error.to_string(),
            });
        })
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        self.refuse("a write")
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len && self.file.metadata()?.len() == len {
            return Ok(());
        }
        self.refuse("a change of its length")
    }

    fn remove(&self) -> io::Result<()> {
        self.refuse("its removal")
    }

    fn piece(&self, _: u32) {}
}

/// An object that arrives, sparse and of its full length from the start, so that what is missing of it reads as zeros.
pub struct PartFile {
    path: PathBuf,
    len: u64,
    file: RwLock<Writable>,
    gather: Gather,
    failed: Mutex<Option<io::Error>>,
    /// Nothing was ever written: reads are refused, which spares the engine a check of nothing but zeros.
    blank: AtomicBool,
    pieces: UnboundedSender<u32>,
    /// Two writers of one file would each undo what the other believes.
    lock: File,
}

#[derive(Debug)]
struct Writable {
    file: Arc<File>,
    open: bool,
}

impl PartFile {
    /// Opens `path` where it was left, or anew. A file that has got a second name is an object: it is left alone, and only this
    /// name of it is given up.
    ///
    /// Errors: [`io::ErrorKind::WouldBlock`] while another process, or another fetch of this one, has it.
    pub fn open(path: &Path, len: Bytes, piece_len: u32, pieces: UnboundedSender<u32>) -> io::Result<PartFile> {
        let (lock, blank) = lock_part(path)?;
        lock.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.set_len(len.0)?;
        Ok(PartFile {
            path: path.into(),
            len: len.0,
            file: RwLock::new(Writable {
                file: Arc::new(file),
                open: true,
            }),
            gather: Gather::new(piece_len, len.0),
            failed: Mutex::new(None),
            blank: AtomicBool::new(blank),
            pieces,
            lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> Arc<File> {
        self.file.read().expect("no thread panics while it holds this lock").file.clone()
    }

    /// What was written of whole pieces before the call is durable after it.
    pub fn sync(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    /// Syncs it, takes the right to write from it, and swaps the descriptor for a read-only one.
    pub fn seal(&self) -> io::Result<()> {
        let mut writable = self.file.write().expect("no thread panics while it holds this lock");
        let parts = self.gather.spill(0..self.len);
        parts.iter().try_for_each(|(at, bytes)| writable.file.write_all_at(bytes, *at))?;
        writable.file.set_permissions(std::fs::Permissions::from_mode(0o400))?;
        writable.file.sync_all()?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&self.path)?;
        let (ours, found) = (writable.file.metadata()?, file.metadata()?);
        if (ours.dev(), ours.ino()) != (found.dev(), found.ino()) {
            return Err(io::Error::other("another file has taken its name"));
        }
        *writable = Writable {
            file: Arc::new(file),
            open: false,
        };
        Ok(())
    }

    /// The first write that failed, once.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.failed.lock().expect("no thread panics while it holds this lock").take()
    }

    /// The piece is right: nothing that is written to it from now on changes it. Who is writing has begun before.
    pub fn keep(&self, index: u32) {
        let _nobody_writes = self.file.write().expect("no thread panics while it holds this lock");
        self.gather.done(u64::from(index));
    }

    fn try_write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let writable = self.file.read().expect("no thread panics while it holds this lock");
        if !writable.open {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the object is complete"));
        }
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a write past its end"))?;
        let (mut at, mut rest) = (at, data);
        while at < end {
            let part = self.gather.first(at..end);
            let (bytes, more) = rest.split_at((part.end - part.start) as usize);
            match self.gather.put(at, bytes) {
                Put::Held | Put::Late => {}
                Put::Whole(start, piece) => writable.file.write_all_at(&piece, start)?,
                Put::NoRoom => writable.file.write_all_at(bytes, at)?,
            }
            (at, rest) = (part.end, more);
        }
        self.blank.store(false, Ordering::Release);
        Ok(())
    }

    fn read_piece(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.gather.read(at, buf) {
            return Ok(());
        }
        let file = self.file();
        let parts = self.gather.spill(at..at + 1);
        parts.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at))?;
        file.read_exact_at(buf, at)
    }
}

/// The file at `path`, locked, and whether it is new. It is looked at only under its lock.
fn lock_part(path: &Path) -> io::Result<(File, bool)> {
    loop {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match create_new(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => {
                    let file = other?;
                    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                    return Ok((file, true));
                }
            },
            Err(_) if path.is_symlink() => {
                std::fs::remove_file(path)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let ours = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if (found.dev(), found.ino()) != (ours.dev(), ours.ino()) => {}
            Ok(found) if found.is_file() && found.nlink() == 1 => return Ok((file, false)),
            Ok(_) => std::fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Closing alone would leave the lock to a child that another thread has forked and that has not reached its `exec`.
impl Drop for PartFile {
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(part = %self.path.display(), cause = %errno, "its lock goes only with its descriptor");
        }
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Backing for PartFile {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.blank.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nothing has come yet"));
        }
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let part = self.gather.first(at..at.saturating_add(rest.len() as u64));
            let (bytes, more) = rest.split_at_mut((part.end - part.start) as usize);
            self.read_piece(at, bytes)?;
            (at, rest) = (part.end, more);
        }
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.try_write(at, data).inspect_err(|error| {
            let copy = error
                .raw_os_error()
                .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error);
            self.failed
                .lock()
                .expect("no thread panics while it holds this lock")
                .get_or_insert(copy);
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "its length is fixed"))
    }

    fn remove(&self) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "only its owner removes it"))
    }

    fn piece(&self, index: u32) {
        self.keep(index);
        // The other end is gone once nobody waits for the object any more.
        let _ = self.pieces.send(index);
    }
}

/// A storage factory for the engine that always gives this one backing.
pub fn factory(backing: Arc<dyn Backing>) -> BoxStorageFactory {
    Handle(backing).boxed()
}

#[derive(Clone)]
struct Handle(Arc<dyn Backing>);

impl StorageFactory for Handle {
    type Storage = Handle;

    fn create(&self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<Handle> {
        Ok(self.clone())
    }

    fn clone_box(&self) -> BoxStorageFactory {
        self.clone().boxed()
    }
}

impl TorrentStorage for Handle {
    fn init(&mut self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<()> {
        Ok(())
    }

    fn pread_exact(&self, _: usize, offset: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        Ok(self.0.read(offset, buf)?)
    }

    fn pwrite_all(&self, _: usize, offset: u64, buf: &[u8]) -> anyhow::Result<()> {
        Ok(self.0.write(offset, buf)?)
    }

    fn remove_file(&self, _: usize, _: &Path) -> anyhow::Result<()> {
        Ok(self.0.remove()?)
    }

    fn remove_directory_if_empty(&self, _: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn ensure_file_length(&self, _: usize, length: u64) -> anyhow::Result<()> {
        Ok(self.0.set_len(length)?)
    }

    fn take(&self) -> anyhow::Result<Box<dyn TorrentStorage>> {
        Ok(Box::new(self.clone()))
    }

    fn on_piece_completed(&self, piece: ValidPieceIndex) -> anyhow::Result<()> {
        self.0.piece(piece.get());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
