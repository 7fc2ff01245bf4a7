//! Which chunks go into a sealed delta: what a head or a raw disk shows and the chain below does not, or all that a chain shows.
//!
//! Refuses to know the delta's bytes: those are `format`'s. Invariant: what is pushed depends only on what the disk shows and on what the
//! chain below shows at the delta's virtual size, never on how the head came to have it. Memory: two windows of 1 MiB, and the head's list.

use super::map::Source;
use super::read::Chain;
use crate::blockio::{ReadAt, WriteAt};
use crate::format::Exception;
use crate::format::head::Head;
use crate::format::seal::{SealError, Sealer};
use crate::format::trailer::Facts;
use crate::units::{Bytes, ChunkSize, DiskChunk};
use std::io;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// What is read and compared at once: a multiple of every chunk size, so that no chunk lies in two windows.
const WINDOW: u64 = 1 << 20;
static ZEROS: [u8; WINDOW as usize] = [0; WINDOW as usize];

#[derive(Debug, thiserror::Error)]
pub enum SealChainError {
    #[error("sealing at {facts} bytes a disk of {disk} bytes", facts = facts.0, disk = disk.0)]
    Size { facts: Bytes, disk: Bytes },
    #[error("data range from byte {start} after one from {before}: want ascending order", start = start.0, before = before.0)]
    Order { start: Bytes, before: Bytes },
    #[error("{len} bytes at {at} of {what}", at = at.0)]
    Read {
        what: &'static str,
        at: Bytes,
        len: usize,
        #[source]
        cause: io::Error,
    },
    #[error("writing the sealed delta")]
    Seal(#[from] SealError),
}

/// How far a seal is: bytes looked at, of all that will be.
pub type Progress<'a> = &'a mut dyn FnMut(Bytes, Bytes);

/// Pushes what `head` changes on `chain`.
///
/// Shape: `facts` are the sealer's, sealed at the disk's size. `head_clip`: the smallest size the disk has had since the head was made.
/// What the chain still has behind `head_clip`, where the disk shows zeros, becomes zeros in the delta: a delta tells of its own size only.
/// Errors: [`SealChainError`]; the delta is then not finished, and its file is waste.
pub fn from_head<H: WriteAt, S: WriteAt>(
    chain: &Chain,
    head: &Head<H>,
    head_clip: Bytes,
    facts: &Facts,
    sealer: &mut Sealer<S>,
    progress: Progress,
) -> Result<(), SealChainError> {
    let size = facts.virtual_size;
    if size != chain.map().size() {
        return Err(SealChainError::Size {
            facts: size,
            disk: chain.map().size(),
        });
    }
    let exceptions = head.exceptions();
    let chunk = head.chunk_size();
    let total = Bytes(exceptions.len() as u64 * chunk.bytes().0);
    let mut source = FromHead {
        chain,
        head,
        head_clip,
        size,
        sealed: facts.chunk_size,
    };
    let (mut rest, mut from) = (&exceptions[..], 0);
    loop {
        let by_head = rest.first().map(|exception| exception.disk.0.saturating_mul(chunk.bytes().0));
        let window = match by_head.into_iter().chain(source.first_hidden(from)).min() {
            Some(at) if at < size.0 => at - at % WINDOW,
            _ => break,
        };
        let here = rest.partition_point(|exception| exception.disk.0.saturating_mul(chunk.bytes().0) < window + WINDOW);
        let (now, later) = rest.split_at(here);
        source.seal_window(window, now, sealer)?;
        (rest, from) = (later, window + WINDOW);
        progress(Bytes(total.0 - rest.len() as u64 * chunk.bytes().0), total);
    }
    progress(total, total);
    Ok(())
}

struct FromHead<'a, H> {
    chain: &'a Chain,
    head: &'a Head<H>,
    head_clip: Bytes,
    size: Bytes,
    sealed: ChunkSize,
}

impl<H: WriteAt> FromHead<'_, H> {
    /// The first byte from `from` on that the chain has and the head's smallest size hides.
    fn first_hidden(&self, from: u64) -> Option<u64> {
        let hidden = Bytes(from).max(self.head_clip)..self.size;
        self.chain
            .map()
            .segments(hidden)
            .find(|piece| piece.source != Source::Zero)
            .map(|piece| piece.at.0)
    }

    /// The sealed chunks of a window that may differ from the chain's, in runs of bytes.
    fn touched(&self, window: u64, exceptions: &[Exception]) -> Vec<Range<u64>> {
        let bytes = self.sealed.bytes().0;
        let end = (window + WINDOW).min(self.sealed.count(self.size) * bytes);
        let mut touched = vec![false; ((end - window) / bytes) as usize];
        let mut mark = |start: u64, stop: u64| {
            let (first, last) = ((start - window) / bytes, (stop.min(end) - window).div_ceil(bytes));
            (first..last).for_each(|index| touched[index as usize] = true);
        };
        let head_bytes = self.head.chunk_size().bytes().0;
        for exception in exceptions {
            mark(exception.disk.0 * head_bytes, (exception.disk.0 + 1) * head_bytes);
        }
        let hidden = Bytes(window).max(self.head_clip)..Bytes(end).min(self.size);
        for piece in self.chain.map().segments(hidden).filter(|piece| piece.source != Source::Zero) {
            mark(piece.at.0, piece.end().0);
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, _) in touched.iter().enumerate().filter(|(_, touched)| **touched) {
            let at = window + index as u64 * bytes;
            match runs.last_mut() {
                Some(last) if last.end == at => last.end += bytes,
                _ => runs.push(at..at + bytes),
            }
        }
        runs
    }

    fn seal_window<S: WriteAt>(&mut self, window: u64, exceptions: &[Exception], sealer: &mut Sealer<S>) -> Result<(), SealChainError> {
        for run in self.touched(window, exceptions) {
            let len = (run.end - run.start) as usize;
            let failed = |what, at, len| {
                move |cause| SealChainError::Read {
                    what,
                    at: Bytes(at),
                    len,
                    cause,
                }
            };
            let mut below = vec![0; len];
            self.chain
                .read(Bytes(run.start), &mut below)
                .map_err(failed("the chain below", run.start, len))?;
            let mut now = below.clone();
            let within = |at: u64| (at.clamp(run.start, run.end) - run.start) as usize;
            now[within(self.head_clip.0)..].fill(0);
            for (disk, file, len) in self.stretches(&run, exceptions) {
                let part = &mut now[within(disk)..within(disk + len)];
                let len = part.len();
                self.head.io().read_at(part, Bytes(file)).map_err(failed("the head", file, len))?;
            }
            now[within(self.size.0)..].fill(0);
            push_changed(run.start, &now, &below, self.sealed, sealer)?;
        }
        Ok(())
    }

    /// Disk offset, file offset and length of what the head has in `run`, joined where both go on.
    fn stretches(&self, run: &Range<u64>, exceptions: &[Exception]) -> Vec<(u64, u64, u64)> {
        let bytes = self.head.chunk_size().bytes().0;
        let mut out: Vec<(u64, u64, u64)> = Vec::new();
        for exception in exceptions {
            // Within the file, as the head was opened or written; so no overflow.
            let (disk, file) = (exception.disk.0 * bytes, exception.file.0 * bytes);
            match out.last_mut() {
                _ if disk >= run.end || disk + bytes <= run.start => {}
                Some((at, from, len)) if *at + *len == disk && *from + *len == file => *len += bytes,
                _ => out.push((disk, file, bytes)),
            }
        }
        out
    }
}

/// Pushes the chunks of `now`, which begins at the disk's byte `at`, that are not as in `below`.
fn push_changed<S: WriteAt>(at: u64, now: &[u8], below: &[u8], chunk: ChunkSize, sealer: &mut Sealer<S>) -> Result<(), SealChainError> {
    let first = chunk.disk_chunk(Bytes(at)).0;
    let pairs = now.chunks_exact(chunk.as_usize()).zip(below.chunks_exact(chunk.as_usize()));
    for (disk, (new, old)) in (first..).zip(pairs) {
        if new != old {
            sealer.push(DiskChunk(disk), new)?;
        }
    }
    Ok(())
}

/// Pushes the chunks of a raw disk that are not zero: a base.
///
/// Shape: `data` are the ranges of `file` that may hold something, ascending; what lies outside is not read. The file may be shorter than the
/// disk, and what it has behind the disk's end is left out.
pub fn from_raw<S: WriteAt>(
    file: &dyn ReadAt,
    data: impl IntoIterator<Item = Range<Bytes>>,
    facts: &Facts,
    sealer: &mut Sealer<S>,
    progress: Progress,
) -> Result<(), SealChainError> {
    const WHAT: &str = "the raw disk";
    let size = file.size().map_err(|cause| SealChainError::Read {
        what: WHAT,
        at: Bytes::ZERO,
        len: 0,
        cause,
    })?;
    let end = size.min(facts.virtual_size);
    push_data(WHAT, |at, buf| file.read_at(buf, at), data, end, facts.chunk_size, sealer, progress)
}

/// Pushes the chunks of a whole chain that are not zero: one base in the place of all its deltas.
///
/// Shape: `facts` are the sealer's, sealed at the chain's size. What the chain's sizes hid is not in it.
pub fn from_chain<S: WriteAt>(chain: &Chain, facts: &Facts, sealer: &mut Sealer<S>, progress: Progress) -> Result<(), SealChainError> {
    let size = facts.virtual_size;
    if size != chain.map().size() {
        return Err(SealChainError::Size {
            facts: size,
            disk: chain.map().size(),
        });
    }
    // Pieces that meet are one range, whichever deltas they are from: else each would be read by itself.
    let mut pieces = chain.map().segments(Bytes::ZERO..size).peekable();
    let data = std::iter::from_fn(move || {
        let first = pieces.find(|piece| piece.source != Source::Zero)?;
        let mut end = first.end();
        while let Some(next) = pieces.next_if(|next| next.source != Source::Zero) {
            end = next.end();
        }
        Some(first.at..end)
    });
    let read = |at: Bytes, buf: &mut [u8]| {
        // What comes next, while this is read.
        let next = at.0 + buf.len() as u64;
        chain.will_need(Bytes(next), Bytes(next + WINDOW).min(size));
        chain.read(at, buf)
    };
    push_data("the chain", read, data, size, facts.chunk_size, sealer, progress)
}

/// Pushes what of `data` below `end` is not zero.
fn push_data<S: WriteAt>(
    what: &'static str,
    read: impl Fn(Bytes, &mut [u8]) -> io::Result<()>,
    data: impl IntoIterator<Item = Range<Bytes>>,
    end: Bytes,
    chunk: ChunkSize,
    sealer: &mut Sealer<S>,
    progress: Progress,
) -> Result<(), SealChainError> {
    let bytes = chunk.bytes().0;
    let mut buffer = vec![0; WINDOW as usize];
    let (mut done, mut before) = (0, Bytes::ZERO);
    for range in data {
        if range.start < before {
            return Err(SealChainError::Order {
                start: range.start,
                before,
            });
        }
        before = range.start;
        let mut at = done.max(range.start.0 - range.start.0 % bytes);
        let stop = range.end.min(end).0;
        while at < stop {
            // To a chunk's end, even where the data stops before it: the next range may begin in the same chunk.
            let len = (WINDOW - at % WINDOW).min((stop - at).next_multiple_of(bytes)) as usize;
            let there = len.min((end.0 - at) as usize);
            buffer[there..len].fill(0);
            read(Bytes(at), &mut buffer[..there]).map_err(|cause| SealChainError::Read {
                what,
                at: Bytes(at),
                len: there,
                cause,
            })?;
            push_changed(at, &buffer[..len], &ZEROS[..len], chunk, sealer)?;
            at += len as u64;
            done = at;
            progress(Bytes(at).min(end), end);
        }
    }
    progress(end, end);
    Ok(())
}
