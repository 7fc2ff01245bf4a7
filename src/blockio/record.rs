//! A file that remembers what was done to it, so that a test can build every state a power cut could leave.

use super::{MemoryIo, ReadAt, WriteAt};
use crate::units::Bytes;
use std::io;
use std::sync::Mutex;

/// One change, in the order of the calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Write { at: Bytes, data: Vec<u8> },
    SetLen { len: Bytes },
    Punch { at: Bytes, len: Bytes },
    Sync,
}

impl Op {
    /// Does the change to `file`. A sync changes nothing.
    pub fn apply(&self, file: &dyn WriteAt) -> io::Result<()> {
        match self {
            Op::Write { at, data } => file.write_at(data, *at),
            Op::SetLen { len } => file.set_len(*len),
            Op::Punch { at, len } => file.punch(*at, *len),
            Op::Sync => Ok(()),
        }
    }
}

/// Memory that logs each change.
#[derive(Debug, Default)]
pub struct RecordIo {
    now: MemoryIo,
    log: Mutex<Vec<Op>>,
}

impl RecordIo {
    /// The changes so far.
    pub fn log(&self) -> Vec<Op> {
        self.log.lock().expect("no thread panics while it holds this lock").clone()
    }

    fn record(&self, op: Op) -> io::Result<()> {
        let mut log = self.log.lock().expect("no thread panics while it holds this lock");
        op.apply(&self.now)?;
        log.push(op);
        Ok(())
    }
}

impl ReadAt for RecordIo {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.now.read_at(buf, at)
    }

    fn size(&self) -> io::Result<Bytes> {
        self.now.size()
    }
}

impl WriteAt for RecordIo {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        self.record(Op::Write { at, data: data.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Op::Sync)
    }

    fn set_len(&self, len: Bytes) -> io::Result<()> {
        self.record(Op::SetLen { len })
    }

    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.record(Op::Punch { at, len })
    }
}
