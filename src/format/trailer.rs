//! The trailer behind a sealed delta's last chunk: facts, extents, CRCs, and the footer that finds them.
//!
//! Refuses to know the data. Invariant: what `parse` returns fits together and fits the file's length; nothing is allocated for a
//! number that the file only claims. Byte table: `kernel-notes/delta-trailer.md`.

use super::facts::RAW_FACTS;
pub use super::facts::{Facts, FileSystem, SEAL_RULES};
use super::{Extent, chunks, crcs};
use crate::units::{Bytes, DiskChunk, UnitError};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The footer, and what the file's length is a multiple of.
pub const FOOTER: u64 = 4096;
pub const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"BlkBtDlt";
/// Feature bits that this program knows: none yet.
pub(super) const KNOWN_INCOMPAT: u32 = 0;
/// Extents of one delta: what a `.meta` of `MAX_META` can hold beside the hashes.
pub const MAX_EXTENTS: u64 = 8 << 20;
const SLOTS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TrailerError {
    #[error("{len} bytes are too few, or no multiple of 4096, for a sealed delta")]
    Length { len: u64 },
    #[error("blank: the last 4 KiB are zeros")]
    Blank,
    #[error("no trailer: magic {}, want {}", hex::encode(found), hex::encode(MAGIC))]
    NotOurs { found: [u8; 8] },
    #[error("written by something newer: trailer version {found}, known is {VERSION}")]
    Newer { found: u32 },
    #[error("written by something newer: incompatible feature bits {bits:#x}")]
    Incompatible { bits: u32 },
    #[error("damaged {section}: CRC {found:#010x}, want {want:#010x}")]
    Crc { section: &'static str, found: u32, want: u32 },
    #[error("damaged {section}: {why}, found {found}, want {want}")]
    Damaged {
        section: &'static str,
        why: &'static str,
        found: u64,
        want: u64,
    },
    #[error("extent {index}: {why} (disk chunk {disk}, {count} chunks)", disk = extent.disk.0, count = extent.count)]
    Extent { index: u64, extent: Extent, why: &'static str },
    #[error("damaged facts")]
    Unit(#[from] UnitError),
    #[error("header of a sealed delta")]
    Header(#[from] super::header::HeaderError),
    #[error("{len} bytes at offset {at} of a sealed delta", at = at.0)]
    Io {
        at: Bytes,
        len: u64,
        #[source]
        source: std::io::Error,
    },
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawExtent {
    disk: U64,
    count: U64,
}
pub(super) const RAW_EXTENT: u64 = size_of::<RawExtent>() as u64;
const _: () = assert!(RAW_EXTENT == 16);

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
struct RawSection {
    id: U32,
    crc: U32,
    offset: U64,
    length: U64,
}
const _: () = assert!(size_of::<RawSection>() == 24);

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawFooter {
    magic: [u8; 8],
    version: U32,
    incompat: U32,
    ro_compat: U32,
    reserved: U32,
    data_len: U64,
    file_len: U64,
    sections: [RawSection; SLOTS],
    padding: [u8; 4096 - 40 - SLOTS * 24 - 4],
    crc: U32,
}
const _: () = assert!(size_of::<RawFooter>() == FOOTER as usize);
const _: () = assert!(std::mem::offset_of!(RawFooter, sections) == 40);
const _: () = assert!(std::mem::offset_of!(RawFooter, crc) == 4092);

/// Where a section is, and its CRC-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    pub name: &'static str,
    pub offset: Bytes,
    pub length: u64,
    pub crc: u32,
}

const FACTS: (u32, &str) = (1, "facts");
const EXTENTS: (u32, &str) = (2, "extents");
const CRCS: (u32, &str) = (3, "CRCs");

/// A footer that was checked against the file's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    pub data_len: Bytes,
    pub file_len: Bytes,
    /// Feature bits that a reader may not know.
    pub ro_compat: u32,
    pub facts: Section,
    pub extents: Section,
    pub crcs: Section,
}

pub(super) fn extents_bytes(extents: &[Extent]) -> Vec<u8> {
    let raw = |extent: &Extent| RawExtent {
        disk: U64::new(extent.disk.0),
        count: U64::new(extent.count),
    };
    let mut bytes = Vec::with_capacity(extents.len() * RAW_EXTENT as usize);
    extents.iter().for_each(|extent| bytes.extend_from_slice(raw(extent).as_bytes()));
    bytes
}

/// Appends the extents in `bytes`, whose length is a multiple of 16.
pub(super) fn parse_extents(bytes: &[u8], extents: &mut Vec<Extent>) {
    extents.extend(bytes.chunks_exact(RAW_EXTENT as usize).map(|raw| {
        let raw = RawExtent::ref_from_bytes(raw).expect("chunks_exact gives 16 bytes");
        Extent {
            disk: DiskChunk(raw.disk.get()),
            count: raw.count.get(),
        }
    }));
}

/// Checks that facts, extents and lengths describe one delta: extents ascending, merged, on the disk, and as many chunks as the
/// file has room for.
pub(super) fn check_shape(facts: &Facts, extents: &[Extent], data_len: Bytes, file_len: Bytes) -> Result<(), TrailerError> {
    let disk_chunks = facts.chunk_size.count(facts.virtual_size);
    let mut behind = None;
    let mut total = 0u64;
    for (index, extent) in extents.iter().enumerate() {
        let fail = |why| TrailerError::Extent {
            index: index as u64,
            extent: *extent,
            why,
        };
        if extent.count == 0 {
            return Err(fail("it is empty"));
        }
        if behind.is_some_and(|behind| extent.disk.0 <= behind) {
            return Err(fail("it does not come after a gap behind the one before"));
        }
        let end = extent.disk.0.checked_add(extent.count).filter(|end| *end <= disk_chunks);
        behind = Some(end.ok_or_else(|| fail("it ends past the virtual size"))?);
        total += extent.count;
    }
    let want = chunks(facts.chunk_size, total).and_then(|chunks| chunks.checked_mul(facts.chunk_size.bytes().0));
    if want != Some(data_len.0) {
        let want = want.unwrap_or(u64::MAX);
        return Err(TrailerError::Damaged {
            section: EXTENTS.1,
            why: "bytes of data",
            found: data_len.0,
            want,
        });
    }
    let least = data_len.0.saturating_add(trailer_len(extents.len() as u64, data_len));
    if file_len.0 < least || !file_len.0.is_multiple_of(FOOTER) {
        return Err(TrailerError::Damaged {
            section: "footer",
            why: "length of the file",
            found: file_len.0,
            want: least,
        });
    }
    Ok(())
}

/// Bytes behind the last chunk.
pub(super) fn trailer_len(extents: u64, data_len: Bytes) -> u64 {
    let sections = RAW_FACTS as u64 + extents.saturating_mul(RAW_EXTENT) + crcs::count(data_len) * 4;
    sections.saturating_add(FOOTER - 1) / FOOTER * FOOTER + FOOTER
}

/// The trailer of a delta with `data_len` bytes of header, areas and data.
pub(super) fn build(facts: &Facts, extents: &[Extent], crcs: &[u8], data_len: Bytes) -> Vec<u8> {
    let len = trailer_len(extents.len() as u64, data_len) as usize;
    let mut bytes = Vec::with_capacity(len);
    let mut sections = [RawSection {
        id: U32::new(0),
        crc: U32::new(0),
        offset: U64::new(0),
        length: U64::new(0),
    }; SLOTS];
    let parts = [
        (FACTS.0, &facts.to_bytes()[..]),
        (EXTENTS.0, &extents_bytes(extents)),
        (CRCS.0, crcs),
    ];
    for (slot, (id, part)) in sections.iter_mut().zip(parts) {
        slot.id = U32::new(id);
        slot.crc = U32::new(crc32fast::hash(part));
        slot.offset = U64::new(data_len.0 + bytes.len() as u64);
        slot.length = U64::new(part.len() as u64);
        bytes.extend_from_slice(part);
    }
    bytes.resize(len - FOOTER as usize, 0);
    let mut footer = RawFooter {
        magic: MAGIC,
        version: U32::new(VERSION),
        incompat: U32::new(0),
        ro_compat: U32::new(0),
        reserved: U32::new(0),
        data_len: U64::new(data_len.0),
        file_len: U64::new(data_len.0 + len as u64),
        sections,
        padding: [0; _],
        crc: U32::new(0),
    };
    footer.crc = U32::new(crc32fast::hash(&footer.as_bytes()[..4092]));
    bytes.extend_from_slice(footer.as_bytes());
    bytes
}

impl Footer {
    /// Reads the last 4 KiB of a file of `file_len` bytes.
    ///
    /// Errors: blank, not ours, newer than us and damaged are told apart, in that order; the CRC is in the same place in every
    /// version, so that damage is not taken for something newer.
    pub fn parse(bytes: &[u8], file_len: Bytes) -> Result<Footer, TrailerError> {
        let damaged = |why, found, want| TrailerError::Damaged {
            section: "footer",
            why,
            found,
            want,
        };
        let raw = RawFooter::ref_from_bytes(bytes).map_err(|_| damaged("length", bytes.len() as u64, FOOTER))?;
        if raw.magic != MAGIC {
            let blank = bytes.iter().all(|byte| *byte == 0);
            return Err(if blank {
                TrailerError::Blank
            } else {
                TrailerError::NotOurs { found: raw.magic }
            });
        }
        let want = crc32fast::hash(&bytes[..4092]);
        if raw.crc.get() != want {
            return Err(TrailerError::Crc {
                section: "footer",
                found: raw.crc.get(),
                want,
            });
        }
        if raw.version.get() != VERSION {
            return Err(TrailerError::Newer { found: raw.version.get() });
        }
        if raw.incompat.get() & !KNOWN_INCOMPAT != 0 {
            return Err(TrailerError::Incompatible {
                bits: raw.incompat.get() & !KNOWN_INCOMPAT,
            });
        }
        if raw.file_len.get() != file_len.0 {
            return Err(damaged("length of the file", file_len.0, raw.file_len.get()));
        }
        let data_len = raw.data_len.get();
        let end = file_len.0.checked_sub(FOOTER).filter(|end| data_len <= *end);
        let end = end.ok_or_else(|| damaged("bytes of data", data_len, file_len.0))?;
        let mut behind = data_len;
        for raw in raw.sections.iter().filter(|raw| raw.id.get() != 0) {
            let (start, length) = (raw.offset.get(), raw.length.get());
            if start < behind || start.checked_add(length).is_none_or(|stop| stop > end) {
                return Err(damaged("offset of a section", start, behind));
            }
            behind = start + length;
        }
        let find = |(id, name): (u32, &'static str)| {
            let mut found = raw.sections.iter().filter(|raw| raw.id.get() == id);
            match (found.next(), found.next()) {
                (Some(raw), None) => Ok(Section {
                    name,
                    offset: Bytes(raw.offset.get()),
                    length: raw.length.get(),
                    crc: raw.crc.get(),
                }),
                (first, _) => Err(TrailerError::Damaged {
                    section: name,
                    why: "sections",
                    found: if first.is_some() { 2 } else { 0 },
                    want: 1,
                }),
            }
        };
        let footer = Footer {
            data_len: Bytes(data_len),
            file_len,
            ro_compat: raw.ro_compat.get(),
            facts: find(FACTS)?,
            extents: find(EXTENTS)?,
            crcs: find(CRCS)?,
        };
        footer.check_lengths()?;
        Ok(footer)
    }

    fn check_lengths(&self) -> Result<(), TrailerError> {
        let wrong = |section: Section, want| TrailerError::Damaged {
            section: section.name,
            why: "length",
            found: section.length,
            want,
        };
        if self.facts.length != RAW_FACTS as u64 {
            return Err(wrong(self.facts, RAW_FACTS as u64));
        }
        if !self.extents.length.is_multiple_of(RAW_EXTENT) || self.extents.length / RAW_EXTENT > MAX_EXTENTS {
            return Err(wrong(self.extents, MAX_EXTENTS * RAW_EXTENT));
        }
        let crcs = crcs::count(self.data_len) * 4;
        if self.crcs.length != crcs {
            return Err(wrong(self.crcs, crcs));
        }
        Ok(())
    }
}
