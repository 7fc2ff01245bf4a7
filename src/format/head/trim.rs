//! A head without what lies behind a disk's new end.
//!
//! Refuses to know why the disk became smaller. Invariant: no exception of the new head is of a chunk behind that end, and the bytes of the chunk
//! that the end cuts are zeros from there on. So nothing of the old end comes back, whoever grows the disk again.

use super::{Head, HeadBounds, HeadError};
use crate::blockio::WriteAt;
use crate::format::Exception;
use crate::units::Bytes;

/// What is read at once: a whole number of chunks of any size.
const STEP: usize = 1 << 20;

/// Writes to `into` a head that says of the disk's first `size` bytes what `from` says: durable when it returns.
///
/// Shape: the data lies in the disk's order and without gaps, so that the file is no longer than it must be, which the kernel counts as free
/// space. A chunk of zeros stays an exception, as it may hide something, and becomes a hole.
pub fn trim<F: WriteAt, G: WriteAt>(from: &Head<F>, into: G, size: Bytes) -> Result<Head<G>, HeadError> {
    let chunk = from.chunk_size();
    let head = Head::create_within(into, chunk, Bytes::ZERO, HeadBounds::default())?;
    let end = chunk.count(size);
    let kept: Vec<Exception> = from.exceptions().into_iter().filter(|exception| exception.disk.0 < end).collect();
    let copy = || -> std::io::Result<()> {
        let bytes = chunk.as_usize();
        let mut buffer = vec![0; STEP];
        let in_a_row = |a: &Exception, b: &Exception| a.file.0 + 1 == b.file.0;
        for run in kept.chunk_by(in_a_row).flat_map(|run| run.chunks(STEP / bytes)) {
            let data = &mut buffer[..run.len() * bytes];
            from.io.read_at(data, from.offset(run[0].file))?;
            for (exception, data) in run.iter().zip(data.chunks_exact_mut(bytes)) {
                let start = exception.disk.0 * chunk.bytes().0;
                data[(size.0 - start).min(chunk.bytes().0) as usize..].fill(0);
                let slot = head.allocate().expect("a head without a limit is never full");
                if data.iter().any(|byte| *byte != 0) {
                    head.io.write_at(data, head.offset(slot))?;
                }
                head.record(exception.disk, slot);
            }
        }
        // An exception past the end of the file is damage, also when it is a hole.
        let used = head.exceptions().iter().map(|exception| exception.file.0 + 1).max().unwrap_or(0);
        let used = Bytes(used * chunk.bytes().0);
        if head.io.size()? < used {
            head.io.set_len(used)?;
        }
        head.commit()
    };
    copy().map_err(|source| HeadError::Io { work: "trimming", source })?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockio::{MemoryIo, ReadAt};
    use crate::format::head::full_len;
    use crate::units::{ChunkSize, DiskChunk};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const CHUNK: ChunkSize = ChunkSize::MIN;

    fn shown(head: &Head<MemoryIo>) -> BTreeMap<u64, Vec<u8>> {
        let data = |exception: &Exception| {
            let mut data = vec![1; 4096];
            head.io().read_at(&mut data, CHUNK.offset(exception.file).unwrap()).unwrap();
            (exception.disk.0, data)
        };
        head.exceptions().iter().map(data).collect()
    }

    proptest! {
        #[test]
        fn a_trimmed_head_has_all_before_the_end_and_nothing_behind(
            writes in proptest::collection::vec((0u64..700, 0u8..3), 0..900),
            sectors in 1u64..5600,
        ) {
            let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
            let mut want = BTreeMap::new();
            for (disk, byte) in writes {
                // Lost to a power cut, so that there are gaps.
                let slot = if byte == 2 { head.allocate(); head.allocate() } else { head.allocate() }.unwrap();
                head.io().write_at(&[byte; 4096], CHUNK.offset(slot).unwrap()).unwrap();
                if head.record(DiskChunk(disk), slot) {
                    want.insert(disk, vec![byte; 4096]);
                }
            }
            let size = Bytes(sectors * 512);
            let trimmed = trim(&head, MemoryIo::new(vec![7; 50_000]), size).unwrap();
            want.retain(|disk, data| {
                let keep = size.0.saturating_sub(disk * 4096).min(4096) as usize;
                data[keep..].fill(0);
                keep > 0
            });
            prop_assert_eq!(&shown(&trimmed), &want);
            let bytes = trimmed.io().bytes();
            prop_assert!(bytes.len() as u64 <= full_len(size, CHUNK).unwrap().0);
            let again = Head::open(MemoryIo::new(bytes.clone())).unwrap();
            prop_assert_eq!(&shown(&again), &want);
            prop_assert_eq!(again.io().bytes(), bytes, "nothing to tidy");
        }
    }
}
