//! The merged map: disk range -> (delta, file range), for any number of sealed deltas.
//!
//! Refuses to know what the bytes are. Invariant: the runs are sorted, disjoint and below the image's size; what no run covers reads as zeros.

mod build;
#[cfg(test)]
mod tests;

pub use build::{ChainError, Delta};

use crate::ids::Digest;
use crate::units::{Bytes, SECTOR};
use std::ops::Range;

/// Consecutive sectors of the disk that lie consecutively in one delta's file. An area of a delta is at most 2^27 sectors, so `len` never overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// First sector on the disk.
    disk: u64,
    /// First sector in the file.
    file: u64,
    /// In sectors.
    len: u32,
    delta: u32,
}
const _: () = assert!(size_of::<Run>() == 24);

impl Run {
    fn end(&self) -> u64 {
        self.disk + u64::from(self.len)
    }
}

/// Where a piece of the disk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No delta has it.
    Zero,
    /// `delta` counts from the base; `offset` is the byte in that delta's file where the piece begins.
    Delta { delta: usize, offset: Bytes },
}

/// A piece of the disk with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub at: Bytes,
    pub len: Bytes,
    pub source: Source,
}

/// The merged map of a chain.
///
/// Runs of 24 bytes, and an index of one 4-byte number per two to four runs: the disk is cut into equal buckets, and each says with
/// which run a search for its sectors begins.
#[derive(Debug)]
pub struct ChainMap {
    runs: Vec<Run>,
    /// `buckets[b]`: the first run that ends behind the first sector of bucket `b`; one more for the end of the last.
    buckets: Vec<u32>,
    /// A bucket is `1 << shift` sectors.
    shift: u32,
    size: Bytes,
    digests: Vec<Digest>,
}

impl ChainMap {
    fn index(runs: Vec<Run>, size: Bytes, digests: Vec<Digest>) -> Result<ChainMap, ChainError> {
        let mut runs = runs;
        runs.shrink_to_fit();
        if u32::try_from(runs.len()).is_err() {
            return Err(ChainError::TooManyRuns { runs: runs.len() });
        }
        let span = runs.last().map_or(0, Run::end);
        let want = (runs.len() as u64 / 2).max(1);
        let shift = (0..64).find(|shift| span >> shift < want).unwrap_or(63);
        let count = (span >> shift) + 1;
        let mut buckets = Vec::with_capacity(count as usize + 1);
        let mut next = 0;
        for bucket in 0..=count {
            while runs.get(next).is_some_and(|run| run.end() <= bucket << shift) {
                next += 1;
            }
            buckets.push(next as u32);
        }
        Ok(ChainMap {
            runs,
            buckets,
            shift,
            size,
            digests,
        })
    }

    /// The disk's size.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// The deltas, oldest first.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Runs that the map holds.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// What the map takes in memory, list of deltas included.
    pub fn memory_bytes(&self) -> usize {
        size_of::<ChainMap>()
            + self.runs.capacity() * size_of::<Run>()
            + self.buckets.capacity() * size_of::<u32>()
            + self.digests.capacity() * size_of::<Digest>()
    }

    /// The first run that ends behind `sector`.
    fn find(&self, sector: u64) -> usize {
        let bucket = usize::try_from(sector >> self.shift).unwrap_or(usize::MAX - 1);
        let (Some(&low), Some(&high)) = (self.buckets.get(bucket), self.buckets.get(bucket + 1)) else {
            return self.runs.len();
        };
        let (low, high) = (low as usize, high as usize);
        low + self.runs[low..high].partition_point(|run| run.end() <= sector)
    }

    /// The whole piece that holds the disk's byte `at`. The last piece of zeros has no end: behind the disk there is nothing else.
    pub fn lookup(&self, at: Bytes) -> Segment {
        let sector = at.0 / SECTOR;
        self.piece(self.find(sector), sector)
    }

    fn piece(&self, index: usize, sector: u64) -> Segment {
        let next = self.runs.get(index);
        if let Some(run) = next.filter(|run| run.disk <= sector) {
            let source = Source::Delta {
                delta: run.delta as usize,
                offset: Bytes(run.file * SECTOR),
            };
            return Segment {
                at: Bytes(run.disk * SECTOR),
                len: Bytes(u64::from(run.len) * SECTOR),
                source,
            };
        }
        let start = index.checked_sub(1).map_or(0, |before| self.runs[before].end()) * SECTOR;
        let end = next.map_or(u64::MAX, |run| run.disk * SECTOR);
        Segment {
            at: Bytes(start),
            len: Bytes(end - start),
            source: Source::Zero,
        }
    }

    /// The pieces of `range`, in order, the first and last cut to fit.
    pub fn segments(&self, range: Range<Bytes>) -> Segments<'_> {
        let index = self.find(range.start.0 / SECTOR);
        Segments {
            map: self,
            at: range.start,
            end: range.end,
            index,
        }
    }
}

/// What [`ChainMap::segments`] gives.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    map: &'a ChainMap,
    at: Bytes,
    end: Bytes,
    index: usize,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.at >= self.end {
            return None;
        }
        let whole = self.map.piece(self.index, self.at.0 / SECTOR);
        if whole.source != Source::Zero {
            self.index += 1;
        }
        let piece = whole.cut(self.at, self.end);
        self.at = piece.end();
        Some(piece)
    }
}

impl Segment {
    pub fn end(&self) -> Bytes {
        Bytes(self.at.0 + self.len.0)
    }

    /// The part of this piece from `start` to `end`, which must touch it.
    fn cut(self, start: Bytes, end: Bytes) -> Segment {
        let at = self.at.max(start);
        let len = Bytes(self.end().min(end).0 - at.0);
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Delta { delta, offset } => Source::Delta {
                delta,
                offset: Bytes(offset.0 + (at.0 - self.at.0)),
            },
        };
        Segment { at, len, source }
    }
}
