//! Which 512 KiB units of an arriving object are believed, in a file beside it.
//!
//! Refuses to know how a unit is verified. Invariant: the file says only what was durable in the `.part` before it was written; a
//! file that is damaged, or of another object, says nothing at all.

use crate::ids::Digest;
use crate::units::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Header: magic, CRC-32 of the rest, digest, file length; then one bit per unit, lowest bit first.
const MAGIC: [u8; 8] = *b"bbtunit1";
const HEADER: usize = 8 + 4 + 32 + 8;

/// One bit per unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    bits: Vec<u8>,
    count: usize,
}

impl Units {
    pub fn none(count: usize) -> Units {
        Units {
            bits: vec![0; count.div_ceil(8)],
            count,
        }
    }

    pub fn get(&self, unit: usize) -> bool {
        unit < self.count && self.bits[unit / 8] & (1 << (unit % 8)) != 0
    }

    pub fn set(&mut self, unit: usize, value: bool) {
        assert!(unit < self.count, "unit {unit} of {}", self.count);
        if value {
            self.bits[unit / 8] |= 1 << (unit % 8);
        } else {
            self.bits[unit / 8] &= !(1 << (unit % 8));
        }
    }

    pub fn ones(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// The bytes of the file.
pub fn encode(digest: Digest, len: Bytes, units: &Units) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + units.bits.len());
    out.extend(MAGIC);
    out.extend([0; 4]);
    out.extend(digest.0);
    out.extend(len.0.to_le_bytes());
    out.extend(&units.bits);
    let crc = crc32fast::hash(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

/// What `bytes` says of this object; `None` where it is not exactly such a file.
pub fn decode(bytes: &[u8], digest: Digest, len: Bytes, count: usize) -> Option<Units> {
    let (header, bits) = bytes.split_at_checked(HEADER)?;
    let crc = crc32fast::hash(&bytes[12..]).to_le_bytes();
    let units = Units {
        bits: bits.to_vec(),
        count,
    };
    let right = header[..8] == MAGIC
        && header[8..12] == crc
        && header[12..44] == digest.0
        && header[44..] == len.0.to_le_bytes()
        && bits.len() == count.div_ceil(8)
        && (count.is_multiple_of(8) || bits[count / 8] >> (count % 8) == 0);
    right.then_some(units)
}

/// Reads the file; whatever is wrong with it, nothing is believed.
pub fn load(path: &Path, digest: Digest, len: Bytes, count: usize) -> Units {
    let most = (HEADER + count.div_ceil(8) + 1) as u64;
    let mut bytes = Vec::new();
    let read = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.ok()
        .and_then(|_| decode(&bytes, digest, len, count))
        .unwrap_or_else(|| Units::none(count))
}

/// The open file, which is rewritten in place: a torn write fails its CRC, and costs a second verification and nothing else.
#[derive(Debug)]
pub struct UnitsFile {
    file: File,
    digest: Digest,
    len: Bytes,
}

impl UnitsFile {
    pub fn create(path: &Path, digest: Digest, len: Bytes) -> io::Result<UnitsFile> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        Ok(UnitsFile { file, digest, len })
    }

    /// Makes `units` durable. Call it after the sync of the data that they stand for.
    pub fn record(&self, units: &Units) -> io::Result<()> {
        let bytes = encode(self.digest, self.len, units);
        self.file.write_all_at(&bytes, 0)?;
        self.file.set_len(bytes.len() as u64)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: Digest = Digest([7; 32]);
    const LEN: Bytes = Bytes(10 << 19);

    fn some() -> Units {
        let mut units = Units::none(10);
        units.set(0, true);
        units.set(9, true);
        units
    }

    #[test]
    fn what_is_recorded_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.units");
        assert_eq!(load(&path, DIGEST, LEN, 10).ones(), 0);
        let file = UnitsFile::create(&path, DIGEST, LEN).unwrap();
        file.record(&some()).unwrap();
        assert_eq!(load(&path, DIGEST, LEN, 10), some());
        assert_eq!(load(&path, Digest([8; 32]), LEN, 10).ones(), 0, "another object");
        assert_eq!(load(&path, DIGEST, Bytes(1), 10).ones(), 0, "another length");
        assert_eq!(load(&path, DIGEST, LEN, 17).ones(), 0, "another count");
    }

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = encode(DIGEST, LEN, &some());
        assert_eq!(bytes[..8], MAGIC);
        assert_eq!(bytes[52..], [0b0000_0001, 0b0000_0010]);
        assert_eq!(bytes.len(), 54);
    }

    #[test]
    fn bits_past_the_end_are_damage() {
        let mut units = some();
        units.bits[1] |= 0x80;
        assert_eq!(decode(&encode(DIGEST, LEN, &units), DIGEST, LEN, 10), None);
    }

    proptest! {
        #[test]
        fn a_damaged_file_says_nothing(at in 0usize..54, flip in 1u8..=255, cut in 0usize..54) {
            let bytes = encode(DIGEST, LEN, &some());
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            prop_assert_eq!(decode(&flipped, DIGEST, LEN, 10), None);
            prop_assert_eq!(decode(&bytes[..cut], DIGEST, LEN, 10), None);
        }
    }
}
