use super::{ReadAt, WriteAt, write_zeros};
use crate::units::Bytes;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A plain file.
#[derive(Debug)]
pub struct FileIo(pub File);

impl ReadAt for FileIo {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.0.read_exact_at(buf, at.0)
    }

    fn size(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.0.metadata()?.len()))
    }

    fn will_need(&self, at: Bytes, len: Bytes) {
        if let (Ok(at), Ok(len)) = (i64::try_from(at.0), i64::try_from(len.0)) {
            // A hint that is not taken costs nothing but time.
            let _not_taken = posix_fadvise(&self.0, at, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }
}

impl WriteAt for FileIo {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        self.0.write_all_at(data, at.0)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: Bytes) -> io::Result<()> {
        self.0.set_len(len.0)
    }

    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.zero_by(FallocateFlags::FALLOC_FL_PUNCH_HOLE, at, len)
    }

    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.zero_by(FallocateFlags::FALLOC_FL_ZERO_RANGE, at, len)
    }

    fn reserve(&self, len: Bytes) -> io::Result<()> {
        let len = i64::try_from(len.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(fallocate(&self.0, FallocateFlags::empty(), 0, len)?)
    }
}

impl FileIo {
    /// Where the file has data, by its file system's account; a block device is all data.
    pub fn data_ranges(&self) -> io::Result<Vec<Range<Bytes>>> {
        use rustix::fs::{SeekFrom, seek};
        let size = seek(&self.0, SeekFrom::End(0))?;
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match seek(&self.0, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(rustix::io::Errno::INVAL) => {
                    ranges.push(Bytes(at)..Bytes(size));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let end = seek(&self.0, SeekFrom::Hole(start))?;
            ranges.push(Bytes(start)..Bytes(end));
            at = end;
        }
        Ok(ranges)
    }

    fn zero_by(&self, how: FallocateFlags, at: Bytes, len: Bytes) -> io::Result<()> {
        let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let start = i64::try_from(at.0).map_err(out_of_range)?;
        let count = i64::try_from(len.0).map_err(out_of_range)?;
        if count == 0 {
            return Ok(());
        }
        match fallocate(&self.0, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, count) {
            // A file system without holes, or without this way to zero.
            Err(nix::errno::Errno::EOPNOTSUPP) => write_zeros(self, at, len),
            other => other.map_err(io::Error::from),
        }
    }
}
