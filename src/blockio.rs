//! Bytes at offsets: a file, memory, or a store that fails on purpose.
//!
//! Refuses to know what the bytes mean. Invariant: a read or write is whole or an error, never short.

#[cfg(test)]
pub mod failing;
mod file;
mod memory;
pub mod record;

pub use file::FileIo;
pub use memory::MemoryIo;

use crate::units::Bytes;
use std::io;
use std::sync::Arc;

/// Something that can be read at an offset, by several threads at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from offset `at`. Errors: `UnexpectedEof` where the file ends first.
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()>;
    fn size(&self) -> io::Result<Bytes>;
    /// A hint that the range will be read soon. Never waits for it; does nothing where nothing can be done.
    fn will_need(&self, _at: Bytes, _len: Bytes) {}
}

/// Something that can be written at an offset, and made durable.
pub trait WriteAt: ReadAt {
    /// Writes all of `data` at `at`, and grows the file when need be.
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()>;
    /// What was written before the call is durable after it (fdatasync).
    fn sync(&self) -> io::Result<()>;
    fn set_len(&self, len: Bytes) -> io::Result<()>;
    /// Makes a range read as zeros, giving its space back where the file system can; never grows the file.
    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()>;
    /// Makes a range read as zeros and keeps its space; never grows the file.
    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        write_zeros(self, at, len)
    }
    /// The file is at least `len` long, and has all of that space for certain.
    fn reserve(&self, len: Bytes) -> io::Result<()> {
        match self.size()? < len {
            true => self.set_len(len),
            false => Ok(()),
        }
    }
}

/// For files, and file systems, that know no shorter way.
fn write_zeros<F: WriteAt + ?Sized>(io: &F, at: Bytes, len: Bytes) -> io::Result<()> {
    let end = at.0.saturating_add(len.0).min(io.size()?.0);
    let zeros = vec![0; end.saturating_sub(at.0).min(1 << 20) as usize];
    let mut next = at.0;
    while next < end {
        let part = (end - next).min(zeros.len() as u64);
        io.write_at(&zeros[..part as usize], Bytes(next))?;
        next += part;
    }
    Ok(())
}

/// A disk: what a FUSE server, or a test, shows to a kernel.
pub trait BlockDevice: Send + Sync {
    fn size(&self) -> Bytes;
    fn read_only(&self) -> bool;
    /// Fills `buf`; the range must lie within the disk (`InvalidInput` else).
    fn read(&self, at: Bytes, buf: &mut [u8]) -> io::Result<()>;
    /// Seen by reads at once, durable after `flush`. Errors: `PermissionDenied` on a read-only disk.
    fn write(&self, at: Bytes, data: &[u8]) -> io::Result<()>;
    /// The range reads as zeros afterwards: what a discard or write-zeroes of a loop device asks for.
    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()>;
    /// A hint that the range will be read soon; what lies outside of the disk is ignored. Never waits for it.
    fn will_need(&self, _at: Bytes, _len: Bytes) {}
    /// A barrier: all that was written before is durable when it returns.
    fn flush(&self) -> io::Result<()>;
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
                (**self).read_at(buf, at)
            }
            fn size(&self) -> io::Result<Bytes> {
                (**self).size()
            }
            fn will_need(&self, at: Bytes, len: Bytes) {
                (**self).will_need(at, len)
            }
        }
        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
                (**self).write_at(data, at)
            }
            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }
            fn set_len(&self, len: Bytes) -> io::Result<()> {
                (**self).set_len(len)
            }
            fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
                (**self).punch(at, len)
            }
            fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
                (**self).zero(at, len)
            }
            fn reserve(&self, len: Bytes) -> io::Result<()> {
                (**self).reserve(len)
            }
        }
    )*};
}
forward!(&T, Arc<T>, Box<T>);
