//! What a delta says of itself, as it stands in the trailer and in a `.meta`.
//!
//! Refuses to know where these bytes are. Invariant: facts that were parsed have a possible disk and chunk size.
//! Byte table: `kernel-notes/delta-trailer.md`.

use super::trailer::TrailerError;
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first sealing rules: exceptions by disk chunk, without those that are equal to the parent's.
pub const SEAL_RULES: u32 = 1;

/// What a delta says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// `Digest::NONE` for a base.
    pub parent: Digest,
    /// The newest of the deltas that this one replaces; `Digest::NONE` where it replaces none.
    pub stands_for: Digest,
    pub virtual_size: Bytes,
    pub chunk_size: ChunkSize,
    pub seal_rules: u32,
    pub file_system: FileSystem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileSystem {
    None,
    Ext4,
    Xfs,
    Other,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub(super) struct RawFacts {
    parent: [u8; 32],
    stands_for: [u8; 32],
    virtual_size: U64,
    chunk_bytes: U32,
    seal_rules: U32,
    file_system: U32,
    reserved: U32,
}
pub(super) const RAW_FACTS: usize = size_of::<RawFacts>();
const _: () = assert!(RAW_FACTS == 88);
const _: () = assert!(std::mem::offset_of!(RawFacts, file_system) == 80);

impl FileSystem {
    pub fn name(self) -> &'static str {
        ["none", "ext4", "xfs", "other"][self.code() as usize]
    }

    fn code(self) -> u32 {
        match self {
            FileSystem::None => 0,
            FileSystem::Ext4 => 1,
            FileSystem::Xfs => 2,
            FileSystem::Other => 3,
        }
    }

    fn from_code(code: u32) -> Option<FileSystem> {
        [FileSystem::None, FileSystem::Ext4, FileSystem::Xfs, FileSystem::Other]
            .get(code as usize)
            .copied()
    }

    pub fn from_name(name: &str) -> Option<FileSystem> {
        (0..4).filter_map(FileSystem::from_code).find(|known| known.name() == name)
    }
}

impl Facts {
    pub(super) fn to_bytes(self) -> [u8; RAW_FACTS] {
        let raw = RawFacts {
            parent: self.parent.0,
            stands_for: self.stands_for.0,
            virtual_size: U64::new(self.virtual_size.0),
            chunk_bytes: U32::new(self.chunk_size.bytes().0 as u32),
            seal_rules: U32::new(self.seal_rules),
            file_system: U32::new(self.file_system.code()),
            reserved: U32::new(0),
        };
        raw.as_bytes().try_into().expect("the assertion above says how long it is")
    }

    /// Shape: exactly [`RAW_FACTS`] bytes, whose CRC has been checked.
    pub(super) fn parse(bytes: &[u8]) -> Result<Facts, TrailerError> {
        let damaged = |why, found: u64, want| TrailerError::Damaged {
            section: "facts",
            why,
            found,
            want,
        };
        let raw = RawFacts::ref_from_bytes(bytes).map_err(|_| damaged("length", bytes.len() as u64, RAW_FACTS as u64))?;
        if raw.reserved.get() != 0 {
            return Err(damaged("reserved word", raw.reserved.get().into(), 0));
        }
        let code = raw.file_system.get();
        Ok(Facts {
            parent: Digest(raw.parent),
            stands_for: Digest(raw.stands_for),
            virtual_size: Bytes(raw.virtual_size.get()).as_disk_size()?,
            chunk_size: ChunkSize::new(Bytes(raw.chunk_bytes.get().into()))?,
            seal_rules: raw.seal_rules.get(),
            file_system: FileSystem::from_code(code).ok_or_else(|| damaged("file system", code.into(), 3))?,
        })
    }
}
