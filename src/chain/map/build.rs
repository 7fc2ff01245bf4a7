//! Merging the extents of sealed deltas into one list of runs.
//!
//! Refuses to read a file: extents come checked for their bytes, not for their sense, and are checked for that here. Invariant: laying an upper
//! list over a lower one keeps both sorted and disjoint, so any grouping of the deltas gives the same map.

use super::{ChainMap, Run};
use crate::format::trailer::Facts;
use crate::format::{Extent, file_chunk};
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize, SECTOR, UnitError};
use std::ops::Range;

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
        if u32::try_from(deltas.len()).is_err() {
            return Err(ChainError::TooManyRuns { runs: deltas.len() });
        }
        deltas.iter().try_for_each(check_extents)?;
        let mut runs = Vec::with_capacity(deltas.iter().map(|delta| delta.extents.len()).sum());
        Layers::of(deltas, &clips, 0).for_each(|run| push(&mut runs, run));
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

/// All that is wrong with a delta's extents, cut off or not.
fn check_extents(delta: &Delta) -> Result<(), ChainError> {
    let disk_chunks = delta.chunk_size.count(delta.virtual_size);
    let mut end_before = 0;
    for (position, extent) in delta.extents.iter().enumerate() {
        let (start, count) = (extent.disk.0, extent.count);
        let bad = |why| {
            Err(ChainError::Extent {
                digest: delta.digest,
                extent: position,
                start,
                count,
                why,
            })
        };
        let Some(end) = start.checked_add(count) else {
            return bad("it ends past 2^64");
        };
        if count == 0 {
            return bad("it is empty");
        }
        if start < end_before {
            return bad("it begins before the end of the extent before it");
        }
        if end > disk_chunks {
            return bad("it ends behind the delta's virtual size");
        }
        end_before = end;
    }
    Ok(())
}

/// The runs of some deltas, one after the other.
///
/// What two halves of a chain show is found as it is asked for, so that no list is made but the last: memory is what the map takes, whatever the depth.
enum Layers<'a> {
    Nothing,
    One(Layer<'a>),
    Two(Box<Overlay<'a>>),
}

impl<'a> Layers<'a> {
    /// Halves lie over halves, so that each run passes one overlay per doubling of the depth.
    fn of(deltas: &'a [Delta], clips: &[Bytes], first: u32) -> Layers<'a> {
        match deltas {
            [] => Layers::Nothing,
            [delta] => Layers::One(Layer::new(delta, clips[0], first)),
            _ => {
                let middle = deltas.len() / 2;
                let lower = Layers::of(&deltas[..middle], &clips[..middle], first);
                let upper = Layers::of(&deltas[middle..], &clips[middle..], first + middle as u32);
                Layers::Two(Box::new(Overlay::new(upper, lower)))
            }
        }
    }
}

impl Iterator for Layers<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        match self {
            Layers::Nothing => None,
            Layers::One(layer) => layer.next(),
            Layers::Two(overlay) => overlay.next(),
        }
    }
}

/// One delta's runs: its extents, which were checked, cut at areas and at `clip`.
struct Layer<'a> {
    extents: std::slice::Iter<'a, Extent>,
    /// What is left of the extent before.
    rest: Range<u64>,
    /// Exceptions before it.
    index: u64,
    chunk: ChunkSize,
    /// In sectors.
    clip: u64,
    number: u32,
}

impl<'a> Layer<'a> {
    fn new(delta: &'a Delta, clip: Bytes, number: u32) -> Layer<'a> {
        Layer {
            extents: delta.extents.iter(),
            rest: 0..0,
            index: 0,
            chunk: delta.chunk_size,
            clip: clip.0 / SECTOR,
            number,
        }
    }

    fn next(&mut self) -> Option<Run> {
        if self.rest.is_empty() {
            let extent = self.extents.next()?;
            self.rest = extent.disk.0..extent.disk.0 + extent.count;
        }
        // Below the area's end, consecutive exceptions are consecutive in the file.
        let per_area = self.chunk.exceptions_per_area();
        let part = (self.rest.end - self.rest.start).min(per_area - self.index % per_area);
        let sectors = u64::from(self.chunk.sectors());
        let disk = self.rest.start * sectors;
        if disk >= self.clip {
            return None;
        }
        let file = file_chunk(self.chunk, self.index).0 * sectors;
        self.rest.start += part;
        self.index += part;
        Some(Run {
            disk,
            file,
            len: (part * sectors).min(self.clip - disk) as u32,
            delta: self.number,
        })
    }
}

/// What lies above, and of what lies below what shows beside it.
struct Overlay<'a> {
    upper: Layers<'a>,
    lower: Layers<'a>,
    /// The next of each, as far as it is left.
    above: Option<Run>,
    below: Option<Run>,
}

impl<'a> Overlay<'a> {
    fn new(mut upper: Layers<'a>, mut lower: Layers<'a>) -> Overlay<'a> {
        Overlay {
            above: upper.next(),
            below: lower.next(),
            upper,
            lower,
        }
    }

    fn next(&mut self) -> Option<Run> {
        while let (Some(above), Some(below)) = (self.above, self.below) {
            if below.disk < above.disk {
                let (shows, rest) = below.split(above.disk);
                self.below = rest.or_else(|| self.lower.next());
                return Some(shows);
            }
            if below.disk >= above.end() {
                break;
            }
            self.below = match below.end() > above.end() {
                true => below.split(above.end()).1,
                false => self.lower.next(),
            };
        }
        match self.above {
            Some(_) => std::mem::replace(&mut self.above, self.upper.next()),
            None => std::mem::replace(&mut self.below, self.lower.next()),
        }
    }
}

impl Run {
    /// What is before the sector `at` of the disk, which is behind the run's first, and what is not.
    fn split(self, at: u64) -> (Run, Option<Run>) {
        let len = at - self.disk;
        if len >= u64::from(self.len) {
            return (self, None);
        }
        let rest = Run {
            disk: at,
            file: self.file + len,
            len: self.len - len as u32,
            ..self
        };
        (Run { len: len as u32, ..self }, Some(rest))
    }
}

/// Appends a run, to the one before it where both go on.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.end() == run.disk && last.delta == run.delta && last.file + u64::from(last.len) == run.file => {
            last.len += run.len
        }
        _ => runs.push(run),
    }
}
