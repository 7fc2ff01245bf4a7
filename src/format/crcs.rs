//! CRC-32 of each 64 KiB of a delta's header, areas and data: a quick scrub without the hash tree.
//!
//! Refuses to know the delta. Invariant: the order in which bytes arrive does not matter.

use crate::units::Bytes;
use crc32fast::Hasher;
use std::collections::BTreeMap;

/// What one CRC covers; the last covers the rest.
pub const WINDOW: u64 = 64 << 10;

/// How many CRCs there are for `data_len` bytes.
pub fn count(data_len: Bytes) -> u64 {
    data_len.0.div_ceil(WINDOW)
}

/// CRCs of bytes that arrive in pieces, most of them in order.
#[derive(Default)]
pub(super) struct Crcs {
    done: BTreeMap<u64, u32>,
    open: BTreeMap<u64, Vec<Piece>>,
}

struct Piece {
    start: u64,
    end: u64,
    crc: Hasher,
}

impl Crcs {
    pub fn put(&mut self, at: Bytes, mut data: &[u8]) {
        let mut at = at.0;
        while !data.is_empty() {
            let window = at / WINDOW;
            let part = (data.len() as u64).min((window + 1) * WINDOW - at);
            self.put_part(window, at, &data[..part as usize]);
            data = &data[part as usize..];
            at += part;
        }
    }

    fn put_part(&mut self, window: u64, at: u64, data: &[u8]) {
        let end = at + data.len() as u64;
        let pieces = self.open.entry(window).or_default();
        match pieces.last_mut() {
            Some(last) if last.end == at => {
                last.crc.update(data);
                last.end = end;
            }
            _ => {
                let mut crc = Hasher::new();
                crc.update(data);
                pieces.push(Piece { start: at, end, crc });
            }
        }
        if pieces.iter().map(|piece| piece.end - piece.start).sum::<u64>() == WINDOW {
            let pieces = self.open.remove(&window).expect("it was just there");
            self.done.insert(window, join(pieces));
        }
    }

    /// The section's bytes; `None` if a byte before `data_len` never came.
    pub fn finish(mut self, data_len: Bytes) -> Option<Vec<u8>> {
        for (window, pieces) in std::mem::take(&mut self.open) {
            let len: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
            if len != data_len.0.saturating_sub(window * WINDOW) {
                return None;
            }
            self.done.insert(window, join(pieces));
        }
        let whole = self.done.len() as u64 == count(data_len) && self.done.keys().copied().eq(0..count(data_len));
        whole.then(|| self.done.values().flat_map(|crc| crc.to_le_bytes()).collect())
    }
}

fn join(mut pieces: Vec<Piece>) -> u32 {
    pieces.sort_by_key(|piece| piece.start);
    let mut whole = Hasher::new();
    pieces.iter().for_each(|piece| whole.combine(&piece.crc));
    whole.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_out_of_order_give_the_crc_of_the_whole() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        let want: Vec<u8> = bytes
            .chunks(WINDOW as usize)
            .flat_map(|part| crc32fast::hash(part).to_le_bytes())
            .collect();
        let mut crcs = Crcs::default();
        for range in [0..4096, 8192..150_000, 4096..8192, 180_000..200_000, 150_000..180_000] {
            crcs.put(Bytes(range.start as u64), &bytes[range]);
        }
        assert_eq!(crcs.finish(Bytes(200_000)), Some(want));
    }

    #[test]
    fn a_byte_that_never_came_is_noticed() {
        let mut crcs = Crcs::default();
        crcs.put(Bytes(1), &[0; 70_000]);
        assert_eq!(crcs.finish(Bytes(70_001)), None);
        let mut crcs = Crcs::default();
        crcs.put(Bytes(WINDOW), &[0; WINDOW as usize]);
        assert_eq!(crcs.finish(Bytes(2 * WINDOW)), None);
    }
}
