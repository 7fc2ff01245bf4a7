//! Finds what is wrong with a delta, and says where: area, exception, byte.
//!
//! Refuses to repair, and to know parents. Invariant: a delta without findings is one that the kernel and we read alike; memory is
//! bounded by the file's size.

use super::exceptions::{ReadError, Table, area_bytes, read_all, read_area};
use super::header::HeaderError;
use super::sealed::{Sealed, SealedTable, read_section};
use super::trailer::TrailerError;
use super::verity::{Hash, UNIT, digest_of_units, unit_hash};
use super::{Exception, crcs};
use crate::blockio::ReadAt;
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize, FileChunk};
use std::fmt;

#[cfg(test)]
mod tests;

/// What the file is meant to be. It cannot be told from the file: a sealed delta that lost its trailer looks like a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Head,
    Sealed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// Zeros where a header or trailer should be.
    Blank,
    /// Something else is there.
    NotOurs,
    /// Written by something newer than this program.
    Newer,
    BadHeader,
    /// The kernel gave up on this snapshot; its exceptions may still be whole.
    Invalidated,
    BadTrailer,
    /// A disk chunk that an earlier exception has already: the kernel believes the first.
    Duplicate,
    /// Two disk chunks in one file chunk.
    Shared,
    /// Data where the kernel keeps metadata.
    MetadataSlot,
    PastEnd,
    /// A sealed delta's exceptions are not in the disk's order.
    Unsorted,
    /// A sealed delta's areas are not those that its trailer's extents give.
    AreaDiffers,
    /// No empty area behind an exactly full one: the kernel refuses the delta.
    MissingArea,
    Crc,
    Digest,
    Unreadable,
}

impl FindingKind {
    /// One word for scripts.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Blank => "blank",
            FindingKind::NotOurs => "not-ours",
            FindingKind::Newer => "newer",
            FindingKind::BadHeader => "bad-header",
            FindingKind::Invalidated => "invalidated",
            FindingKind::BadTrailer => "bad-trailer",
            FindingKind::Duplicate => "duplicate-exception",
            FindingKind::Shared => "shared-chunk",
            FindingKind::MetadataSlot => "metadata-slot",
            FindingKind::PastEnd => "past-end",
            FindingKind::Unsorted => "unsorted",
            FindingKind::AreaDiffers => "area-differs",
            FindingKind::MissingArea => "missing-area",
            FindingKind::Crc => "crc",
            FindingKind::Digest => "digest",
            FindingKind::Unreadable => "unreadable",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub area: Option<u64>,
    /// Its number in the whole file.
    pub exception: Option<u64>,
    /// Where in the file the wrong bytes are.
    pub offset: Option<Bytes>,
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = [
            ("area", self.area),
            ("exception", self.exception),
            ("byte", self.offset.map(|at| at.0)),
        ];
        let places: Vec<String> = places
            .iter()
            .filter_map(|(name, number)| Some(format!("{name} {}", (*number)?)))
            .collect();
        let colon = if places.is_empty() { "" } else { ": " };
        write!(f, "{}{colon}{}", places.join(", "), self.text)
    }
}

impl Finding {
    fn new(kind: FindingKind, text: impl ToString) -> Finding {
        Finding {
            kind,
            area: None,
            exception: None,
            offset: None,
            text: text.to_string(),
        }
    }

    fn at(self, offset: Bytes) -> Finding {
        Finding {
            offset: Some(offset),
            ..self
        }
    }

    /// Something about the exception number `index`.
    fn of(kind: FindingKind, chunk: ChunkSize, index: u64, text: impl ToString) -> Finding {
        let (area, slot) = (index / chunk.exceptions_per_area(), index % chunk.exceptions_per_area());
        let offset = area_offset(chunk, area).and_then(|at| at.checked_add(Bytes(slot * 16)));
        Finding {
            area: Some(area),
            exception: Some(index),
            offset,
            ..Finding::new(kind, text)
        }
    }
}

fn area_offset(chunk: ChunkSize, area: u64) -> Option<Bytes> {
    chunk.area_chunk(area).and_then(|slot| chunk.offset(slot))
}

/// What a sealed delta is meant to be, for `check_deep`.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub digest: Digest,
    /// The hashes of a `.meta`: with them, damage is found to 512 KiB. Not believed unless they give `digest`.
    pub units: Option<&'a [Hash]>,
}

/// Checks header, areas, and a sealed delta's trailer; reads no data.
pub fn check(io: &dyn ReadAt, kind: Kind, sink: &mut dyn FnMut(Finding)) {
    let table = match read_all(io) {
        Ok(table) => table,
        Err(error) => return sink(read_finding(&error)),
    };
    if !table.header.valid {
        sink(
            Finding::new(
                FindingKind::Invalidated,
                "invalidated by the kernel (its disk was full, or an I/O error): check --repair",
            )
            .at(Bytes(4)),
        );
    }
    match kind {
        Kind::Head => check_table(&table, kind, table.file_len, sink),
        Kind::Sealed => match Sealed::open(io) {
            Ok(sealed) => {
                if check_areas(io, &sealed, sink) > 0 {
                    check_table(&table, kind, sealed.data_len, sink);
                }
            }
            Err(error) => {
                if table.header.valid || !matches!(error, TrailerError::Damaged { section: "header", .. }) {
                    sink(trailer_finding(&error, table.file_len));
                }
                check_table(&table, kind, table.file_len, sink);
            }
        },
    }
}

/// `check`, and then the CRC of each 64 KiB and the digest of a sealed delta. `progress` hears of the bytes read.
pub fn check_deep(io: &dyn ReadAt, want: Expected<'_>, progress: &mut dyn FnMut(Bytes), sink: &mut dyn FnMut(Finding)) {
    check(io, Kind::Sealed, sink);
    let mut crcs = Vec::new();
    let mut data_len = Bytes::ZERO;
    if let Ok(sealed) = Sealed::open(io) {
        match read_section(io, sealed.footer.crcs, |piece| crcs.extend_from_slice(piece)) {
            Ok(()) => data_len = sealed.data_len,
            Err(error) => sink(trailer_finding(&error, sealed.file_len)),
        }
    }
    if let Err((at, error)) = check_bytes(io, want, &crcs, data_len, progress, sink) {
        sink(Finding::new(FindingKind::Unreadable, error).at(at));
    }
}

fn check_bytes(
    io: &dyn ReadAt,
    want: Expected<'_>,
    crcs: &[u8],
    data_len: Bytes,
    progress: &mut dyn FnMut(Bytes),
    sink: &mut dyn FnMut(Finding),
) -> Result<(), (Bytes, std::io::Error)> {
    let len = io.size().map_err(|error| (Bytes::ZERO, error))?;
    let believed = want.units.filter(|units| digest_of_units(units, len) == want.digest);
    let mut units = Vec::new();
    let mut buffer = vec![0; UNIT as usize];
    let mut at = 0;
    while at < len.0 {
        let part = &mut buffer[..(len.0 - at).min(UNIT) as usize];
        io.read_at(part, Bytes(at)).map_err(|error| (Bytes(at), error))?;
        let data = &part[..data_len.0.saturating_sub(at).min(part.len() as u64) as usize];
        for (index, window) in (at / crcs::WINDOW..).zip(data.chunks(crcs::WINDOW as usize)) {
            let (found, want) = (crc32fast::hash(window), crc_of(crcs, index));
            if Some(found) != want {
                let text = format!(
                    "damaged data in these {} bytes: CRC {found:#010x}, want {:#010x}",
                    window.len(),
                    want.unwrap_or_default()
                );
                sink(Finding::new(FindingKind::Crc, text).at(Bytes(index * crcs::WINDOW)));
            }
        }
        let hash = unit_hash(part);
        if let Some(want) = believed.and_then(|units| units.get(units_len(at)))
            && hash != *want
        {
            let text = format!(
                "damaged in these {} bytes: hash {}, want {}",
                part.len(),
                hex::encode(hash),
                hex::encode(want)
            );
            sink(Finding::new(FindingKind::Digest, text).at(Bytes(at)));
        }
        units.push(hash);
        at += part.len() as u64;
        progress(Bytes(part.len() as u64));
    }
    let found = digest_of_units(&units, len);
    if found != want.digest {
        sink(Finding::new(FindingKind::Digest, format!("digest {found}, want {}", want.digest)));
    }
    Ok(())
}

fn units_len(at: u64) -> usize {
    (at / UNIT) as usize
}

fn crc_of(crcs: &[u8], index: u64) -> Option<u32> {
    let start = usize::try_from(index).ok()?.checked_mul(4)?;
    Some(u32::from_le_bytes(crcs.get(start..start.checked_add(4)?)?.try_into().ok()?))
}

/// Compares a sealed delta's header and areas with those that its extents give; returns how many differ.
fn check_areas(io: &dyn ReadAt, sealed: &SealedTable, sink: &mut dyn FnMut(Finding)) -> u64 {
    let chunk = sealed.facts.chunk_size;
    let mut exceptions = sealed.exceptions();
    let mut differ = 0;
    for area in 0..super::areas(chunk, sealed.exception_count()) {
        let slots: Vec<Exception> = exceptions.by_ref().take(chunk.exceptions_per_area() as usize).collect();
        let found = match read_area(io, chunk, area, sealed.data_len) {
            Ok(Some(found)) => found,
            Ok(None) => unreachable!("the trailer's extents were compared with the length of the data"),
            Err(error) => {
                sink(read_finding(&error));
                continue;
            }
        };
        let want = area_bytes(chunk, &slots);
        let wrong: Vec<usize> = (0..want.len() / 16)
            .filter(|slot| found[slot * 16..][..16] != want[slot * 16..][..16])
            .collect();
        if let Some(first) = wrong.first() {
            differ += 1;
            let index = area * chunk.exceptions_per_area() + *first as u64;
            let text = format!(
                "the area differs from the trailer's extents in {} places, this is the first",
                wrong.len()
            );
            sink(Finding::of(FindingKind::AreaDiffers, chunk, index, text));
        }
    }
    let mut rest = vec![0; chunk.as_usize() - 16];
    match io.read_at(&mut rest, Bytes(16)) {
        Err(error) => sink(Finding::new(FindingKind::Unreadable, error).at(Bytes(16))),
        Ok(()) => {
            if let Some(at) = rest.iter().position(|byte| *byte != 0) {
                sink(Finding::new(FindingKind::BadHeader, "something in the header's chunk behind the header").at(Bytes(16 + at as u64)));
            }
        }
    }
    differ
}

/// Checks what the kernel would read; data must end before `end`.
fn check_table(table: &Table, kind: Kind, end: Bytes, sink: &mut dyn FnMut(Finding)) {
    let chunk = table.header.chunk_size;
    for (index, exception) in (0..).zip(&table.exceptions) {
        let mut found = |kind, text| sink(Finding::of(kind, chunk, index, text));
        let (disk, file) = (exception.disk.0, exception.file.0);
        if chunk.is_metadata(exception.file) {
            found(
                FindingKind::MetadataSlot,
                format!("data of disk chunk {disk} in file chunk {file}, a place for metadata"),
            );
        }
        let stop = file.checked_add(1).and_then(|next| chunk.offset(FileChunk(next)));
        if stop.is_none_or(|stop| stop > end) {
            found(
                FindingKind::PastEnd,
                format!("data of disk chunk {disk} in file chunk {file}, past the end at byte {}", end.0),
            );
        }
        if let Some(before) = (index as usize).checked_sub(1).map(|before| table.exceptions[before].disk.0)
            && kind == Kind::Sealed
            && disk < before
        {
            found(FindingKind::Unsorted, format!("disk chunk {disk} after {before} in a sealed delta"));
        }
    }
    check_twice(table, FindingKind::Duplicate, "disk chunk", |exception| exception.disk.0, sink);
    check_twice(table, FindingKind::Shared, "file chunk", |exception| exception.file.0, sink);
    if table.missing_area {
        let area = table.last_area();
        let text = "no empty area behind one that is exactly full: the kernel refuses this";
        sink(Finding {
            area: Some(area),
            offset: area_offset(chunk, area),
            ..Finding::new(FindingKind::MissingArea, text)
        });
    }
}

/// Finds exceptions that share a number which each should have alone.
fn check_twice(table: &Table, kind: FindingKind, name: &str, number: impl Fn(&Exception) -> u64, sink: &mut dyn FnMut(Finding)) {
    let mut all: Vec<(u64, u64)> = table.exceptions.iter().map(number).zip(0..).collect();
    all.sort_unstable();
    for pair in all.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        let text = format!("{name} {} for the second time, before in exception {}", pair[1].0, pair[0].1);
        sink(Finding::of(kind, table.header.chunk_size, pair[1].1, text));
    }
}

fn read_finding(error: &ReadError) -> Finding {
    match error {
        ReadError::Header(cause) => {
            let kind = match cause {
                HeaderError::Blank => FindingKind::Blank,
                HeaderError::NotOurs { .. } => FindingKind::NotOurs,
                HeaderError::Newer { .. } => FindingKind::Newer,
                HeaderError::Truncated { .. } | HeaderError::Version | HeaderError::Chunk { .. } => FindingKind::BadHeader,
            };
            let at = match cause {
                HeaderError::Newer { .. } | HeaderError::Version => 8,
                HeaderError::Chunk { .. } => 12,
                _ => 0,
            };
            Finding::new(kind, with_causes(cause)).at(Bytes(at))
        }
        ReadError::Io { at, .. } => Finding::new(FindingKind::Unreadable, with_causes(error)).at(*at),
    }
}

fn trailer_finding(error: &TrailerError, file_len: Bytes) -> Finding {
    let footer = Bytes(file_len.0.saturating_sub(super::trailer::FOOTER));
    let (kind, at) = match error {
        TrailerError::Blank => (FindingKind::Blank, footer),
        TrailerError::NotOurs { .. } => (FindingKind::NotOurs, footer),
        TrailerError::Newer { .. } => (FindingKind::Newer, Bytes(footer.0 + 8)),
        TrailerError::Incompatible { .. } => (FindingKind::Newer, Bytes(footer.0 + 12)),
        TrailerError::Io { at, .. } => (FindingKind::Unreadable, *at),
        TrailerError::Header(_) => (FindingKind::BadHeader, Bytes::ZERO),
        TrailerError::Damaged { section: "header", .. } => (FindingKind::BadHeader, Bytes(12)),
        TrailerError::Length { .. }
        | TrailerError::Crc { .. }
        | TrailerError::Damaged { .. }
        | TrailerError::Extent { .. }
        | TrailerError::Unit(_) => (FindingKind::BadTrailer, footer),
    };
    Finding::new(kind, with_causes(error)).at(at)
}

/// A finding is printed by people who have no `source()`.
fn with_causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_causes(cause)),
        None => error.to_string(),
    }
}
