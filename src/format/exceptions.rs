//! Reads the exception table that the kernel would read: areas in order, up to the first zero.
//!
//! Refuses to judge what it finds; `check` and `head` do. Invariant: memory is bounded by the file's size, as every area read is in it.

use super::Exception;
use super::header::{Header, HeaderError};
use crate::blockio::ReadAt;
use crate::units::{Bytes, ChunkSize, DiskChunk, FileChunk};
use std::io;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawException {
    disk: U64,
    file: U64,
}
const _: () = assert!(size_of::<RawException>() == 16);

/// What the areas of a delta say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub header: Header,
    /// In the file's order: the i-th is slot i % E of area i / E.
    pub exceptions: Vec<Exception>,
    pub file_len: Bytes,
    /// Every area was full, up to one that the file is too short for. The kernel refuses such a delta.
    pub missing_area: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("header of a delta")]
    Header(#[source] HeaderError),
    #[error("{len} bytes at offset {at} of a delta", at = at.0)]
    Io {
        at: Bytes,
        len: usize,
        #[source]
        source: io::Error,
    },
}

impl Table {
    /// The area with the first free slot.
    pub fn last_area(&self) -> u64 {
        self.exceptions.len() as u64 / self.header.chunk_size.exceptions_per_area()
    }
}

/// Reads header and exceptions.
///
/// Somebody may be writing to a head meanwhile. What an exception names is in the file before the exception is: so the length is that after the read.
///
/// Errors: [`ReadError::Header`] for what is not a delta; an invalidated delta is read like any other.
/// Source: Linux `drivers/md/dm-snap-persistent.c`, `persistent_read_metadata`, `insert_exceptions`.
pub fn read_all(io: &dyn ReadAt) -> Result<Table, ReadError> {
    let (header, file_len) = read_header(io)?;
    let mut table = Table {
        header,
        exceptions: Vec::new(),
        file_len,
        missing_area: false,
    };
    for area in 0.. {
        let mut bytes = read_area(io, header.chunk_size, area, table.file_len)?;
        if bytes.is_none() {
            table.file_len = len_of(io)?;
            bytes = read_area(io, header.chunk_size, area, table.file_len)?;
        }
        let Some(bytes) = bytes else {
            table.missing_area = true;
            break;
        };
        if !parse_area(&bytes, &mut table.exceptions) {
            break;
        }
    }
    table.file_len = len_of(io)?;
    Ok(table)
}

fn len_of(io: &dyn ReadAt) -> Result<Bytes, ReadError> {
    io.size().map_err(|source| ReadError::Io {
        at: Bytes::ZERO,
        len: 0,
        source,
    })
}

/// The header, and how long the file is.
pub fn read_header(io: &dyn ReadAt) -> Result<(Header, Bytes), ReadError> {
    let mut bytes = [0; 16];
    let file_len = len_of(io)?;
    if file_len.0 < 16 {
        return Err(ReadError::Header(HeaderError::Truncated { found: file_len.0 }));
    }
    io.read_at(&mut bytes, Bytes::ZERO).map_err(|source| ReadError::Io {
        at: Bytes::ZERO,
        len: 16,
        source,
    })?;
    Ok((Header::parse(&bytes).map_err(ReadError::Header)?, file_len))
}

/// The metadata chunk of an area; `None` where it is not wholly in the file.
pub fn read_area(io: &dyn ReadAt, chunk: ChunkSize, area: u64, file_len: Bytes) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(at) = chunk.area_chunk(area).and_then(|slot| chunk.offset(slot)) else {
        return Ok(None);
    };
    if at.checked_add(chunk.bytes()).is_none_or(|end| end > file_len) {
        return Ok(None);
    }
    let mut bytes = vec![0; chunk.as_usize()];
    io.read_at(&mut bytes, at).map_err(|source| ReadError::Io {
        at,
        len: bytes.len(),
        source,
    })?;
    Ok(Some(bytes))
}

/// Appends the exceptions of one metadata chunk; `true` if it is full, so that the list goes on in the next area.
pub fn parse_area(bytes: &[u8], exceptions: &mut Vec<Exception>) -> bool {
    for raw in bytes.chunks_exact(16) {
        let raw = RawException::ref_from_bytes(raw).expect("chunks_exact gives 16 bytes");
        if raw.file.get() == 0 {
            return false;
        }
        exceptions.push(Exception {
            disk: DiskChunk(raw.disk.get()),
            file: FileChunk(raw.file.get()),
        });
    }
    true
}

/// The metadata chunk that holds these exceptions, with zeros behind them.
pub fn area_bytes(chunk: ChunkSize, exceptions: &[Exception]) -> Vec<u8> {
    let mut bytes = vec![0; chunk.as_usize()];
    for (slot, exception) in bytes.chunks_exact_mut(16).zip(exceptions) {
        let raw = RawException {
            disk: U64::new(exception.disk.0),
            file: U64::new(exception.file.0),
        };
        slot.copy_from_slice(raw.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockio::MemoryIo;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn delta(areas: &[&[Exception]]) -> Vec<u8> {
        let chunk = ChunkSize::MIN;
        let mut bytes = vec![0; 4096];
        bytes[..16].copy_from_slice(&Header::new(chunk).to_bytes());
        for (area, exceptions) in areas.iter().enumerate() {
            let at = chunk.offset(chunk.area_chunk(area as u64).unwrap()).unwrap().0 as usize;
            bytes.resize(at + 4096, 0);
            bytes[at..].copy_from_slice(&area_bytes(chunk, exceptions));
        }
        bytes
    }

    fn exception(disk: u64, file: u64) -> Exception {
        Exception {
            disk: DiskChunk(disk),
            file: FileChunk(file),
        }
    }

    /// A head that somebody writes to, and that was shorter when it was first asked.
    struct Growing(MemoryIo, AtomicU64);

    impl ReadAt for Growing {
        fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
            self.0.read_at(buf, at)
        }

        fn size(&self) -> io::Result<Bytes> {
            Ok(Bytes(self.1.swap(self.0.size()?.0, Ordering::SeqCst)))
        }
    }

    #[test]
    fn a_head_that_grows_while_it_is_read_lacks_nothing() {
        let full: Vec<Exception> = (0..256).map(|n| exception(n, n + 2)).collect();
        let mut bytes = delta(&[&full, &[exception(900, 259)]]);
        bytes.resize(260 * 4096, 7);
        // It had one chunk of data, no second area, nothing in that area.
        for first in [3, 258, 259] {
            let io = Growing(MemoryIo::new(bytes.clone()), AtomicU64::new(first * 4096));
            let table = read_all(&io).unwrap();
            assert_eq!((table.exceptions.len(), table.missing_area), (257, false), "{first}");
            assert_eq!(table.file_len, Bytes(260 * 4096), "{first}");
        }
    }

    #[test]
    fn an_area_is_read_up_to_its_first_zero() {
        let mut bytes = delta(&[&[exception(7, 2), exception(9, 3)]]);
        assert_eq!(
            &bytes[4096..4128],
            b"\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
        );
        bytes[4096 + 48] = 1;
        let table = read_all(&MemoryIo::new(bytes)).unwrap();
        assert_eq!(table.exceptions, [exception(7, 2), exception(9, 3)]);
        assert!(!table.missing_area);
    }

    #[test]
    fn a_full_area_goes_on_in_the_next_and_misses_it_at_the_end_of_the_file() {
        let full: Vec<Exception> = (0..256).map(|i| exception(i, i + 2)).collect();
        let table = read_all(&MemoryIo::new(delta(&[&full, &[exception(1000, 259)]]))).unwrap();
        assert_eq!((table.exceptions.len(), table.last_area(), table.missing_area), (257, 1, false));
        let table = read_all(&MemoryIo::new(delta(&[&full]))).unwrap();
        assert_eq!((table.exceptions.len(), table.last_area(), table.missing_area), (256, 1, true));
    }

    proptest! {
        #[test]
        fn any_bytes_behind_a_header_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..20_000), sectors in 8u32..64) {
            let header = b"SnAp\x01\0\0\0\x01\0\0\0";
            let len = bytes.len().min(12);
            bytes[..len].copy_from_slice(&header[..len]);
            if bytes.len() >= 16 {
                bytes[12..16].copy_from_slice(&sectors.to_le_bytes());
            }
            if let Ok(table) = read_all(&MemoryIo::new(bytes.clone())) {
                prop_assert!(table.exceptions.len() * 16 <= bytes.len());
            }
        }
    }
}
