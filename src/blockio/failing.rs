//! A disk that is full, or cannot be synced, on command.

use super::{MemoryIo, ReadAt, WriteAt};
use crate::units::Bytes;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory whose writes and syncs can be made to fail.
#[derive(Debug, Default)]
pub struct FailingIo {
    io: MemoryIo,
    full: AtomicBool,
    broken: AtomicBool,
}

impl FailingIo {
    /// Whether the next writes find no room.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Whether the next syncs fail.
    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.io.bytes()
    }
}

impl ReadAt for FailingIo {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.io.read_at(buf, at)
    }

    fn size(&self) -> io::Result<Bytes> {
        self.io.size()
    }
}

impl WriteAt for FailingIo {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.io.write_at(data, at),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self.broken.load(Ordering::SeqCst) {
            true => Err(io::Error::other("disk")),
            false => self.io.sync(),
        }
    }

    fn set_len(&self, len: Bytes) -> io::Result<()> {
        self.io.set_len(len)
    }

    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.io.punch(at, len)
    }
}
