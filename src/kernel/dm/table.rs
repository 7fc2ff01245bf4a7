//! Device-mapper tables as values, and as the text that `dmsetup` takes and prints.
//!
//! Refuses to know what a device holds. Invariant: a [`Table`] starts at sector 0, has no gap and no overlap, and is one that the kernel's
//! loader can count: text and value are the same thing, there and back.

use std::fmt;
use std::str::FromStr;

/// The most targets that the kernel takes in one table. Source: Linux `include/linux/device-mapper.h`, `DM_MAX_TARGETS`.
pub const MAX_TARGETS: usize = 1_048_576;

/// Longest part of a foreign text that an error repeats.
const QUOTED: usize = 60;

/// A block device by its number, `253:3`: what a table names loads three times faster than a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo {
    pub major: u32,
    pub minor: u32,
}

/// How a snapshot keeps its exceptions: in the COW device, and `PO` refuses writes when that is full instead of dropping the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    P,
    PO,
}

/// What answers for a range of a device. Offsets and chunks are in 512-byte sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Linear {
        device: DevNo,
        offset: u64,
    },
    Zero,
    Error,
    Snapshot {
        origin: DevNo,
        cow: DevNo,
        persistence: Persistence,
        chunk_sectors: u32,
        /// A discard of what the COW device holds gives the space back and reads as zeros.
        discard_zeroes_cow: bool,
    },
}

/// One line of a table, in 512-byte sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub start: u64,
    pub len: u64,
    pub target: Target,
}

/// What a device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table(Vec<Line>);

/// Why something is not a table of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("a table without a line")]
    Empty,
    #[error("a table of {found} lines, more than {MAX_TARGETS}")]
    TooLong { found: usize },
    #[error("line {index} starts at sector {found}, want {want}")]
    Gap { index: usize, found: u64, want: u64 },
    #[error("line {index} is empty or ends past 2^64 sectors")]
    Length { index: usize },
    #[error("not a line of a table that we know: {text:?}")]
    Line { text: String },
    #[error("not a device number: {text:?}")]
    Device { text: String },
    #[error("not a snapshot's status: {text:?}")]
    Status { text: String },
}

impl Table {
    /// Errors: [`TableError`], for lines that do not follow each other from sector 0 on.
    pub fn new(lines: Vec<Line>) -> Result<Table, TableError> {
        if lines.is_empty() {
            return Err(TableError::Empty);
        }
        if lines.len() > MAX_TARGETS {
            return Err(TableError::TooLong { found: lines.len() });
        }
        let mut want = 0_u64;
        for (index, line) in lines.iter().enumerate() {
            if line.start != want {
                return Err(TableError::Gap {
                    index,
                    found: line.start,
                    want,
                });
            }
            let end = line.start.checked_add(line.len).filter(|end| *end > line.start);
            want = end.ok_or(TableError::Length { index })?;
        }
        Ok(Table(lines))
    }

    /// One target from sector 0 on.
    pub fn single(len: u64, target: Target) -> Result<Table, TableError> {
        Table::new(vec![Line { start: 0, len, target }])
    }

    pub fn lines(&self) -> &[Line] {
        &self.0
    }

    /// The device's size.
    pub fn len_sectors(&self) -> u64 {
        self.0.last().map_or(0, |line| line.start + line.len)
    }

    /// The devices that it names, each once.
    pub fn devices(&self) -> Vec<DevNo> {
        let mut found: Vec<DevNo> = self.0.iter().flat_map(|line| line.target.devices()).flatten().collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Target {
    /// The kernel's name of it.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Linear { .. } => "linear",
            Target::Zero => "zero",
            Target::Error => "error",
            Target::Snapshot { .. } => "snapshot",
        }
    }

    /// What follows the kind in a table.
    pub fn params(&self) -> String {
        match self {
            Target::Linear { device, offset } => format!("{device} {offset}"),
            Target::Zero | Target::Error => String::new(),
            Target::Snapshot {
                origin,
                cow,
                persistence,
                chunk_sectors,
                discard_zeroes_cow,
            } => {
                let features = if *discard_zeroes_cow { " 1 discard_zeroes_cow" } else { "" };
                format!("{origin} {cow} {persistence} {chunk_sectors}{features}")
            }
        }
    }

    /// From the two parts that a table has of it. `None` for what we do not use.
    pub fn parse(kind: &str, params: &str) -> Option<Target> {
        let words: Vec<&str> = params.split_ascii_whitespace().collect();
        match (kind, words.as_slice()) {
            ("linear", [device, offset]) => Some(Target::Linear {
                device: device.parse().ok()?,
                offset: number(offset)?,
            }),
            ("zero", []) => Some(Target::Zero),
            ("error", []) => Some(Target::Error),
            ("snapshot", [origin, cow, persistence, chunk, features @ ..]) => Some(Target::Snapshot {
                origin: origin.parse().ok()?,
                cow: cow.parse().ok()?,
                persistence: match *persistence {
                    "P" => Persistence::P,
                    "PO" => Persistence::PO,
                    _ => return None,
                },
                chunk_sectors: number(chunk)?.try_into().ok()?,
                discard_zeroes_cow: match features {
                    [] | ["0"] => false,
                    ["1", "discard_zeroes_cow"] => true,
                    _ => return None,
                },
            }),
            _ => None,
        }
    }

    fn devices(&self) -> [Option<DevNo>; 2] {
        match self {
            Target::Linear { device, .. } => [Some(*device), None],
            Target::Zero | Target::Error => [None, None],
            Target::Snapshot { origin, cow, .. } => [Some(*origin), Some(*cow)],
        }
    }
}

/// Digits only: the kernel prints no sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DevNo {
    type Err = TableError;

    fn from_str(text: &str) -> Result<DevNo, TableError> {
        let part = |part: &str| number(part).and_then(|n| u32::try_from(n).ok());
        text.split_once(':')
            .and_then(|(major, minor)| {
                Some(DevNo {
                    major: part(major)?,
                    minor: part(minor)?,
                })
            })
            .ok_or_else(|| TableError::Device { text: quoted(text) })
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Persistence::P => "P",
            Persistence::PO => "PO",
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params = self.target.params();
        let blank = if params.is_empty() { "" } else { " " };
        write!(f, "{} {} {}{blank}{params}", self.start, self.len, self.target.kind())
    }
}

impl FromStr for Line {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Line, TableError> {
        let parsed = || {
            let (start, rest) = text.trim().split_once(' ')?;
            let (len, rest) = rest.split_once(' ')?;
            let (kind, params) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(Line {
                start: number(start)?,
                len: number(len)?,
                target: Target::parse(kind, params)?,
            })
        };
        parsed().ok_or_else(|| TableError::Line { text: quoted(text) })
    }
}

/// One line a target, each ended.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Table {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Table, TableError> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        Table::new(lines.map(Line::from_str).collect::<Result<_, _>>()?)
    }
}

/// How a snapshot does, in 512-byte sectors of its COW device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStatus {
    Used {
        used: u64,
        total: u64,
        metadata: u64,
    },
    /// Dropped by the kernel: every read and write is an error.
    Invalid,
    /// Full (`PO`): it reads, and refuses every write.
    Overflow,
    MergeFailed,
    Unknown,
}

/// Source: Linux `drivers/md/dm-snap.c`, `snapshot_status`.
impl FromStr for SnapshotStatus {
    type Err = TableError;

    fn from_str(text: &str) -> Result<SnapshotStatus, TableError> {
        let used = || {
            let (used, rest) = text.trim().split_once('/')?;
            let (total, metadata) = rest.split_once(' ')?;
            Some(SnapshotStatus::Used {
                used: number(used)?,
                total: number(total)?,
                metadata: number(metadata)?,
            })
        };
        match text.trim() {
            "Invalid" => Ok(SnapshotStatus::Invalid),
            "Overflow" => Ok(SnapshotStatus::Overflow),
            "Merge failed" => Ok(SnapshotStatus::MergeFailed),
            "Unknown" => Ok(SnapshotStatus::Unknown),
            _ => used().ok_or_else(|| TableError::Status { text: quoted(text) }),
        }
    }
}

#[cfg(test)]
mod tests;
