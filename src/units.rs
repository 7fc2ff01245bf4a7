//! Sizes, positions and counts as types.
//!
//! Knows nothing of files or devices. Invariant: a [`ChunkSize`] is a power of two from 4 KiB to 1 MiB.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A number of bytes, or a byte offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of 512-byte sectors, or an offset in them: device-mapper's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(pub u64);

/// Where a chunk sits on the virtual disk. The kernel's `old_chunk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskChunk(pub u64);

/// Where a chunk sits inside the delta file. The kernel's `new_chunk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileChunk(pub u64);

/// The size of a delta's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize(u32);

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// The largest virtual disk.
pub const MAX_DISK: Bytes = Bytes(16 << 40);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("chunk size {bytes} bytes: want a power of two from 4096 to 1048576")]
    ChunkSize { bytes: u64 },
    #[error("size \"{text}\": want a number of bytes, or a number with K, M, G or T (powers of 1024), as in 10G")]
    Size { text: String },
    #[error("disk size {bytes} bytes: want a multiple of 512, from 512 to 17592186044416 (16 TiB)")]
    DiskSize { bytes: u64 },
}

impl Bytes {
    pub const ZERO: Bytes = Bytes(0);

    pub fn checked_add(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_add(other.0).map(Bytes)
    }

    /// `Ok` if this can be the size of a virtual disk.
    pub fn as_disk_size(self) -> Result<Bytes, UnitError> {
        if self.0 == 0 || !self.0.is_multiple_of(SECTOR) || self > MAX_DISK {
            return Err(UnitError::DiskSize { bytes: self.0 });
        }
        Ok(self)
    }
}

impl Sectors {
    pub fn bytes(self) -> Option<Bytes> {
        self.0.checked_mul(SECTOR).map(Bytes)
    }
}

impl ChunkSize {
    pub const MIN: ChunkSize = ChunkSize(4 << 10);
    pub const MAX: ChunkSize = ChunkSize(1 << 20);
    /// A sealed delta with a parent: the file system's block, so that nothing is shared by accident.
    pub const SEALED: ChunkSize = ChunkSize(4 << 10);
    /// A base shares its blocks with no parent: larger chunks cut its runs less often, and make a real Debian base 0.8 % larger.
    pub const BASE: ChunkSize = ChunkSize(64 << 10);
    /// A writable head: measured best. Smaller chunks mean more exceptions, larger ones more bytes copied for a small write.
    pub const HEAD: ChunkSize = ChunkSize(16 << 10);

    pub fn new(size: Bytes) -> Result<ChunkSize, UnitError> {
        let ok = size.0.is_power_of_two() && size.0 >= u64::from(Self::MIN.0) && size.0 <= u64::from(Self::MAX.0);
        match u32::try_from(size.0) {
            Ok(bytes) if ok => Ok(ChunkSize(bytes)),
            _ => Err(UnitError::ChunkSize { bytes: size.0 }),
        }
    }

    pub fn from_sectors(sectors: u32) -> Result<ChunkSize, UnitError> {
        ChunkSize::new(Bytes(u64::from(sectors) * SECTOR))
    }

    pub fn bytes(self) -> Bytes {
        Bytes(u64::from(self.0))
    }

    /// The same as a `usize`, for buffers.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }

    pub fn sectors(self) -> u32 {
        self.0 / SECTOR as u32
    }

    /// Exceptions that one area holds: 16 bytes each in one chunk.
    pub fn exceptions_per_area(self) -> u64 {
        u64::from(self.0 / 16)
    }

    /// First byte of `chunk` in the delta file; `None` past 2^64.
    pub fn offset(self, chunk: FileChunk) -> Option<Bytes> {
        chunk.0.checked_mul(self.bytes().0).map(Bytes)
    }

    /// First byte of `chunk` on the disk; `None` past 2^64.
    pub fn disk_offset(self, chunk: DiskChunk) -> Option<Bytes> {
        chunk.0.checked_mul(self.bytes().0).map(Bytes)
    }

    /// The chunk that holds the disk's byte `at`.
    pub fn disk_chunk(self, at: Bytes) -> DiskChunk {
        DiskChunk(at.0 >> self.0.trailing_zeros())
    }

    /// Chunks that cover `size` bytes.
    pub fn count(self, size: Bytes) -> u64 {
        size.0.div_ceil(self.bytes().0)
    }

    /// The metadata chunk of area `area`.
    pub fn area_chunk(self, area: u64) -> Option<FileChunk> {
        area.checked_mul(self.exceptions_per_area() + 1)?.checked_add(1).map(FileChunk)
    }

    /// Whether the kernel keeps metadata (the header, or an area) in `chunk`.
    pub fn is_metadata(self, chunk: FileChunk) -> bool {
        chunk.0 == 0 || (chunk.0 - 1).is_multiple_of(self.exceptions_per_area() + 1)
    }
}

/// Reads a size as people write it: `10G`, `512MiB`, `4096`; a bare number is bytes.
pub fn parse_size(text: &str) -> Result<Bytes, UnitError> {
    let bad = || UnitError::Size { text: text.into() };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let shift = match &text[digits..] {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(bad)
}

impl fmt::Display for Bytes {
    /// `1.5 GiB`; exact below 1 KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, want) in [("4096", 4096), ("10G", 10 << 30), ("512MiB", 512 << 20), ("1T", 1 << 40), ("0", 0)] {
            assert_eq!(parse_size(text).unwrap(), Bytes(want), "{text}");
        }
        for text in ["", "G", "10Q", "-1", "1.5G", "99999999999999999999", "16777216T", " 1", "1 G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_in_range() {
        for bytes in [0, 1, 512, 2048, 4095, 4097, 12288, 2 << 20, u64::MAX] {
            assert!(ChunkSize::new(Bytes(bytes)).is_err(), "{bytes}");
        }
        for shift in 12..=20 {
            assert_eq!(ChunkSize::new(Bytes(1 << shift)).unwrap().bytes(), Bytes(1 << shift));
        }
    }

    #[test]
    fn metadata_slots_are_where_the_kernel_has_them() {
        let chunk = ChunkSize::MIN;
        assert_eq!(chunk.area_chunk(0), Some(FileChunk(1)));
        assert_eq!(chunk.area_chunk(1), Some(FileChunk(258)));
        let slots: Vec<u64> = (0..600).filter(|c| chunk.is_metadata(FileChunk(*c))).collect();
        assert_eq!(slots, [0, 1, 258, 515]);
        assert_eq!(chunk.area_chunk(u64::MAX), None);
    }

    #[test]
    fn sizes_print_with_a_unit() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(10 << 30).to_string(), "10.0 GiB");
        assert_eq!(Bytes((1 << 20) - 1).to_string(), "1.0 MiB");
    }
}
