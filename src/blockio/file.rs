use super::{ReadAt, WriteAt, write_zeros};
use crate::units::{Bytes, SECTOR};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

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

    /// What was only reserved reads as zeros already. The rest is written: a file system may carry out `FALLOC_FL_ZERO_RANGE` by giving the space
    /// back and asking for it again, which on a full disk somebody else gets.
    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        let end = at.0.saturating_add(len.0);
        for range in self.data_within(at.0..end)? {
            write_zeros(self, range.start, Bytes(range.end.0 - range.start.0))?;
        }
        Ok(())
    }

    /// Errors: `StorageFull`, before anything is taken; `fallocate` alone would take all that is left, and keep it.
    fn reserve(&self, len: Bytes) -> io::Result<()> {
        let wanted = i64::try_from(len.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (before, disk) = (self.0.metadata()?, rustix::fs::fstatvfs(&self.0)?);
        let missing = len.0.saturating_sub(before.blocks().saturating_mul(SECTOR));
        if missing > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(nix::errno::Errno::ENOSPC.into());
        }
        if let Err(error) = fallocate(&self.0, FallocateFlags::empty(), 0, wanted) {
            if before.len() < len.0 {
                self.0.set_len(before.len())?;
            }
            return Err(error.into());
        }
        Ok(())
    }
}

impl FileIo {
    /// Where the file has data, by its file system's account; a block device is all data.
    pub fn data_ranges(&self) -> io::Result<Vec<Range<Bytes>>> {
        self.data_within(0..u64::MAX)
    }

    fn data_within(&self, within: Range<u64>) -> io::Result<Vec<Range<Bytes>>> {
        use rustix::fs::{SeekFrom, seek};
        let size = seek(&self.0, SeekFrom::End(0))?.min(within.end);
        let mut ranges = Vec::new();
        let mut at = within.start;
        while at < size {
            let start = match seek(&self.0, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(rustix::io::Errno::INVAL) => {
                    ranges.push(Bytes(at)..Bytes(size));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let end = seek(&self.0, SeekFrom::Hole(start))?.min(size);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_that_is_not_there_is_not_taken() {
        let file = FileIo(tempfile::tempfile().unwrap());
        file.reserve(Bytes(1 << 20)).unwrap();
        let had = file.0.metadata().unwrap();
        let refused = file.reserve(Bytes(1 << 60)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        let has = file.0.metadata().unwrap();
        assert_eq!((has.len(), has.blocks()), (had.len(), had.blocks()));
    }

    #[test]
    fn zeroing_keeps_the_space_and_touches_its_range_only() {
        let file = FileIo(tempfile::tempfile().unwrap());
        file.reserve(Bytes(256 << 10)).unwrap();
        file.write_at(&[7; 100 << 10], Bytes(50 << 10)).unwrap();
        let had = file.0.metadata().unwrap().blocks();
        file.zero(Bytes((60 << 10) + 5), Bytes(80 << 10)).unwrap();
        let mut found = vec![1; 256 << 10];
        file.read_at(&mut found, Bytes::ZERO).unwrap();
        let is_seven = |at: usize| ((50 << 10)..(60 << 10) + 5).contains(&at) || ((140 << 10) + 5..150 << 10).contains(&at);
        assert!(found.iter().enumerate().all(|(at, byte)| *byte == if is_seven(at) { 7 } else { 0 }));
        assert_eq!(file.0.metadata().unwrap().blocks(), had);
    }
}
