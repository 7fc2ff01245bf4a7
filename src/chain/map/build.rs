//! Merging the extents of sealed deltas into one list of runs.
//!
//! Refuses to read a file: extents come checked for their bytes, not for their sense, and are checked for that here. Invariant: laying an upper
//! list over a lower one keeps both sorted and disjoint, so any grouping of the deltas gives the same map.

use super::{ChainMap, Run};
use crate::format::trailer::Facts;
use crate::format::{Extent, file_chunk};
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize, SECTOR, UnitError};

/// What the map needs to know of a sealed delta: its trailer, in short.
#[derive(Debug, Clone)]
pub struct Delta {
    pub extents: Vec<Extent>,
    pub chunk_size: ChunkSize,
    pub virtual_size: Bytes,
    pub digest: Digest,
    pub parent: Digest,
    /// The newest of the deltas that this one replaces; [`Digest::NONE`] if it replaces none.
    pub stands_for: Digest,
}

impl Delta {
    /// The delta that a trailer, or a `.meta`, describes.
    pub fn new(facts: &Facts, extents: Vec<Extent>, digest: Digest) -> Delta {
        let Facts {
            parent,
            stands_for,
            virtual_size,
            chunk_size,
            ..
        } = *facts;
        Delta {
            extents,
            chunk_size,
            virtual_size,
            digest,
            parent,
            stands_for,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("base {digest} has a parent, {parent}: the chain begins in its middle")]
    NotABase { digest: Digest, parent: Digest },
    #[error("delta {digest} (number {delta} from the base) was made over {found}, and lies over {below}")]
    Parent {
        delta: usize,
        digest: Digest,
        found: Digest,
        below: Digest,
    },
    #[error("size of delta {digest}")]
    Size {
        digest: Digest,
        #[source]
        cause: UnitError,
    },
    #[error("size of the image")]
    ImageSize(#[source] UnitError),
    #[error("delta {digest}, extent {extent}: {count} chunks from disk chunk {start}: {why}")]
    Extent {
        digest: Digest,
        extent: usize,
        start: u64,
        count: u64,
        why: &'static str,
    },
    #[error("{runs} runs in the merged map: want at most 4294967295")]
    TooManyRuns { runs: usize },
    #[error("{files} files for a chain of {deltas} deltas")]
    Files { files: usize, deltas: usize },
}

impl ChainMap {
    /// Merges sealed deltas, oldest first; none at all is a disk of zeros.
    ///
    /// A delta is cut off at the smallest size from it upward, `image_size` included, so that a disk that shrank and grew shows zeros.
    /// Time is of the order of all extents times the logarithm of the depth. Errors: [`ChainError`]; every extent is checked, cut off or not.
    pub fn build(deltas: &[Delta], image_size: Bytes) -> Result<ChainMap, ChainError> {
        image_size.as_disk_size().map_err(ChainError::ImageSize)?;
        check_parents(deltas)?;
        let mut smallest = image_size;
        let mut clips = Vec::with_capacity(deltas.len());
        for delta in deltas.iter().rev() {
            let size = delta.virtual_size.as_disk_size().map_err(|cause| ChainError::Size {
                digest: delta.digest,
                cause,
            })?;
            smallest = smallest.min(size);
            clips.push(smallest);
        }
        clips.reverse();
        let runs = merge(deltas, &clips, 0)?;
        ChainMap::index(runs, image_size, deltas.iter().map(|delta| delta.digest).collect())
    }
}

fn check_parents(deltas: &[Delta]) -> Result<(), ChainError> {
    if let Some(base) = deltas.first().filter(|base| base.parent != Digest::NONE) {
        return Err(ChainError::NotABase {
            digest: base.digest,
            parent: base.parent,
        });
    }
    for (index, pair) in deltas.windows(2).enumerate() {
        let (below, above) = (&pair[0], &pair[1]);
        let fits = above.parent != Digest::NONE && (above.parent == below.digest || above.parent == below.stands_for);
        if !fits {
            return Err(ChainError::Parent {
                delta: index + 1,
                digest: above.digest,
                found: above.parent,
                below: below.digest,
            });
        }
    }
    Ok(())
}

/// Halves meet halves, so that each run is copied once per doubling of the depth.
fn merge(deltas: &[Delta], clips: &[Bytes], first: usize) -> Result<Vec<Run>, ChainError> {
    match deltas {
        [] => Ok(Vec::new()),
        [delta] => runs_of(delta, clips[0], first),
        _ => {
            let middle = deltas.len() / 2;
            let lower = merge(&deltas[..middle], &clips[..middle], first)?;
            let upper = merge(&deltas[middle..], &clips[middle..], first + middle)?;
            Ok(overlay(upper, lower))
        }
    }
}

/// One delta's runs: its extents, cut at areas and at `clip`.
fn runs_of(delta: &Delta, clip: Bytes, number: usize) -> Result<Vec<Run>, ChainError> {
    let chunk = delta.chunk_size;
    let sectors = u64::from(chunk.sectors());
    let disk_chunks = chunk.count(delta.virtual_size);
    let clip = clip.0 / SECTOR;
    let number = u32::try_from(number).map_err(|_| ChainError::TooManyRuns { runs: number })?;
    let mut runs: Vec<Run> = Vec::with_capacity(delta.extents.len());
    let (mut index, mut end_before) = (0, 0);
    for (position, extent) in delta.extents.iter().enumerate() {
        let (start, count) = (extent.disk.0, extent.count);
        let bad = |why| ChainError::Extent {
            digest: delta.digest,
            extent: position,
            start,
            count,
            why,
        };
        let end = start.checked_add(count).ok_or_else(|| bad("it ends past 2^64"))?;
        if count == 0 {
            return Err(bad("it is empty"));
        }
        if start < end_before {
            return Err(bad("it begins before the end of the extent before it"));
        }
        if end > disk_chunks {
            return Err(bad("it ends behind the delta's virtual size"));
        }
        end_before = end;
        let mut from = start;
        while from < end {
            // Below the area's end, consecutive exceptions are consecutive in the file.
            let per_area = chunk.exceptions_per_area();
            let part = (end - from).min(per_area - index % per_area);
            push(
                &mut runs,
                from * sectors,
                file_chunk(chunk, index).0 * sectors,
                part * sectors,
                number,
                clip,
            );
            from += part;
            index += part;
        }
    }
    Ok(runs)
}

/// Appends a run below `clip`, to the one before it where both go on.
fn push(runs: &mut Vec<Run>, disk: u64, file: u64, len: u64, delta: u32, clip: u64) {
    if disk >= clip {
        return;
    }
    let len = len.min(clip - disk) as u32;
    match runs.last_mut() {
        Some(last) if last.end() == disk && last.file + u64::from(last.len) == file => last.len += len,
        _ => runs.push(Run { disk, file, len, delta }),
    }
}

/// `upper`, and of `lower` what shows beside it.
fn overlay(upper: Vec<Run>, lower: Vec<Run>) -> Vec<Run> {
    if upper.is_empty() || lower.is_empty() {
        return if upper.is_empty() { lower } else { upper };
    }
    let mut out = Vec::with_capacity(upper.len() + lower.len());
    let mut below = lower.into_iter();
    let mut rest = below.next();
    for top in upper {
        while let Some(run) = rest.filter(|run| run.disk < top.end()) {
            if run.disk < top.disk {
                let len = run.end().min(top.disk) - run.disk;
                out.push(Run { len: len as u32, ..run });
            }
            if run.end() > top.end() {
                let gone = top.end() - run.disk;
                rest = Some(Run {
                    disk: top.end(),
                    file: run.file + gone,
                    len: run.len - gone as u32,
                    ..run
                });
                break;
            }
            rest = below.next();
        }
        out.push(top);
    }
    out.extend(rest);
    out.extend(below);
    out
}
