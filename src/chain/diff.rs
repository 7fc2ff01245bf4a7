//! What differs between two images, from their maps alone: no byte is read.
//!
//! Invariant: a range that is not listed reads the same in both; a listed one comes from another place, and may still have the same bytes.

use super::map::{ChainMap, Segment, Source};
use crate::format::Exception;
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize};
use std::ops::Range;

/// A changed range of the disk.
pub type Change = Range<Bytes>;

/// The ranges whose source differs, sorted, with gaps between them.
pub fn diff(a: &ChainMap, b: &ChainMap) -> Vec<Change> {
    let end = a.size().max(b.size());
    let mut at = Bytes::ZERO;
    let mut changes: Vec<Change> = Vec::new();
    while at < end {
        let (one, other) = (a.lookup(at), b.lookup(at));
        let next = one.end().min(other.end()).min(end);
        if origin(a, &one, at) != origin(b, &other, at) {
            add(&mut changes, at..next);
        }
        at = next;
    }
    changes
}

/// Adds `more` (sorted by start, not before the last of `changes`) to a list without overlaps.
fn add(changes: &mut Vec<Change>, more: Change) {
    match changes.last_mut() {
        Some(last) if last.end >= more.start => last.end = last.end.max(more.end),
        _ => changes.push(more),
    }
}

/// Delta and byte in its file that answer for `at`.
fn origin(map: &ChainMap, piece: &Segment, at: Bytes) -> Option<(Digest, u64)> {
    match piece.source {
        Source::Zero => None,
        Source::Delta { delta, offset } => Some((map.digests()[delta], offset.0 + (at.0 - piece.at.0))),
    }
}

/// The ranges that a head has, sorted, with gaps between them. `exceptions`: by disk chunk, as a head lists them.
pub fn written(exceptions: &[Exception], chunk: ChunkSize, size: Bytes) -> Vec<Change> {
    let mut changes = Vec::new();
    for exception in exceptions {
        let start = exception.disk.0.saturating_mul(chunk.bytes().0);
        let end = start.saturating_add(chunk.bytes().0).min(size.0);
        if start < end {
            add(&mut changes, Bytes(start)..Bytes(end));
        }
    }
    changes
}

/// Both lists in one, for what a head changes on top of a chain.
pub fn union(a: &[Change], b: &[Change]) -> Vec<Change> {
    let mut all: Vec<Change> = a.iter().chain(b).filter(|change| change.start < change.end).cloned().collect();
    all.sort_by_key(|change| (change.start, change.end));
    let mut out = Vec::with_capacity(all.len());
    for change in all {
        add(&mut out, change);
    }
    out
}
