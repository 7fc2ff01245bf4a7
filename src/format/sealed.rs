//! Opens a sealed delta: its facts and extents, from the trailer alone.
//!
//! Refuses to read areas (they are a pure function of the extents, which `check` compares) and data. Invariant: a [`SealedTable`]
//! is consistent in itself and with the file's length and header.

use super::facts::Facts;
use super::trailer::{FOOTER, Footer, RAW_EXTENT, Section, TrailerError, check_shape, parse_extents};
use super::{Exception, Extent, file_chunk};
use crate::blockio::ReadAt;
use crate::format::header::Header;
use crate::units::{Bytes, DiskChunk};
use std::io;

/// Read at once.
const PIECE: u64 = 1 << 20;
/// Of a file's end read with the footer: of most deltas that is all of the trailer, so that opening a hundred of them is two reads each.
const TAIL: u64 = 16 << 10;

pub struct Sealed;

/// What a sealed delta says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedTable {
    pub facts: Facts,
    /// Ascending; no two touch.
    pub extents: Vec<Extent>,
    /// Header, areas and data.
    pub data_len: Bytes,
    pub file_len: Bytes,
    pub footer: Footer,
}

impl Sealed {
    /// Reads the trailer of a sealed delta.
    ///
    /// Errors: [`TrailerError`]; memory stays within the size of the extents section, which is within the file.
    pub fn open(io: &dyn ReadAt) -> Result<SealedTable, TrailerError> {
        let file_len = io.size().map_err(|source| TrailerError::Io {
            at: Bytes::ZERO,
            len: 0,
            source,
        })?;
        if file_len.0 < 3 * FOOTER || !file_len.0.is_multiple_of(FOOTER) {
            return Err(TrailerError::Length { len: file_len.0 });
        }
        let tail = Tail::read(io, file_len)?;
        let footer = read(&tail, Bytes(file_len.0 - FOOTER), FOOTER)?;
        let footer = Footer::parse(&footer, file_len)?;
        let mut facts = Vec::new();
        read_section(&tail, footer.facts, |piece| facts.extend_from_slice(piece))?;
        let facts = Facts::parse(&facts)?;
        let mut extents = Vec::new();
        read_section(&tail, footer.extents, |piece| parse_extents(piece, &mut extents))?;
        check_shape(&facts, &extents, footer.data_len, file_len)?;
        let header = Header::parse(&read(io, Bytes::ZERO, 16)?)?;
        if header != Header::new(facts.chunk_size) {
            let (found, want) = (header.chunk_size.bytes().0, facts.chunk_size.bytes().0);
            return Err(TrailerError::Damaged {
                section: "header",
                why: "chunk size, or the valid flag",
                found,
                want,
            });
        }
        Ok(SealedTable {
            facts,
            extents,
            data_len: footer.data_len,
            file_len,
            footer,
        })
    }
}

impl SealedTable {
    /// How many exceptions the delta has.
    pub fn exception_count(&self) -> u64 {
        self.extents.iter().map(|extent| extent.count).sum()
    }

    /// All exceptions, in order: what the areas must say.
    pub fn exceptions(&self) -> impl Iterator<Item = Exception> {
        let disk = self.extents.iter().flat_map(|extent| extent.disk.0..extent.disk.0 + extent.count);
        let chunk = self.facts.chunk_size;
        disk.zip(0..).map(move |(disk, index)| Exception {
            disk: DiskChunk(disk),
            file: file_chunk(chunk, index),
        })
    }
}

/// A file whose end has been read.
struct Tail<'a> {
    io: &'a dyn ReadAt,
    start: u64,
    bytes: Vec<u8>,
}

impl Tail<'_> {
    fn read(io: &dyn ReadAt, file_len: Bytes) -> Result<Tail<'_>, TrailerError> {
        let start = file_len.0.saturating_sub(TAIL);
        let bytes = read(io, Bytes(start), file_len.0 - start)?;
        Ok(Tail { io, start, bytes })
    }
}

impl ReadAt for Tail<'_> {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        let within =
            at.0.checked_sub(self.start)
                .and_then(|skip| self.bytes.get(usize::try_from(skip).ok()?..));
        match within.and_then(|rest| rest.get(..buf.len())) {
            Some(there) => buf.copy_from_slice(there),
            None => self.io.read_at(buf, at)?,
        }
        Ok(())
    }

    fn size(&self) -> io::Result<Bytes> {
        self.io.size()
    }
}

fn read(io: &dyn ReadAt, at: Bytes, len: u64) -> Result<Vec<u8>, TrailerError> {
    let mut bytes = vec![0; len as usize];
    io.read_at(&mut bytes, at).map_err(|source| TrailerError::Io { at, len, source })?;
    Ok(bytes)
}

/// Gives a section to `take` in pieces of whole extents, and then says whether its CRC was right.
pub(super) fn read_section(io: &dyn ReadAt, section: Section, mut take: impl FnMut(&[u8])) -> Result<(), TrailerError> {
    const _: () = assert!(PIECE.is_multiple_of(RAW_EXTENT));
    let mut crc = crc32fast::Hasher::new();
    let mut done = 0;
    while done < section.length {
        let piece = read(io, Bytes(section.offset.0 + done), PIECE.min(section.length - done))?;
        crc.update(&piece);
        take(&piece);
        done += piece.len() as u64;
    }
    let found = crc.finalize();
    if found != section.crc {
        return Err(TrailerError::Crc {
            section: section.name,
            found,
            want: section.crc,
        });
    }
    Ok(())
}
