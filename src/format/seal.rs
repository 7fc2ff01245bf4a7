//! Writes a sealed delta in one pass: chunks in the order of the disk, their hashes and CRCs on the way.
//!
//! Refuses to know where the chunks come from; what is equal to the parent was dropped before. Invariant: the same pushes give the
//! same bytes, and so the same digest, on every host.

use super::crcs::Crcs;
use super::exceptions::area_bytes;
use super::facts::Facts;
use super::header::Header;
use super::meta::Meta;
use super::trailer::{MAX_EXTENTS, build, check_shape};
use super::verity::{BLOCK, Builder, VerityError};
use super::{Exception, Extent, areas, chunks, file_chunk, trailer};
use crate::blockio::WriteAt;
use crate::ids::Digest;
use crate::units::{Bytes, DiskChunk, UnitError};
use std::io;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// What is written at once.
const BUFFER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("disk chunk {disk} after {last}: want ascending order", disk = disk.0, last = last.0)]
    Order { disk: DiskChunk, last: DiskChunk },
    #[error("disk chunk {disk}: {found} bytes, want {want}", disk = disk.0)]
    Length { disk: DiskChunk, found: usize, want: usize },
    #[error("disk chunk {disk} begins past the virtual size of {} bytes", size.0, disk = disk.0)]
    PastEnd { disk: DiskChunk, size: Bytes },
    #[error("disk chunk {disk} is not zero past the virtual size of {} bytes", size.0, disk = disk.0)]
    Padding { disk: DiskChunk, size: Bytes },
    #[error("more than {MAX_EXTENTS} extents in one delta: seal it with a larger chunk size")]
    Extents,
    #[error("a .meta of {found} bytes, at most {} are allowed", super::meta::MAX_META)]
    MetaSize { found: u64 },
    #[error("facts of a sealed delta")]
    Facts(#[from] UnitError),
    #[error("shape of a sealed delta")]
    Shape(#[from] trailer::TrailerError),
    #[error("hashes of a sealed delta")]
    Verity(#[from] VerityError),
    #[error("CRCs of a sealed delta of {} bytes: a byte was never written", data_len.0)]
    Crcs { data_len: Bytes },
    #[error("{len} bytes at offset {at} of a new delta", at = at.0)]
    Io {
        at: Bytes,
        len: usize,
        #[source]
        source: io::Error,
    },
}

/// A delta that has been written, and not yet synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedDelta {
    pub digest: Digest,
    pub len: Bytes,
    /// The bytes of its `.meta`.
    pub meta: Vec<u8>,
    pub extents: Vec<Extent>,
    pub exceptions: u64,
}

/// Memory: 1 MiB of data, one area, 32 bytes per 512 KiB written, 16 per extent.
pub struct Sealer<F> {
    io: F,
    facts: Facts,
    extents: Vec<Extent>,
    /// How many chunks were pushed.
    count: u64,
    /// The exceptions of the area that is not full yet.
    area: Vec<Exception>,
    buffer: Vec<u8>,
    buffer_at: Bytes,
    units: Builder,
    crcs: Crcs,
    hashing: Duration,
}

impl<F: WriteAt> Sealer<F> {
    /// Begins a delta in an empty file (it is made empty: holes must read as zeros).
    pub fn new(io: F, facts: Facts) -> Result<Sealer<F>, SealError> {
        facts.virtual_size.as_disk_size()?;
        io.set_len(Bytes::ZERO).map_err(|source| SealError::Io {
            at: Bytes::ZERO,
            len: 0,
            source,
        })?;
        let mut sealer = Sealer {
            io,
            facts,
            extents: Vec::new(),
            count: 0,
            area: Vec::new(),
            buffer: Vec::with_capacity(BUFFER),
            buffer_at: Bytes::ZERO,
            units: Builder::default(),
            crcs: Crcs::default(),
            hashing: Duration::ZERO,
        };
        let mut header = vec![0; facts.chunk_size.as_usize()];
        header[..16].copy_from_slice(&Header::new(facts.chunk_size).to_bytes());
        sealer.put(Bytes::ZERO, &header)?;
        Ok(sealer)
    }

    /// Adds a chunk that differs from the parent's.
    ///
    /// Shape: one whole chunk, zero past the virtual size; disk chunks strictly ascending. Zeros are data (they hide the
    /// parent's), and take no space: the file has a hole there.
    pub fn push(&mut self, disk: DiskChunk, data: &[u8]) -> Result<(), SealError> {
        self.check(disk, data)?;
        let extents = self.extents.len() as u64;
        match self.extents.last_mut() {
            Some(last) if last.disk.0 + last.count == disk.0 => last.count += 1,
            _ if extents == MAX_EXTENTS => return Err(SealError::Extents),
            _ => self.extents.push(Extent { disk, count: 1 }),
        }
        let file = file_chunk(self.facts.chunk_size, self.count);
        let at = self.facts.chunk_size.offset(file).expect("a disk of at most 2^44 bytes fits");
        self.put(at, data)?;
        self.count += 1;
        self.area.push(Exception { disk, file });
        if self.area.len() as u64 == self.facts.chunk_size.exceptions_per_area() {
            self.put_area()?;
        }
        Ok(())
    }

    fn check(&self, disk: DiskChunk, data: &[u8]) -> Result<(), SealError> {
        let want = self.facts.chunk_size.as_usize();
        let size = self.facts.virtual_size;
        if data.len() != want {
            return Err(SealError::Length {
                disk,
                found: data.len(),
                want,
            });
        }
        if let Some(last) = self.extents.last().map(|last| DiskChunk(last.disk.0 + last.count - 1))
            && disk <= last
        {
            return Err(SealError::Order { disk, last });
        }
        let start = self.facts.chunk_size.disk_offset(disk).filter(|start| *start < size);
        let room = start.map(|start| size.0 - start.0).ok_or(SealError::PastEnd { disk, size })?;
        match data.get(room as usize..) {
            Some(tail) if !is_zero(tail) => Err(SealError::Padding { disk, size }),
            _ => Ok(()),
        }
    }

    /// The metadata chunk of the area whose chunks were the last to be pushed: only now is it known.
    fn put_area(&mut self) -> Result<(), SealError> {
        let chunk = self.facts.chunk_size;
        let index = (self.count - self.area.len() as u64) / chunk.exceptions_per_area();
        let at = chunk
            .area_chunk(index)
            .and_then(|slot| chunk.offset(slot))
            .expect("a disk of at most 2^44 bytes fits");
        let bytes = area_bytes(chunk, &self.area);
        self.area.clear();
        self.hash(at, &bytes);
        self.write(at, &bytes)
    }

    fn hash(&mut self, at: Bytes, data: &[u8]) {
        let start = Instant::now();
        self.units.put(at, data);
        self.crcs.put(at, data);
        self.hashing += start.elapsed();
    }

    /// How long hashes and CRCs took so far.
    pub fn hashing(&self) -> Duration {
        self.hashing
    }

    /// Hashes now and writes later, with what follows it in the file.
    fn put(&mut self, at: Bytes, data: &[u8]) -> Result<(), SealError> {
        if is_zero(data) {
            self.units.put_zeros(at, Bytes(data.len() as u64));
            self.crcs.put(at, data);
            return Ok(());
        }
        self.hash(at, data);
        let follows = self.buffer_at.0 + self.buffer.len() as u64 == at.0;
        if !follows || self.buffer.len() + data.len() > BUFFER {
            self.flush()?;
            self.buffer_at = at;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SealError> {
        if !self.buffer.is_empty() {
            self.write(self.buffer_at, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn write(&self, at: Bytes, data: &[u8]) -> Result<(), SealError> {
        self.io.write_at(data, at).map_err(|source| SealError::Io {
            at,
            len: data.len(),
            source,
        })
    }

    /// Writes the last area and the trailer. Does not sync: the caller does, before the delta gets its name.
    pub fn finish(mut self) -> Result<SealedDelta, SealError> {
        let chunk = self.facts.chunk_size;
        debug_assert_eq!(
            areas(chunk, self.count) - 1,
            (self.count - self.area.len() as u64) / chunk.exceptions_per_area()
        );
        self.put_area()?;
        self.flush()?;
        let data_chunks = chunks(chunk, self.count).expect("a disk of at most 2^44 bytes fits");
        let data_len = Bytes(data_chunks * chunk.bytes().0);
        let crcs = std::mem::take(&mut self.crcs)
            .finish(data_len)
            .ok_or(SealError::Crcs { data_len })?;
        let trailer = build(&self.facts, &self.extents, &crcs, data_len);
        self.units.put(data_len, &trailer);
        for (index, piece) in trailer.chunks(BUFFER).enumerate() {
            self.write(Bytes(data_len.0 + (index * BUFFER) as u64), piece)?;
        }
        let len = Bytes(data_len.0 + trailer.len() as u64);
        check_shape(&self.facts, &self.extents, data_len, len)?;
        let (digest, units) = std::mem::take(&mut self.units).finish(len)?;
        let meta = Meta {
            facts: self.facts,
            file_len: len,
            data_len,
            extents: self.extents,
            units,
        };
        let bytes = meta.encode();
        if bytes.len() as u64 > super::meta::MAX_META {
            return Err(SealError::MetaSize { found: bytes.len() as u64 });
        }
        Ok(SealedDelta {
            digest,
            len,
            meta: bytes,
            extents: meta.extents,
            exceptions: self.count,
        })
    }
}

fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
    data.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
