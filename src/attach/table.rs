//! The flat table: a merged chain as one list of device-mapper targets, with the short runs gathered in one snapshot.
//!
//! Pure: no devices, no files. Invariant: the pieces of a [`FlatTable`] follow one another from sector 0 to its size, and each shows what the
//! chain's map says of its sectors.
//!
//! Long runs go by dm-linear straight to their delta's loop, holes to `zero`. Where that would need too many targets, the short runs go
//! through one dm-snapshot over dm-zero, the *short device*. Its COW device is a dm-linear concatenation of a metadata file that is written
//! here ([`Metadata`]) and, for each delta that has a short run, the one stretch of its file that holds them all: one target a delta, the
//! least that is possible, and never more than with whole files. (A stretch for each run would need as many targets as linear alone.)

mod metadata;
#[cfg(test)]
mod tests;

pub use metadata::Metadata;

use crate::chain::{ChainMap, Source};
use crate::units::{Bytes, ChunkSize, SECTOR};
use metadata::Run;

/// How a chain looks in device-mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatTable {
    pub size: Bytes,
    pub pieces: Vec<Piece>,
    /// Where the pieces [`From::Short`] come from.
    pub short: Option<Short>,
}

/// One target. Units: sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub at: u64,
    pub len: u64,
    pub from: From,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Zero,
    /// `index` counts from the base; `offset` is the sector of its file.
    Delta {
        index: usize,
        offset: u64,
    },
    /// The same sectors of the short device.
    Short,
}

/// A dm-snapshot over zeros, as long as the disk. Its COW device is the metadata file with `concat` behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    pub chunk: ChunkSize,
    pub metadata: Metadata,
    pub concat: Vec<Concat>,
}

/// A stretch of a delta's file. Units: sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concat {
    pub index: usize,
    pub offset: u64,
    pub len: u64,
}

/// When there is a short device, and which runs are in it. Figures: `kernel-notes/flat-table.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Up to so many targets there is no short device.
    pub linear_targets: usize,
    /// Runs of so many bytes are long: as chunks they would cost more than as targets. Doubled while there are more targets than `most_targets`.
    pub long: Bytes,
    /// Holes of so many bytes have a target of their own also beside a short run, unless there are more than `targets`.
    pub long_hole: Bytes,
    pub targets: usize,
    /// Well below the kernel's limit of 1,048,576.
    pub most_targets: usize,
}

impl Rule {
    pub const MEASURED: Rule = Rule {
        linear_targets: 32_000,
        long: Bytes(32 << 10),
        long_hole: Bytes(1 << 20),
        targets: 32_000,
        most_targets: 500_000,
    };
}

/// The table of a chain.
pub fn flat(map: &ChainMap) -> FlatTable {
    flat_by(map, &Rule::MEASURED)
}

/// The same by another rule: to measure, and to test.
pub fn flat_by(map: &ChainMap, rule: &Rule) -> FlatTable {
    // A run is a target at least: mostly it needs no cut to see that there are too many.
    let may_be_linear = map.runs() <= rule.linear_targets;
    let linear = may_be_linear.then(|| Cut::of(map, Bytes::ZERO, Bytes::ZERO, rule.linear_targets));
    let cut = linear.flatten().unwrap_or_else(|| mixed(map, rule));
    FlatTable {
        size: map.size(),
        short: Short::of(cut.shorts),
        pieces: cut.pieces,
    }
}

fn mixed(map: &ChainMap, rule: &Rule) -> Cut {
    let any_hole = map.size();
    if let Some(cut) = Cut::of(map, rule.long, rule.long_hole, rule.targets) {
        return cut;
    }
    let mut long = rule.long;
    loop {
        let limit = if long < map.size() { rule.most_targets } else { usize::MAX };
        match Cut::of(map, long, any_hole, limit) {
            Some(cut) => return cut,
            None => long = Bytes(long.0 * 2),
        }
    }
}

impl FlatTable {
    /// All targets of the devices that it takes, but for the short device's own and its zeros.
    pub fn targets(&self) -> usize {
        self.pieces.len() + self.short.as_ref().map_or(0, |short| 1 + short.concat.len())
    }
}

/// A run that goes through the short device. Units: sectors.
#[derive(Debug, Clone, Copy)]
struct ShortRun {
    disk: u64,
    file: u64,
    index: u32,
    len: u32,
}
/// As many of them as of those that they become: then those take their place.
const _: () = assert!(size_of::<ShortRun>() == size_of::<Run>());

/// The disk, cut into what is long and what is short.
#[derive(Debug)]
struct Cut {
    pieces: Vec<Piece>,
    shorts: Vec<ShortRun>,
}

impl Cut {
    /// Runs below `long` are short, and so are holes below `hole` beside one: to a snapshot they cost nothing, and here a target.
    ///
    /// `None` if that would be more than `limit` pieces.
    ///
    /// The end of a disk that is no multiple of 4 KiB stays linear: as a whole chunk it would show what its file has behind it.
    fn of(map: &ChainMap, long: Bytes, hole: Bytes, limit: usize) -> Option<Cut> {
        let (long, short_hole) = (long.0 / SECTOR, hole.0 / SECTOR);
        // Room for all runs: what is not needed of it is never touched.
        let mut cut = Cut {
            pieces: Vec::new(),
            shorts: Vec::with_capacity(if long == 0 { 0 } else { map.runs() }),
        };
        for piece in map.segments(Bytes::ZERO..map.size()) {
            let (at, len) = (piece.at.0 / SECTOR, piece.len.0 / SECTOR);
            let from = match piece.source {
                Source::Zero => From::Zero,
                Source::Delta { delta, offset } => From::Delta {
                    index: delta,
                    offset: offset.0 / SECTOR,
                },
            };
            match from {
                From::Delta { index, offset } if len < long && is_aligned(at | offset | len) => {
                    cut.shorts.push(ShortRun {
                        disk: at,
                        file: offset,
                        index: u32::try_from(index).expect("a map counts its deltas in 32 bits"),
                        len: u32::try_from(len).expect("a map counts a run's sectors in 32 bits"),
                    });
                    cut.push(at, len, From::Short);
                }
                From::Zero if len < short_hole && cut.pieces.last().is_some_and(|last| last.from == From::Short) => {
                    cut.push(at, len, From::Short);
                }
                _ => cut.push(at, len, from),
            }
            if let [.., hole, last] = &cut.pieces[..]
                && (hole.from, last.from) == (From::Zero, From::Short)
                && hole.len < short_hole
            {
                let at = hole.at;
                let len = hole.len + last.len;
                cut.pieces.truncate(cut.pieces.len() - 2);
                cut.push(at, len, From::Short);
            }
            if cut.pieces.len() > limit {
                return None;
            }
        }
        Some(cut)
    }

    /// Appends a piece, to the one before it where both go on.
    fn push(&mut self, at: u64, len: u64, from: From) {
        if let Some(last) = self.pieces.last_mut() {
            let goes_on = match (last.from, from) {
                (From::Delta { index, offset }, From::Delta { index: next, offset: then }) => index == next && offset + last.len == then,
                (before, after) => before == after,
            };
            if goes_on {
                last.len += len;
                return;
            }
        }
        self.pieces.push(Piece { at, len, from });
    }
}

impl Short {
    /// The device for the short runs: chunks as large as all of them allow.
    fn of(shorts: Vec<ShortRun>) -> Option<Short> {
        let all = shorts.iter().fold(0, |all, run| all | run.disk | run.file | u64::from(run.len));
        if shorts.is_empty() {
            return None;
        }
        let largest = u64::from(ChunkSize::MAX.sectors());
        let sectors = 1 << (all | largest).trailing_zeros();
        let chunk = ChunkSize::from_sectors(sectors).expect("short runs are aligned to 4 KiB at least");
        let sectors = u64::from(sectors);

        let deltas = 1 + shorts.iter().map(|run| run.index).max().unwrap_or(0);
        let mut spans = vec![(u64::MAX, 0); deltas as usize];
        for run in &shorts {
            let (start, end) = &mut spans[run.index as usize];
            *start = run.file.min(*start);
            *end = (run.file + u64::from(run.len)).max(*end);
        }
        let chunks = shorts.iter().map(|run| u64::from(run.len) / sectors).sum();
        let mut next = Metadata::chunks(chunk, chunks);
        let mut concat = Vec::new();
        // What leads from a delta's chunk to the one of the concatenation.
        let mut first = vec![0; spans.len()];
        for (index, (start, end)) in spans.iter().enumerate().filter(|(_, (_, end))| *end > 0) {
            concat.push(Concat {
                index,
                offset: *start,
                len: end - start,
            });
            first[index] = next;
            next += (end - start) / sectors;
        }
        let runs = shorts.into_iter().map(|run| Run {
            disk: run.disk / sectors,
            file: first[run.index as usize] + (run.file - spans[run.index as usize].0) / sectors,
            count: u64::from(run.len) / sectors,
        });
        Some(Short {
            chunk,
            metadata: Metadata::new(chunk, runs.collect()),
            concat,
        })
    }
}

fn is_aligned(sectors: u64) -> bool {
    sectors.is_multiple_of(u64::from(ChunkSize::MIN.sectors()))
}
