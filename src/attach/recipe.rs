//! What each device of an image is made of: its table, once the numbers of what is below are known.
//!
//! Pure: no devices, no files. Invariant: where a table names a device, the plan has made that one before.

use super::names::{DeviceId, LoopId};
use super::table::{FlatTable, From};
use crate::ids::{ChainId, Digest};
use crate::kernel::dm::{DevNo, Line, Persistence, Table, TableError, Target};
use crate::units::{Bytes, ChunkSize, SECTOR};
use std::collections::BTreeMap;

/// The deepest `stack`: below that lies the end of the kernel's own stack.
pub const MAX_LEVELS: usize = 8;

/// The numbers of the devices that are there.
#[derive(Debug, Default)]
pub struct Numbers {
    pub devices: BTreeMap<DeviceId, DevNo>,
    pub loops: BTreeMap<LoopId, DevNo>,
}

/// What an image stands on: its sealed part, as one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub device: DeviceId,
    pub size: Bytes,
}

/// The top of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// `None` without deltas.
    pub base: Option<Base>,
    pub virtual_size: Bytes,
    pub head: Option<TopHead>,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopHead {
    pub smallest_size: Bytes,
    pub chunk: ChunkSize,
}

/// How the sealed part is to be made, where it is not there.
#[derive(Debug)]
pub enum Sealed {
    Flat {
        chain: ChainId,
        digests: Vec<Digest>,
        table: FlatTable,
    },
    /// Oldest first; those that are there are among them.
    Stack(Vec<Level>),
    /// There, or nothing at all.
    Nothing,
}

/// A delta of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Of the chain up to and with this delta.
    pub chain: ChainId,
    pub digest: Digest,
    pub size: Bytes,
    pub chunk: ChunkSize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    #[error("the table of {device}")]
    Table { device: DeviceId, source: TableError },
    #[error("the table of {device} names {missing}, which is not there")]
    Missing { device: DeviceId, missing: String },
}

impl Level {
    /// Whether a device as large as this lies between it and the one below.
    pub fn is_padded(&self, below: &Level) -> bool {
        self.size > below.size
    }
}

impl Sealed {
    /// The table of one of the devices that images share.
    pub fn table(&self, device: DeviceId, numbers: &Numbers) -> Result<Table, RecipeError> {
        let name = Name { of: device, numbers };
        let lines = match self {
            Sealed::Flat { chain, digests, table } => match device {
                DeviceId::Zero(_) => vec![line(0, sectors(table.size), Target::Zero)],
                DeviceId::Cow(_) => {
                    let short = table.short.as_ref().ok_or_else(|| name.missing("a short device"))?;
                    let meta = Target::Linear {
                        device: name.looped(LoopId::Meta(*chain))?,
                        offset: 0,
                    };
                    let mut lines = vec![line(0, sectors(short.metadata.file_len()), meta)];
                    for stretch in &short.concat {
                        let start = lines.last().map_or(0, |last: &Line| last.start + last.len);
                        let device = name.looped(LoopId::Delta(digests[stretch.index]))?;
                        let offset = stretch.offset;
                        lines.push(line(start, stretch.len, Target::Linear { device, offset }));
                    }
                    lines
                }
                DeviceId::Short(_) => {
                    let short = table.short.as_ref().ok_or_else(|| name.missing("a short device"))?;
                    let snapshot = Target::Snapshot {
                        origin: name.device(DeviceId::Zero(*chain))?,
                        cow: name.device(DeviceId::Cow(*chain))?,
                        persistence: Persistence::P,
                        chunk_sectors: short.chunk.sectors(),
                        discard_zeroes_cow: false,
                    };
                    vec![line(0, sectors(table.size), snapshot)]
                }
                _ => {
                    // One look-up a delta, not one a target: there may be thousands.
                    let short = table.short.as_ref().map(|_| name.device(DeviceId::Short(*chain))).transpose()?;
                    let loops: Vec<Option<DevNo>> = digests
                        .iter()
                        .map(|digest| numbers.loops.get(&LoopId::Delta(*digest)).copied())
                        .collect();
                    let target = |from: From, at: u64| match from {
                        From::Zero => Ok(Target::Zero),
                        From::Short => short
                            .map(|device| Target::Linear { device, offset: at })
                            .ok_or_else(|| name.missing("the short device")),
                        From::Delta { index, offset } => loops[index]
                            .map(|device| Target::Linear { device, offset })
                            .ok_or_else(|| name.missing(&LoopId::Delta(digests[index]).to_string())),
                    };
                    let mut lines = Vec::with_capacity(table.pieces.len());
                    for piece in &table.pieces {
                        lines.push(line(piece.at, piece.len, target(piece.from, piece.at)?));
                    }
                    lines
                }
            },
            Sealed::Stack(levels) => self.level_lines(levels, device, &name)?,
            Sealed::Nothing => return Err(name.missing("a recipe")),
        };
        Table::new(lines).map_err(|source| RecipeError::Table { device, source })
    }

    fn level_lines(&self, levels: &[Level], device: DeviceId, name: &Name) -> Result<Vec<Line>, RecipeError> {
        let (DeviceId::Zero(chain) | DeviceId::Pad(chain) | DeviceId::Level(chain)) = device else {
            return Err(name.missing("a place in a stack"));
        };
        let at = levels.iter().position(|level| level.chain == chain);
        let at = at.ok_or_else(|| name.missing("its delta"))?;
        let (level, below) = (&levels[at], at.checked_sub(1).map(|below| &levels[below]));
        Ok(match (device, below) {
            (DeviceId::Zero(_), _) => vec![line(0, sectors(level.size), Target::Zero)],
            (DeviceId::Pad(_), Some(below)) => grown(name.device(DeviceId::Level(below.chain))?, below.size, level.size),
            (DeviceId::Pad(_), None) => return Err(name.missing("a level below")),
            _ => {
                let origin = match below {
                    None => DeviceId::Zero(chain),
                    Some(below) if level.is_padded(below) => DeviceId::Pad(chain),
                    Some(below) => DeviceId::Level(below.chain),
                };
                let snapshot = Target::Snapshot {
                    origin: name.device(origin)?,
                    cow: name.looped(LoopId::Delta(level.digest))?,
                    persistence: Persistence::P,
                    chunk_sectors: level.chunk.sectors(),
                    discard_zeroes_cow: false,
                };
                vec![line(0, sectors(level.size), snapshot)]
            }
        })
    }
}

impl Top {
    /// The table of one of the image's own devices; `image` is its top.
    pub fn table(&self, device: DeviceId, numbers: &Numbers) -> Result<Table, RecipeError> {
        let name = Name { of: device, numbers };
        let lines = match (device, &self.head) {
            (DeviceId::Image(image), Some(head)) => {
                let snapshot = Target::Snapshot {
                    origin: name.device(DeviceId::Origin(image))?,
                    cow: name.looped(LoopId::Head(image))?,
                    persistence: Persistence::PO,
                    chunk_sectors: head.chunk.sectors(),
                    // The kernel zeroes what lies behind a discard that is not aligned to chunks: kernel-notes/attach.md.
                    discard_zeroes_cow: false,
                };
                vec![line(0, sectors(self.virtual_size), snapshot)]
            }
            _ => {
                let smallest = self.head.as_ref().map_or(self.virtual_size, |head| head.smallest_size);
                match self.base {
                    Some(base) => grown(
                        name.device(base.device)?,
                        base.size.min(smallest).min(self.virtual_size),
                        self.virtual_size,
                    ),
                    None => vec![line(0, sectors(self.virtual_size), Target::Zero)],
                }
            }
        };
        Table::new(lines).map_err(|source| RecipeError::Table { device, source })
    }
}

struct Name<'a> {
    of: DeviceId,
    numbers: &'a Numbers,
}

impl Name<'_> {
    fn device(&self, wanted: DeviceId) -> Result<DevNo, RecipeError> {
        self.numbers
            .devices
            .get(&wanted)
            .copied()
            .ok_or_else(|| self.missing(&wanted.to_string()))
    }

    fn looped(&self, wanted: LoopId) -> Result<DevNo, RecipeError> {
        self.numbers
            .loops
            .get(&wanted)
            .copied()
            .ok_or_else(|| self.missing(&wanted.to_string()))
    }

    fn missing(&self, what: &str) -> RecipeError {
        RecipeError::Missing {
            device: self.of,
            missing: what.into(),
        }
    }
}

/// `device` up to `old`, and zeros from there to `new`.
fn grown(device: DevNo, old: Bytes, new: Bytes) -> Vec<Line> {
    let (old, new) = (sectors(old), sectors(new));
    let mut lines = Vec::with_capacity(2);
    if old > 0 {
        lines.push(line(0, old.min(new), Target::Linear { device, offset: 0 }));
    }
    if new > old {
        lines.push(line(old, new - old, Target::Zero));
    }
    lines
}

fn line(start: u64, len: u64, target: Target) -> Line {
    Line { start, len, target }
}

fn sectors(bytes: Bytes) -> u64 {
    bytes.0 / SECTOR
}

#[cfg(test)]
mod tests;
