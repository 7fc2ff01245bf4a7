//! A recording file for the power-cut test: it can do a sync badly, or be disturbed in one.

use crate::blockio::record::RecordIo;
use crate::blockio::{ReadAt, WriteAt};
use crate::units::{Bytes, ChunkSize, FileChunk};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Hook = Box<dyn FnOnce() + Send>;

/// A recording file that can do a sync badly, or be disturbed in it.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) io: RecordIo,
    ops: AtomicUsize,
    /// Wrong on purpose: a sync is left out when metadata is written next, so that it may reach the disk before the data.
    pub(super) hasty: Option<ChunkSize>,
    owed: AtomicBool,
    pub(super) in_next_sync: Mutex<Option<Hook>>,
}

impl Recorder {
    pub(super) fn new(hasty: Option<ChunkSize>) -> Recorder {
        Recorder {
            hasty,
            ..Recorder::default()
        }
    }

    pub(super) fn ops(&self) -> usize {
        self.ops.load(Ordering::SeqCst)
    }

    pub(super) fn count(&self, done: io::Result<()>) -> io::Result<()> {
        self.ops.fetch_add(1, Ordering::SeqCst);
        done
    }

    /// Does the sync that was put off.
    pub(super) fn pay(&self) -> io::Result<()> {
        if self.owed.swap(false, Ordering::SeqCst) {
            self.count(self.io.sync())
        } else {
            Ok(())
        }
    }
}

impl ReadAt for Recorder {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.io.read_at(buf, at)
    }
    fn size(&self) -> io::Result<Bytes> {
        self.io.size()
    }
}

impl WriteAt for Recorder {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        let is_metadata = |chunk: ChunkSize| chunk.is_metadata(FileChunk(at.0 / chunk.bytes().0));
        if self.hasty.is_some_and(is_metadata) {
            self.owed.store(false, Ordering::SeqCst);
        }
        self.pay()?;
        self.count(self.io.write_at(data, at))
    }
    fn sync(&self) -> io::Result<()> {
        if let Some(hook) = self.in_next_sync.lock().unwrap().take() {
            hook();
        }
        self.pay()?;
        if self.hasty.is_some() {
            self.owed.store(true, Ordering::SeqCst);
            return Ok(());
        }
        self.count(self.io.sync())
    }
    fn set_len(&self, len: Bytes) -> io::Result<()> {
        self.pay()?;
        self.count(self.io.set_len(len))
    }
    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.pay()?;
        self.count(self.io.punch(at, len))
    }
}
