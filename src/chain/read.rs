//! A chain that can be read: the map, and the deltas' files.
//!
//! Invariant: file number i is the delta that the map calls number i; a read never asks a file for bytes outside of the map's runs.

use super::map::{ChainError, ChainMap, Source};
use crate::blockio::ReadAt;
use crate::units::Bytes;
use std::io;
use std::sync::Arc;

pub struct Chain {
    map: ChainMap,
    files: Vec<Arc<dyn ReadAt>>,
}

impl Chain {
    /// The map alone, for arithmetic.
    pub fn into_map(self) -> ChainMap {
        self.map
    }

    /// `files`: one per delta, oldest first.
    pub fn new(map: ChainMap, files: Vec<Arc<dyn ReadAt>>) -> Result<Chain, ChainError> {
        if files.len() != map.digests().len() {
            return Err(ChainError::Files {
                files: files.len(),
                deltas: map.digests().len(),
            });
        }
        Ok(Chain { map, files })
    }

    pub fn map(&self) -> &ChainMap {
        &self.map
    }

    /// Fills `buf` from the disk's byte `at`; zeros behind the disk's end.
    pub fn read(&self, at: Bytes, buf: &mut [u8]) -> io::Result<()> {
        self.read_below(at, buf, Bytes(u64::MAX))
    }

    /// Has the deltas' files read ahead what a read of the range would ask them for.
    pub fn will_need(&self, at: Bytes, end: Bytes) {
        for piece in self.map.segments(at..end) {
            if let Source::Delta { delta, offset } = piece.source {
                self.files[delta].will_need(offset, piece.len);
            }
        }
    }

    /// The same, with zeros from the disk's byte `clip` on.
    pub fn read_below(&self, at: Bytes, buf: &mut [u8], clip: Bytes) -> io::Result<()> {
        let end = at.checked_add(Bytes(buf.len() as u64)).ok_or(io::ErrorKind::InvalidInput)?;
        let shown = end.min(clip).0.saturating_sub(at.0) as usize;
        let (seen, hidden) = buf.split_at_mut(shown);
        hidden.fill(0);
        let mut rest = seen;
        for piece in self.map.segments(at..end.min(clip)) {
            let (part, after) = rest.split_at_mut(piece.len.0 as usize);
            match piece.source {
                Source::Zero => part.fill(0),
                Source::Delta { delta, offset } => self.files[delta].read_at(part, offset)?,
            }
            rest = after;
        }
        Ok(())
    }

    /// Whether no delta has anything in `at..end` below `clip`.
    pub(super) fn is_hole(&self, at: Bytes, end: Bytes, clip: Bytes) -> bool {
        self.map.segments(at..end.min(clip)).all(|piece| piece.source == Source::Zero)
    }
}
