//! The metadata of a snapshot whose data lies elsewhere: a header, and areas at their strides with holes where the data chunks would be.
//!
//! Refuses to know what the file chunks hold. Invariant: exceptions ascend on the disk, and none points into the file that is written here.
//! Byte table: `kernel-notes/dm-snapshot-format.md`.

use crate::blockio::WriteAt;
use crate::format::exceptions::area_bytes;
use crate::format::header::Header;
use crate::format::{Exception, areas};
use crate::units::{Bytes, ChunkSize, DiskChunk, FileChunk};
use std::io;

/// Consecutive exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub disk: u64,
    pub file: u64,
    pub count: u64,
}

/// What a snapshot reads before its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    chunk: ChunkSize,
    runs: Vec<Run>,
    count: u64,
}

impl Metadata {
    /// `runs`: ascending, in file chunks from [`Metadata::chunks`] on.
    pub(super) fn new(chunk: ChunkSize, runs: Vec<Run>) -> Metadata {
        let count = runs.iter().map(|run| run.count).sum();
        Metadata { chunk, runs, count }
    }

    /// Chunks of the file for so many exceptions: up to the end of the last area, which is never exactly full.
    pub(super) fn chunks(chunk: ChunkSize, exceptions: u64) -> u64 {
        let last = areas(chunk, exceptions) - 1;
        1 + chunk.area_chunk(last).expect("a disk of at most 2^44 bytes fits").0
    }

    /// How long the file is: the first delta begins behind it.
    pub fn file_len(&self) -> Bytes {
        Bytes(Metadata::chunks(self.chunk, self.count) * self.chunk.bytes().0)
    }

    pub fn exception_count(&self) -> u64 {
        self.count
    }

    pub fn exceptions(&self) -> impl Iterator<Item = Exception> {
        self.runs.iter().flat_map(|run| {
            (0..run.count).map(|index| Exception {
                disk: DiskChunk(run.disk + index),
                file: FileChunk(run.file + index),
            })
        })
    }

    /// Writes it to an empty file. What is not written is a hole: most of the file's length.
    pub fn write(&self, file: &dyn WriteAt) -> io::Result<()> {
        file.set_len(self.file_len())?;
        file.write_at(&Header::new(self.chunk).to_bytes(), Bytes::ZERO)?;
        let mut exceptions = self.exceptions();
        for area in 0.. {
            let part: Vec<Exception> = exceptions.by_ref().take(self.chunk.exceptions_per_area() as usize).collect();
            if part.is_empty() {
                break;
            }
            let at = self.chunk.area_chunk(area).and_then(|slot| self.chunk.offset(slot));
            file.write_at(&area_bytes(self.chunk, &part), at.expect("a disk of at most 2^44 bytes fits"))?;
        }
        Ok(())
    }
}
