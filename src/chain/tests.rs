mod model;

use crate::blockio::{MemoryIo, ReadAt, WriteAt};
use crate::chain::{Chain, ChainMap, Delta};
use crate::format::{Extent, file_chunk};
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize, DiskChunk};
use std::sync::Arc;

/// A small generator of numbers, the same on every machine.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// A chain of one sealed delta, as large as the disk, that has `data` in the chunks of `extents`.
pub(super) fn chain_of(size: Bytes, chunk: ChunkSize, extents: &[(u64, u64)], data: &[u8]) -> Chain {
    let file = MemoryIo::default();
    let chunks = extents.iter().flat_map(|(start, count)| *start..start + count);
    for (index, disk) in chunks.enumerate() {
        let start = disk as usize * chunk.as_usize();
        let end = (start + chunk.as_usize()).min(data.len());
        file.write_at(&data[start..end], chunk.offset(file_chunk(chunk, index as u64)).unwrap())
            .unwrap();
    }
    let delta = Delta {
        extents: extents
            .iter()
            .map(|(start, count)| Extent {
                disk: DiskChunk(*start),
                count: *count,
            })
            .collect(),
        chunk_size: chunk,
        virtual_size: size,
        digest: Digest([7; 32]),
        parent: Digest::NONE,
        stands_for: Digest::NONE,
    };
    let files: Vec<Arc<dyn ReadAt>> = vec![Arc::new(file)];
    Chain::new(ChainMap::build(&[delta], size).unwrap(), files).unwrap()
}
