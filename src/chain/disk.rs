//! The disk that a chain and its head make together.
//!
//! Refuses to know who reads and writes it. Invariant: a disk chunk is recorded in the head only after all of its bytes are in the head's
//! file, so that a flush at any moment commits exceptions and data together; what was not flushed may be lost, never mixed up.

#[cfg(test)]
mod power_cut;
mod range_lock;
#[cfg(test)]
mod tests;

use super::read::Chain;
use crate::blockio::{BlockDevice, WriteAt};
use crate::format::head::Head;
use crate::units::{Bytes, DiskChunk, FileChunk};
use range_lock::RangeLock;
use std::io;

/// Bytes that `zero` works on under one lock.
const ZERO_STEP: u64 = 64 << 20;

/// A chain, and a head on it unless the disk is sealed.
///
/// Locks: a writer holds its chunks in `writing`, then takes the head's own for a moment. Readers take only the head's.
pub struct Disk<F> {
    chain: Chain,
    head: Option<Head<F>>,
    /// The smallest size the disk has had since the head was made: from there on nothing of the chain shows.
    head_clip: Bytes,
    read_only: bool,
    writing: RangeLock,
}

/// A range whose bytes are together in the head's file, or all in the chain.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u64,
    len: u64,
    /// The byte of the head's file.
    file: Option<u64>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.len
    }

    fn goes_on(&self, next: &Piece) -> bool {
        match (self.file, next.file) {
            (None, None) => true,
            (Some(file), Some(after)) => file + self.len == after,
            _ => false,
        }
    }
}

impl<F: WriteAt> Disk<F> {
    /// A disk without a head: read-only. `F` is free then: `Disk::<FileIo>::sealed(chain)`.
    pub fn sealed(chain: Chain) -> Disk<F> {
        Disk {
            chain,
            head: None,
            head_clip: Bytes(u64::MAX),
            read_only: true,
            writing: RangeLock::default(),
        }
    }

    /// A disk that is written to. `head_clip`: the smallest size the disk has had since the head was made.
    pub fn with_head(chain: Chain, head: Head<F>, head_clip: Bytes) -> Disk<F> {
        Disk {
            chain,
            head: Some(head),
            head_clip,
            read_only: false,
            writing: RangeLock::default(),
        }
    }

    /// The same disk, refusing writes.
    pub fn into_read_only(self) -> Disk<F> {
        Disk { read_only: true, ..self }
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub fn head(&self) -> Option<&Head<F>> {
        self.head.as_ref()
    }

    /// The end of a range that lies within the disk.
    fn end_of(&self, at: Bytes, len: u64) -> io::Result<u64> {
        let end = at.0.checked_add(len).filter(|end| *end <= self.size().0);
        end.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn writable(&self) -> io::Result<&Head<F>> {
        match &self.head {
            Some(head) if !self.read_only => Ok(head),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// What the head has of `at..end`, and what it has not.
    fn pieces(head: &Head<F>, at: u64, end: u64) -> io::Result<Vec<Piece>> {
        let chunk = head.chunk_size();
        let bytes = chunk.bytes().0;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = at;
        while at < end {
            let within = at % bytes;
            let file = match head.get(chunk.disk_chunk(Bytes(at))) {
                Some(slot) => Some(offset(head, slot)? + within),
                None => None,
            };
            let piece = Piece {
                at,
                len: (bytes - within).min(end - at),
                file,
            };
            match pieces.last_mut() {
                Some(last) if last.goes_on(&piece) => last.len += piece.len,
                _ => pieces.push(piece),
            }
            at = piece.end();
        }
        Ok(pieces)
    }

    /// The chunks that `at..end` touches.
    fn lock_chunks(&self, head: &Head<F>, at: u64, end: u64) -> range_lock::RangeGuard<'_> {
        let chunk = head.chunk_size();
        self.writing.lock(chunk.disk_chunk(Bytes(at)).0..chunk.count(Bytes(end)))
    }

    /// The first write to chunks that the head has not: whole chunks as they are, the ends filled up from the chain.
    fn first_write(&self, head: &Head<F>, at: u64, data: &[u8]) -> io::Result<()> {
        let chunk = head.chunk_size();
        let bytes = chunk.as_usize();
        let (mut at, mut rest) = (at, data);
        while !rest.is_empty() {
            let disk = chunk.disk_chunk(Bytes(at));
            let within = (at % chunk.bytes().0) as usize;
            let part = if within == 0 && rest.len() >= bytes {
                let part = rest.len() - rest.len() % bytes;
                write_new(head, disk, &rest[..part])?;
                part
            } else {
                let part = rest.len().min(bytes - within);
                let mut whole = vec![0; bytes];
                self.chain.read_below(Bytes(at - within as u64), &mut whole, self.head_clip)?;
                whole[within..within + part].copy_from_slice(&rest[..part]);
                write_new(head, disk, &whole)?;
                part
            };
            rest = &rest[part..];
            at += part as u64;
        }
        Ok(())
    }

    /// Zeros where the head has nothing: no work where the chain shows zeros, else exceptions without data.
    fn first_zero(&self, head: &Head<F>, at: u64, end: u64) -> io::Result<()> {
        let chunk = head.chunk_size();
        let bytes = chunk.bytes().0;
        // Whole chunks in a row that hide something of the chain.
        let mut hiding: Option<(DiskChunk, u64)> = None;
        let mut at = at;
        while at < end {
            let disk = chunk.disk_chunk(Bytes(at));
            let from = disk.0 * bytes;
            let to = (from + bytes).min(end);
            let whole = at == from && to == (from + bytes).min(self.size().0);
            if self.chain.is_hole(Bytes(at), Bytes(to), self.head_clip) {
                flush_zeros(head, &mut hiding)?;
            } else if whole {
                match &mut hiding {
                    Some((_, count)) => *count += 1,
                    None => hiding = Some((disk, 1)),
                }
            } else {
                flush_zeros(head, &mut hiding)?;
                self.first_write(head, at, &vec![0; (to - at) as usize])?;
            }
            at = to;
        }
        flush_zeros(head, &mut hiding)
    }
}

/// First byte of a chunk of the head's file.
fn offset<F: WriteAt>(head: &Head<F>, slot: FileChunk) -> io::Result<u64> {
    match head.chunk_size().offset(slot) {
        Some(at) => Ok(at.0),
        None => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

/// New file chunks, in runs; fewer when the head is full.
fn allocate<F: WriteAt>(head: &Head<F>, count: u64) -> Vec<(FileChunk, u64)> {
    let mut runs: Vec<(FileChunk, u64)> = Vec::new();
    for _ in 0..count {
        let Some(slot) = head.allocate() else { break };
        match runs.last_mut() {
            Some((first, len)) if first.0 + *len == slot.0 => *len += 1,
            _ => runs.push((slot, 1)),
        }
    }
    runs
}

/// Says where `count` chunks are now. Their data is in the file, and the caller holds them locked.
fn record<F: WriteAt>(head: &Head<F>, disk: DiskChunk, file: FileChunk, count: u64) {
    for index in 0..count {
        let new = head.record(DiskChunk(disk.0 + index), FileChunk(file.0 + index));
        assert!(new, "the chunk is locked, and the head did not have it");
    }
}

/// Writes whole chunks to new places, one write per run of them.
fn write_new<F: WriteAt>(head: &Head<F>, first: DiskChunk, data: &[u8]) -> io::Result<()> {
    let bytes = head.chunk_size().as_usize();
    let (mut disk, mut rest) = (first, data);
    for (file, count) in allocate(head, (data.len() / bytes) as u64) {
        let (part, after) = rest.split_at(count as usize * bytes);
        head.io().write_at(part, Bytes(offset(head, file)?))?;
        record(head, disk, file, count);
        disk.0 += count;
        rest = after;
    }
    all_or_full(rest.is_empty())
}

/// What a head at its limit says; all that it has stays readable, and writable in place.
fn all_or_full(all: bool) -> io::Result<()> {
    match all {
        true => Ok(()),
        false => Err(io::ErrorKind::StorageFull.into()),
    }
}

/// Gives chunks that hide something a place that reads as zeros.
fn flush_zeros<F: WriteAt>(head: &Head<F>, hiding: &mut Option<(DiskChunk, u64)>) -> io::Result<()> {
    const SECTOR: [u8; 512] = [0; 512];
    let Some((mut disk, wanted)) = hiding.take() else {
        return Ok(());
    };
    let end_of_all = disk.0 + wanted;
    for (file, count) in allocate(head, wanted) {
        let start = offset(head, file)?;
        let end = offset(head, FileChunk(file.0 + count))?;
        head.erase(Bytes(start), Bytes(end - start))?;
        // An exception past the end of the file is damage. A write grows the file without cutting off what another thread wrote.
        if head.io().size()?.0 < end {
            head.io().write_at(&SECTOR, Bytes(end - SECTOR.len() as u64))?;
        }
        record(head, disk, file, count);
        disk.0 += count;
    }
    all_or_full(disk.0 == end_of_all)
}

impl<F: WriteAt> BlockDevice for Disk<F> {
    fn size(&self) -> Bytes {
        self.chain.map().size()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, at: Bytes, buf: &mut [u8]) -> io::Result<()> {
        let end = self.end_of(at, buf.len() as u64)?;
        let Some(head) = &self.head else {
            return self.chain.read(at, buf);
        };
        let mut rest = buf;
        for piece in Self::pieces(head, at.0, end)? {
            let (part, after) = rest.split_at_mut(piece.len as usize);
            match piece.file {
                Some(file) => head.io().read_at(part, Bytes(file))?,
                None => self.chain.read_below(Bytes(piece.at), part, self.head_clip)?,
            }
            rest = after;
        }
        Ok(())
    }

    fn write(&self, at: Bytes, data: &[u8]) -> io::Result<()> {
        let head = self.writable()?;
        let end = self.end_of(at, data.len() as u64)?;
        let _mine = self.lock_chunks(head, at.0, end);
        let mut rest = data;
        for piece in Self::pieces(head, at.0, end)? {
            let (part, after) = rest.split_at(piece.len as usize);
            match piece.file {
                Some(file) => head.io().write_at(part, Bytes(file))?,
                None => self.first_write(head, piece.at, part)?,
            }
            rest = after;
        }
        Ok(())
    }

    fn zero(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        let head = self.writable()?;
        let end = self.end_of(at, len.0)?;
        let mut at = at.0;
        while at < end {
            let step = (at - at % ZERO_STEP + ZERO_STEP).min(end);
            let _mine = self.lock_chunks(head, at, step);
            for piece in Self::pieces(head, at, step)? {
                match piece.file {
                    Some(file) => head.erase(Bytes(file), Bytes(piece.len))?,
                    None => self.first_zero(head, piece.at, piece.end())?,
                }
            }
            at = step;
        }
        Ok(())
    }

    fn will_need(&self, at: Bytes, len: Bytes) {
        // A head's chunks are few and were just written; the chain is what is long and cold.
        let end = Bytes(at.0.saturating_add(len.0).min(self.size().0));
        if at < end {
            self.chain.will_need(at, end);
        }
    }

    fn flush(&self) -> io::Result<()> {
        match &self.head {
            Some(head) if !self.read_only => head.commit(),
            _ => Ok(()),
        }
    }
}
