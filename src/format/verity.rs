//! fs-verity's hash tree (SHA-256, 4 KiB blocks, no salt), built from blocks that arrive in any order.
//!
//! Refuses to know what it hashes. Invariant: the digest is what `fsverity digest` prints for the same bytes.
//! Source: Linux 6.1 `Documentation/filesystems/fsverity.rst`, `fs/verity/open.c`; byte table: `kernel-notes/delta-trailer.md`.

use crate::blockio::ReadAt;
use crate::ids::Digest;
use crate::units::Bytes;
use aws_lc_rs::digest::{SHA256, digest};
use std::collections::BTreeMap;
use std::io;
use zerocopy::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

/// The block that is hashed, and the size of a block of hashes.
pub const BLOCK: u64 = 4096;
/// What one hash of the second level vouches for: the blocks whose hashes fill a block.
pub const UNIT: u64 = 512 << 10;
const BLOCK_BYTES: usize = BLOCK as usize;
const PER_BLOCK: u64 = BLOCK / 32;
const _: () = assert!(PER_BLOCK * BLOCK == UNIT);

pub type Hash = [u8; 32];

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct RawDescriptor {
    version: u8,
    hash_algorithm: u8,
    log_blocksize: u8,
    salt_size: u8,
    reserved: [u8; 4],
    data_size: U64,
    root_hash: [u8; 64],
    salt: [u8; 32],
    reserved_behind: [u8; 144],
}
const _: () = assert!(size_of::<RawDescriptor>() == 256);
const _: () = assert!(std::mem::offset_of!(RawDescriptor, root_hash) == 16);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerityError {
    #[error("hash tree of {len} bytes: unit {unit} has {found} blocks, want {want}")]
    Unit { len: u64, unit: u64, found: u32, want: u64 },
}

fn sha256(bytes: &[u8]) -> Hash {
    digest(&SHA256, bytes).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

/// Hash of one block; zeros stand behind a short one.
fn block_hash(block: &[u8]) -> Hash {
    if block.len() == BLOCK_BYTES {
        return sha256(block);
    }
    let mut padded = [0; BLOCK_BYTES];
    padded[..block.len()].copy_from_slice(block);
    sha256(&padded)
}

/// The hash that vouches for one unit of a file: that of its block of hashes.
///
/// Shape: at most [`UNIT`] bytes; less only at the file's end.
pub fn unit_hash(data: &[u8]) -> Hash {
    let mut hashes = [0; BLOCK_BYTES];
    for (slot, block) in hashes.chunks_exact_mut(32).zip(data.chunks(BLOCK_BYTES)) {
        slot.copy_from_slice(&block_hash(block));
    }
    sha256(&hashes)
}

/// How many units a file has.
pub fn unit_count(file_len: Bytes) -> u64 {
    file_len.0.div_ceil(UNIT)
}

/// A file's digest from the hashes of its units.
///
/// Shape: for files longer than one block, which every delta is; of a shorter one the tree has no block of hashes.
pub fn digest_of_units(units: &[Hash], file_len: Bytes) -> Digest {
    let mut level = units.to_vec();
    while level.len() > 1 {
        level = level.chunks(PER_BLOCK as usize).map(hash_of_hashes).collect();
    }
    descriptor_digest(level.first().copied().unwrap_or_default(), file_len)
}

fn hash_of_hashes(hashes: &[Hash]) -> Hash {
    block_hash(hashes.as_bytes())
}

fn descriptor_digest(root: Hash, file_len: Bytes) -> Digest {
    let mut root_hash = [0; 64];
    root_hash[..32].copy_from_slice(&root);
    let descriptor = RawDescriptor {
        version: 1,
        hash_algorithm: 1,
        log_blocksize: 12,
        salt_size: 0,
        reserved: [0; 4],
        data_size: U64::new(file_len.0),
        root_hash,
        salt: [0; 32],
        reserved_behind: [0; 144],
    };
    Digest(sha256(descriptor.as_bytes()))
}

/// The digest of a whole file, of any length, and the hashes of its units; `progress` hears of each unit's bytes.
pub fn digest_file(io: &dyn ReadAt, progress: &mut dyn FnMut(Bytes)) -> io::Result<(Digest, Vec<Hash>)> {
    let len = io.size()?;
    let mut buffer = vec![0; UNIT as usize];
    let mut units = Vec::new();
    for unit in 0..unit_count(len) {
        let part = &mut buffer[..(len.0 - unit * UNIT).min(UNIT) as usize];
        io.read_at(part, Bytes(unit * UNIT))?;
        units.push(unit_hash(part));
        progress(Bytes(part.len() as u64));
    }
    let digest = match len.0 {
        0 => descriptor_digest([0; 32], len),
        1..=BLOCK => descriptor_digest(block_hash(&buffer[..len.0 as usize]), len),
        _ => digest_of_units(&units, len),
    };
    Ok((digest, units))
}

/// Unit hashes of a file whose blocks become known in any order. Holds 4 KiB for each unit that is begun and not complete.
pub struct Builder {
    units: Vec<Hash>,
    open: BTreeMap<u64, OpenUnit>,
    zero_block: Hash,
}

struct OpenUnit {
    hashes: Box<[u8; BLOCK_BYTES]>,
    seen: u128,
}

impl OpenUnit {
    fn hash(&self) -> Hash {
        sha256(&self.hashes[..])
    }
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            units: Vec::new(),
            open: BTreeMap::new(),
            zero_block: block_hash(&[]),
        }
    }
}

impl Builder {
    /// Takes bytes of the file.
    ///
    /// Shape: `at` is a multiple of 4 KiB, and so is the length, but at the file's end; no block twice.
    pub fn put(&mut self, at: Bytes, data: &[u8]) {
        for (index, block) in data.chunks(BLOCK_BYTES).enumerate() {
            self.set(at.0 / BLOCK + index as u64, block_hash(block));
        }
    }

    /// Takes `len` zeros, without hashing them.
    pub fn put_zeros(&mut self, at: Bytes, len: Bytes) {
        for index in at.0 / BLOCK..(at.0 + len.0).div_ceil(BLOCK) {
            self.set(index, self.zero_block);
        }
    }

    fn set(&mut self, block: u64, hash: Hash) {
        let (unit, slot) = (block / PER_BLOCK, (block % PER_BLOCK) as usize);
        let new = || OpenUnit {
            hashes: Box::new([0; BLOCK_BYTES]),
            seen: 0,
        };
        let open = self.open.entry(unit).or_insert_with(new);
        open.hashes[slot * 32..][..32].copy_from_slice(&hash);
        open.seen |= 1 << slot;
        if open.seen == u128::MAX {
            let hash = open.hash();
            self.open.remove(&unit);
            self.keep(unit, hash);
        }
    }

    fn keep(&mut self, unit: u64, hash: Hash) {
        let index = unit as usize;
        if self.units.len() <= index {
            self.units.resize(index + 1, [0; 32]);
        }
        self.units[index] = hash;
    }

    /// The hashes of all units of a file of `len` bytes. Errors: a block was never put.
    pub fn finish(mut self, len: Bytes) -> Result<(Digest, Vec<Hash>), VerityError> {
        let blocks = len.0.div_ceil(BLOCK);
        for (unit, open) in std::mem::take(&mut self.open) {
            let want = blocks.saturating_sub(unit * PER_BLOCK).min(PER_BLOCK);
            let found = open.seen.count_ones();
            if u64::from(found) != want || u64::from(open.seen.trailing_ones()) != want {
                return Err(VerityError::Unit {
                    len: len.0,
                    unit,
                    found,
                    want,
                });
            }
            let hash = open.hash();
            self.keep(unit, hash);
        }
        // A unit of which no block was put has neither been open nor has it a hash.
        let missing = self.units.iter().position(|hash| *hash == [0; 32]).unwrap_or(self.units.len()) as u64;
        if missing != unit_count(len) {
            return Err(VerityError::Unit {
                len: len.0,
                unit: missing,
                found: 0,
                want: PER_BLOCK,
            });
        }
        Ok((digest_of_units(&self.units, len), self.units))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockio::MemoryIo;
    use proptest::prelude::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 4096 * 13) as u8).collect()
    }

    fn whole(bytes: &[u8]) -> (Digest, Vec<Hash>) {
        digest_file(&MemoryIo::new(bytes.to_vec()), &mut |_| {}).unwrap()
    }

    /// `fsverity digest` 1.5 printed these, for files of that many zero bytes.
    #[test]
    fn digests_of_zeros_are_the_tools() {
        for (len, want) in ZEROS {
            assert_eq!(whole(&vec![0; len]).0.to_string(), want, "{len}");
        }
    }

    const ZEROS: [(usize, &str); 5] = [
        (0, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
        (1, "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551"),
        (4097, "093756e4ea9683329106d4a16982682ed182c14bf076463a9e7f97305cbac743"),
        (524_288, "2d15bd7832895de85aa3d5bdfb57251e27bbec75ff467408340ab3eba858a2e1"),
        (524_289, "e4143a5705610b7ad2eb85482cfc033c7062a89b9faf9118603f592d53fd10e0"),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_order_of_blocks_does_not_matter(len in 4097usize..3_000_000, seed in any::<u64>()) {
            let bytes = pattern(len);
            let mut order: Vec<usize> = (0..len.div_ceil(4096)).collect();
            let mut state = seed | 1;
            for i in (1..order.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                order.swap(i, (state >> 33) as usize % (i + 1));
            }
            let mut builder = Builder::default();
            for block in order {
                let at = block * 4096;
                builder.put(Bytes(at as u64), &bytes[at..len.min(at + 4096)]);
            }
            prop_assert_eq!(builder.finish(Bytes(len as u64)).unwrap(), whole(&bytes));
        }
    }

    #[test]
    fn a_block_that_was_never_put_is_an_error() {
        let bytes = pattern(3 * UNIT as usize);
        let len = Bytes(bytes.len() as u64);
        for (start, end) in [
            (4096, bytes.len()),
            (0, bytes.len() - 4096),
            (UNIT as usize, bytes.len()),
            (0, 2 * UNIT as usize),
        ] {
            let mut builder = Builder::default();
            builder.put(Bytes(start as u64), &bytes[start..end]);
            assert!(builder.finish(len).is_err(), "{start}..{end}");
        }
        let mut builder = Builder::default();
        builder.put(Bytes::ZERO, &bytes[..UNIT as usize]);
        builder.put(Bytes(2 * UNIT), &bytes[2 * UNIT as usize..]);
        assert!(builder.finish(len).is_err());
    }

    #[test]
    fn zeros_need_no_hashing() {
        let mut builder = Builder::default();
        builder.put_zeros(Bytes::ZERO, Bytes(700_000));
        assert_eq!(builder.finish(Bytes(700_000)).unwrap(), whole(&vec![0; 700_000]));
    }

    #[cfg(feature = "root-tests")]
    #[test]
    fn digests_are_what_the_fsverity_command_prints() {
        use std::io::Write;
        for len in [0, 1, 4095, 4096, 4097, 524_288, 524_289, 5_000_000, 67_108_864, 67_112_961] {
            let bytes = pattern(len);
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let out = std::process::Command::new("fsverity")
                .arg("digest")
                .arg("--compact")
                .arg(file.path())
                .output()
                .unwrap();
            assert!(out.status.success(), "{out:?}");
            let want = String::from_utf8(out.stdout).unwrap();
            assert_eq!(whole(&bytes).0.to_string(), want.split_whitespace().next().unwrap(), "{len}");
        }
    }
}
