//! How long a head's file may become, and how long one must be that can never be full.
//!
//! Refuses to know files. Invariant: a length from here never ends where an area would begin: the kernel zeroes the next area when it fills
//! one, and a store that has no room for that is invalidated, not merely full.

use crate::units::{Bytes, ChunkSize};
use serde::{Deserialize, Serialize};

/// How much space a head may take, and whether it has it for certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadBounds {
    /// The longest that its file may become; absent: what the disk needs.
    #[serde(default)]
    pub limit_bytes: Option<Bytes>,
    /// The file has all of that space, for good.
    #[serde(default)]
    pub reserve: bool,
}

impl HeadBounds {
    /// These bounds where they say something, `under` elsewhere.
    pub fn over(self, under: HeadBounds) -> HeadBounds {
        HeadBounds {
            limit_bytes: self.limit_bytes.or(under.limit_bytes),
            reserve: self.reserve || under.reserve,
        }
    }
}

/// A limit that a head cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("a limit of {} bytes: want a multiple of the head's chunk, {} bytes", limit.0, chunk.0)]
    Multiple { limit: Bytes, chunk: Bytes },
    #[error("a limit of {} bytes: want at least {} bytes, a header, an area and one chunk of data", limit.0, least.0)]
    Small { limit: Bytes, least: Bytes },
}

/// Bytes of a head's file that holds every chunk of the disk: header, areas, data, and an empty area behind an exactly full one.
///
/// `None` past 2^64. A head in which an unclean stop left file chunks that nobody names needs that much more.
pub fn full_len(virtual_size: Bytes, chunk: ChunkSize) -> Option<Bytes> {
    len_for(chunk.count(virtual_size), chunk)
}

/// The same for so many chunks of data.
pub(super) fn len_for(data: u64, chunk: ChunkSize) -> Option<Bytes> {
    let areas = data / chunk.exceptions_per_area() + 1;
    data.checked_add(areas)?.checked_add(1)?.checked_mul(chunk.bytes().0).map(Bytes)
}

/// What of a limit a head's file can use: where the limit ends at the end of an area's data, the last chunk stays free.
pub fn usable_len(limit: Bytes, chunk: ChunkSize) -> Bytes {
    let chunks = limit.0 / chunk.bytes().0;
    let ends_before_area = chunks > 1 && (chunks - 1).is_multiple_of(chunk.exceptions_per_area() + 1);
    Bytes((chunks - u64::from(ends_before_area)) * chunk.bytes().0)
}

/// `Ok` if a head with this chunk can have this limit.
pub fn check_limit(limit: Bytes, chunk: ChunkSize) -> Result<(), LimitError> {
    let bytes = chunk.bytes();
    let least = Bytes(3 * bytes.0);
    if limit < least {
        Err(LimitError::Small { limit, least })
    } else if !limit.0.is_multiple_of(bytes.0) {
        Err(LimitError::Multiple { limit, chunk: bytes })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkSize = ChunkSize::MIN;

    fn chunks(len: Option<Bytes>) -> u64 {
        len.unwrap().0 / 4096
    }

    #[test]
    fn a_full_length_has_room_for_every_chunk_and_the_area_behind() {
        for (data, want) in [(1, 3), (255, 257), (256, 259), (257, 260), (512, 516), (513, 517)] {
            assert_eq!(chunks(full_len(Bytes(data * 4096), CHUNK)), want, "{data}");
            assert_eq!(
                chunks(full_len(Bytes(data * 4096 - 512), CHUNK)),
                want,
                "{data}, the last one in part"
            );
        }
        assert_eq!(full_len(Bytes(u64::MAX), CHUNK), None);
    }

    #[test]
    fn no_length_ends_where_an_area_begins() {
        for chunk in [CHUNK, ChunkSize::HEAD] {
            let ok = |len: Bytes| !chunk.is_metadata(crate::units::FileChunk(len.0 / chunk.bytes().0));
            for count in 3..3000 {
                let limit = Bytes(count * chunk.bytes().0);
                let usable = usable_len(limit, chunk);
                assert!(ok(usable) && usable <= limit && usable.0 + chunk.bytes().0 >= limit.0, "{count}");
                assert!(ok(full_len(limit, chunk).unwrap()), "{count}");
            }
        }
        assert_eq!(usable_len(Bytes(258 * 4096), CHUNK), Bytes(257 * 4096));
    }

    #[test]
    fn a_limit_is_whole_chunks_and_at_least_one_of_data() {
        assert_eq!(check_limit(Bytes(3 * 4096), CHUNK), Ok(()));
        assert!(matches!(check_limit(Bytes(2 * 4096), CHUNK), Err(LimitError::Small { .. })));
        assert!(matches!(
            check_limit(Bytes(3 * 4096 + 512), CHUNK),
            Err(LimitError::Multiple { .. })
        ));
    }
}
