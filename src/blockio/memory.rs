use super::{ReadAt, WriteAt};
use crate::units::Bytes;
use std::io;
use std::sync::RwLock;

/// A file in memory, for tests and for small tables.
#[derive(Debug, Default)]
pub struct MemoryIo(RwLock<Vec<u8>>);

impl MemoryIo {
    pub fn new(bytes: Vec<u8>) -> MemoryIo {
        MemoryIo(RwLock::new(bytes))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.read().expect("no thread panics while it holds this lock").clone()
    }

    fn range(at: Bytes, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(at.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = start.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(start..end)
    }

    fn write_with(&self, work: impl FnOnce(&mut Vec<u8>)) {
        work(&mut self.0.write().expect("no thread panics while it holds this lock"));
    }
}

impl ReadAt for MemoryIo {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        let bytes = self.0.read().expect("no thread panics while it holds this lock");
        let from = bytes.get(Self::range(at, buf.len())?).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    fn size(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.0.read().expect("no thread panics while it holds this lock").len() as u64))
    }
}

impl WriteAt for MemoryIo {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        let range = Self::range(at, data.len())?;
        self.write_with(|bytes| {
            if bytes.len() < range.end {
                bytes.resize(range.end, 0);
            }
            bytes[range].copy_from_slice(data);
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: Bytes) -> io::Result<()> {
        let len = Self::range(Bytes::ZERO, usize::try_from(len.0).map_err(|_| io::ErrorKind::InvalidInput)?)?.end;
        self.write_with(|bytes| bytes.resize(len, 0));
        Ok(())
    }

    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        let len = usize::try_from(len.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        let range = Self::range(at, len)?;
        self.write_with(|bytes| {
            let end = range.end.min(bytes.len());
            if range.start < end {
                bytes[range.start..end].fill(0);
            }
        });
        Ok(())
    }
}
