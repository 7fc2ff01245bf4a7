//! The bytes of one delta: header, areas and chunks as the kernel's dm-snapshot has them, our trailer behind them, and
//! what travels beside it (`.meta`, manifest).
//!
//! Refuses to know paths, chains and devices. Invariant: what a sealed delta's areas say is a pure function of its extents.
//! Byte tables: `kernel-notes/dm-snapshot-format.md`, `delta-trailer.md`, `meta.md`, `manifest.md`.

pub mod check;
pub mod crcs;
pub mod exceptions;
pub mod facts;
pub mod head;
pub mod header;
pub mod manifest;
pub mod meta;
pub mod seal;
pub mod sealed;
pub mod trailer;
pub mod verity;

pub use facts::{Facts, FileSystem, SEAL_RULES};

use crate::units::{ChunkSize, DiskChunk, FileChunk};

/// One line of a delta: where a chunk of the disk is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exception {
    pub disk: DiskChunk,
    pub file: FileChunk,
}

/// A run in a sealed delta: `count` consecutive disk chunks, which are consecutive exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    pub disk: DiskChunk,
    pub count: u64,
}

/// Where a sealed delta has the data of its exception number `index`: dense and in order, around the metadata chunks.
///
/// Shape: for `index` below 2^63, which a file cannot reach.
pub fn file_chunk(chunk: ChunkSize, index: u64) -> FileChunk {
    FileChunk(index + index / chunk.exceptions_per_area() + 2)
}

/// Areas of a delta with `exceptions` exceptions: behind one that is exactly full comes an empty one, or the kernel refuses it.
pub fn areas(chunk: ChunkSize, exceptions: u64) -> u64 {
    exceptions / chunk.exceptions_per_area() + 1
}

/// Chunks of a sealed delta with `exceptions` exceptions: the header, its areas, its data.
pub fn chunks(chunk: ChunkSize, exceptions: u64) -> Option<u64> {
    exceptions.checked_add(areas(chunk, exceptions))?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lies_densely_around_the_metadata_slots() {
        let chunk = ChunkSize::MIN;
        let slots: Vec<u64> = (2..2000).filter(|c| !chunk.is_metadata(FileChunk(*c))).collect();
        for (index, want) in slots.iter().enumerate() {
            assert_eq!(file_chunk(chunk, index as u64), FileChunk(*want));
        }
    }

    #[test]
    fn an_exactly_full_area_has_an_empty_one_behind_it() {
        let chunk = ChunkSize::MIN;
        for (exceptions, want_areas, want_chunks) in [(0, 1, 2), (1, 1, 3), (255, 1, 257), (256, 2, 259), (257, 2, 260), (512, 3, 516)] {
            assert_eq!(areas(chunk, exceptions), want_areas, "{exceptions}");
            assert_eq!(chunks(chunk, exceptions), Some(want_chunks), "{exceptions}");
            let last_area = chunk.area_chunk(want_areas - 1).unwrap();
            let last_data = exceptions.checked_sub(1).map_or(FileChunk(0), |last| file_chunk(chunk, last));
            assert_eq!(last_area.max(last_data).0 + 1, want_chunks, "{exceptions}");
        }
        assert_eq!(chunks(chunk, u64::MAX), None);
    }
}
