//! The first 16 bytes of a delta.
//!
//! Refuses to know what follows. Invariant: a [`Header`] has a chunk size that we can work with.
//! Byte table: `kernel-notes/dm-snapshot-format.md`.

use crate::units::{ChunkSize, UnitError};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: u32 = u32::from_le_bytes(*b"SnAp");
pub const VERSION: u32 = 1;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawHeader {
    magic: U32,
    valid: U32,
    version: U32,
    chunk_sectors: U32,
}
const _: () = assert!(size_of::<RawHeader>() == 16);
const _: () = assert!(std::mem::offset_of!(RawHeader, chunk_sectors) == 12);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `false` once the kernel gave up on the snapshot: a full disk, or an I/O error. The data may still be whole.
    pub valid: bool,
    pub version: u32,
    pub chunk_size: ChunkSize,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("header needs 16 bytes, found {found}")]
    Truncated { found: u64 },
    #[error("blank: the first word is zero, nothing was ever written here")]
    Blank,
    #[error("not a delta: magic {found:#010x}, want {MAGIC:#010x}")]
    NotOurs { found: u32 },
    #[error("written by something newer: version {found}, known is {VERSION}")]
    Newer { found: u32 },
    #[error("damaged: version 0 was never written by anything")]
    Version,
    #[error("chunk size of {sectors} sectors")]
    Chunk {
        sectors: u32,
        #[source]
        source: UnitError,
    },
}

impl Header {
    pub fn new(chunk_size: ChunkSize) -> Header {
        Header {
            valid: true,
            version: VERSION,
            chunk_size,
        }
    }

    /// Reads a header from the first bytes of a delta.
    ///
    /// Shape: `bytes` may be longer than the 16 that are read.
    /// Units: the size on disk is in 512-byte sectors.
    /// Errors: [`HeaderError`]; every field is checked before any is used.
    /// Source: Linux `drivers/md/dm-snap-persistent.c`, `read_header`.
    pub fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| HeaderError::Truncated { found: bytes.len() as u64 })?;
        let sectors = raw.chunk_sectors.get();
        match (raw.magic.get(), raw.version.get()) {
            (0, _) => return Err(HeaderError::Blank),
            (MAGIC, VERSION) => {}
            (MAGIC, 0) => return Err(HeaderError::Version),
            (MAGIC, found) => return Err(HeaderError::Newer { found }),
            (found, _) => return Err(HeaderError::NotOurs { found }),
        }
        let chunk_size = ChunkSize::from_sectors(sectors).map_err(|source| HeaderError::Chunk { sectors, source })?;
        Ok(Header {
            valid: raw.valid.get() != 0,
            version: VERSION,
            chunk_size,
        })
    }

    pub fn to_bytes(self) -> [u8; 16] {
        let raw = RawHeader {
            magic: U32::new(MAGIC),
            valid: U32::new(self.valid.into()),
            version: U32::new(self.version),
            chunk_sectors: U32::new(self.chunk_size.sectors()),
        };
        raw.as_bytes().try_into().expect("the assertion above says that it has 16 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    #[test]
    fn header_bytes_are_the_kernels() {
        let header = Header::new(ChunkSize::new(Bytes(16 << 10)).unwrap());
        assert_eq!(header.to_bytes(), *b"SnAp\x01\0\0\0\x01\0\0\0\x20\0\0\0");
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        let invalid = Header { valid: false, ..header };
        assert_eq!(Header::parse(&invalid.to_bytes()), Ok(invalid));
    }

    #[test]
    fn blank_not_ours_newer_and_damaged_are_four_errors() {
        let chunk = |sectors| HeaderError::Chunk {
            sectors,
            source: ChunkSize::from_sectors(sectors).unwrap_err(),
        };
        for (bytes, want) in [
            (&b""[..], HeaderError::Truncated { found: 0 }),
            (b"SnAp\x01\0\0\0\x01\0\0\0\x20\0\0", HeaderError::Truncated { found: 15 }),
            (&[0; 16], HeaderError::Blank),
            (b"LUKS\xba\xbe\0\0\0\0\0\0\0\0\0\0", HeaderError::NotOurs { found: 0x534b_554c }),
            (b"SnAp\x01\0\0\0\x02\0\0\0\x20\0\0\0", HeaderError::Newer { found: 2 }),
            (b"SnAp\x01\0\0\0\0\0\0\0\x20\0\0\0", HeaderError::Version),
            (b"SnAp\x01\0\0\0\x01\0\0\0\x21\0\0\0", chunk(33)),
            (b"SnAp\x01\0\0\0\x01\0\0\0\0\0\0\0", chunk(0)),
            (b"SnAp\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff", chunk(u32::MAX)),
        ] {
            assert_eq!(Header::parse(bytes), Err(want), "{bytes:?}");
        }
    }
}
