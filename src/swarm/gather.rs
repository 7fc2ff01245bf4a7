//! Gathers what arrives of a piece, so that the file sees one write for each piece, and the engine's check of it no read.
//!
//! Refuses to know hashes and files. Invariant: it holds at most [`MOST`] bytes, and what finds no room is left to the caller; bytes
//! that it holds are newer than the file's; a piece that was said to be right takes no more.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// A peer has 2 MiB of requests under way: room for a few of them.
const MOST: u64 = 8 << 20;

pub struct Gather {
    piece_len: u64,
    len: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    pieces: HashMap<u64, Piece>,
    /// While the engine checks a piece that its stream asks for first, it may ask another peer for it as well, and pass on what that one sends
    /// when it is right already.
    right: HashSet<u64>,
    /// Its pages are mapped already: fresh ones would cost a fault each.
    spare: Option<Vec<u8>>,
    bytes: u64,
}

struct Piece {
    data: Arc<Vec<u8>>,
    /// Sorted, apart from each other.
    filled: Vec<Range<usize>>,
}

/// What the caller does with bytes that have come.
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// Nothing: they are held.
    Held,
    /// Their piece is whole: write it at this byte.
    Whole(u64, Arc<Vec<u8>>),
    /// There is no room: write them.
    NoRoom,
    /// Nothing: their piece is right without them.
    Late,
}

impl Gather {
    pub fn new(piece_len: u32, len: u64) -> Gather {
        Gather {
            piece_len: u64::from(piece_len),
            len,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no thread panics while it holds this lock")
    }

    /// The part of `range` that lies in its first piece.
    pub fn first(&self, range: Range<u64>) -> Range<u64> {
        let end = (range.start / self.piece_len + 1) * self.piece_len;
        range.start..range.end.min(end)
    }

    fn range_of(&self, piece: u64) -> Range<u64> {
        let start = piece * self.piece_len;
        start..(start + self.piece_len).min(self.len)
    }

    /// Takes bytes of one piece.
    pub fn put(&self, at: u64, bytes: &[u8]) -> Put {
        let index = at / self.piece_len;
        let range = self.range_of(index);
        let size = (range.end - range.start) as usize;
        let mut held = self.held();
        if held.right.contains(&index) {
            return Put::Late;
        }
        // What was whole and is written once more was found bad.
        if held.pieces.get(&index).is_some_and(|piece| piece.is_whole()) {
            held.forget(index);
        }
        if !held.pieces.contains_key(&index) && !held.make(index, size) {
            return Put::NoRoom;
        }
        let Some(piece) = held.pieces.get_mut(&index) else {
            return Put::NoRoom;
        };
        let start = (at - range.start) as usize;
        let Some(data) = Arc::get_mut(&mut piece.data) else {
            return Put::NoRoom;
        };
        data[start..start + bytes.len()].copy_from_slice(bytes);
        piece.fill(start..start + bytes.len());
        if piece.is_whole() {
            return Put::Whole(range.start, piece.data.clone());
        }
        Put::Held
    }

    /// Copies bytes of a whole piece that is held; `false` where they must come from the file.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let held = self.held();
        let index = at / self.piece_len;
        let Some(piece) = held.pieces.get(&index).filter(|piece| piece.is_whole()) else {
            return false;
        };
        let start = (at - index * self.piece_len) as usize;
        let Some(data) = piece.data.get(start..start + buf.len()) else {
            return false;
        };
        buf.copy_from_slice(data);
        true
    }

    /// Gives up the pieces in `range`: what the file does not have of them yet, and where that belongs.
    pub fn spill(&self, range: Range<u64>) -> Vec<(u64, Vec<u8>)> {
        let mut held = self.held();
        let partly = |index: &u64, piece: &Piece| {
            let of = self.range_of(*index);
            !piece.is_whole() && of.start < range.end && range.start < of.end
        };
        let indexes: Vec<u64> = held
            .pieces
            .iter()
            .filter(|(index, piece)| partly(index, piece))
            .map(|(index, _)| *index)
            .collect();
        let mut parts = Vec::new();
        for index in indexes {
            let (start, piece) = (index * self.piece_len, &held.pieces[&index]);
            let filled = piece.filled.iter();
            parts.extend(filled.map(|part| (start + part.start as u64, piece.data[part.clone()].to_vec())));
            held.forget(index);
        }
        parts
    }

    /// The piece is right, and in the file, for good. The caller sees to it that nobody is between a [`Gather::put`] and its write.
    pub fn done(&self, piece: u64) {
        let mut held = self.held();
        held.right.insert(piece);
        held.forget(piece);
    }
}

impl Held {
    fn make(&mut self, index: u64, size: usize) -> bool {
        if self.bytes + size as u64 > MOST {
            return false;
        }
        let spare = self.spare.take().filter(|spare| spare.len() == size);
        let data = spare.unwrap_or_else(|| vec![0; size]);
        self.bytes += size as u64;
        let piece = Piece {
            data: Arc::new(data),
            filled: Vec::new(),
        };
        self.pieces.insert(index, piece);
        true
    }

    fn forget(&mut self, index: u64) {
        let Some(piece) = self.pieces.remove(&index) else { return };
        self.bytes -= piece.data.len() as u64;
        self.spare = Arc::into_inner(piece.data).or_else(|| self.spare.take());
    }
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.filled.len() == 1 && self.filled[0] == (0..self.data.len())
    }

    fn fill(&mut self, mut part: Range<usize>) {
        self.filled.retain(|other| {
            let apart = other.end < part.start || part.end < other.start;
            if !apart {
                part = part.start.min(other.start)..part.end.max(other.end);
            }
            apart
        });
        let at = self.filled.partition_point(|other| other.start < part.start);
        self.filled.insert(at, part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_piece_is_handed_over_once_it_is_whole_and_can_be_read_until_it_is_done() {
        let gather = Gather::new(8, 20);
        let mut buf = [0; 2];
        assert_eq!(gather.put(4, b"efgh"), Put::Held);
        assert!(!gather.read(4, &mut buf));
        assert_eq!(gather.put(0, b"abcd"), Put::Whole(0, Arc::new(b"abcdefgh".to_vec())));
        assert!(gather.read(3, &mut buf));
        assert_eq!(&buf, b"de");
        assert!(gather.spill(0..20).is_empty(), "the caller has written it");
        gather.done(0);
        assert!(!gather.read(3, &mut buf));
        assert_eq!(gather.put(0, b"evil"), Put::Late);
        assert_eq!(gather.put(16, b"last"), Put::Whole(16, Arc::new(b"last".to_vec())));
    }

    #[test]
    fn a_piece_that_was_bad_begins_anew() {
        let gather = Gather::new(4, 4);
        assert_eq!(gather.put(0, b"evil"), Put::Whole(0, Arc::new(b"evil".to_vec())));
        assert_eq!(gather.put(2, b"od"), Put::Held);
        assert!(!gather.read(0, &mut [0]));
        assert_eq!(gather.put(0, b"go"), Put::Whole(0, Arc::new(b"good".to_vec())));
    }

    #[test]
    fn no_more_than_its_share_of_memory_is_held() {
        let gather = Gather::new(1 << 20, 100 << 20);
        let puts = (0..100).map(|piece| gather.put(piece << 20, b"x"));
        assert_eq!(puts.filter(|put| *put == Put::Held).count() as u64, MOST >> 20);
        assert_eq!(gather.spill(0..1), [(0, b"x".to_vec())]);
        assert_eq!(gather.put(99 << 20, b"y"), Put::Held, "there is room again");
        assert_eq!(gather.spill(0..u64::MAX).len() as u64, MOST >> 20);
        let gather = Gather::new(16 << 20, 16 << 20);
        assert_eq!(gather.put(0, b"x"), Put::NoRoom);
    }

    proptest! {
        /// Whatever comes in whatever order, file and gathered bytes together are what was written.
        #[test]
        fn nothing_is_lost_or_moved(writes in proptest::collection::vec((0u64..60, 1usize..12, any::<u8>()), 1..60)) {
            let gather = Gather::new(16, 64);
            let (mut want, mut file) = (vec![0; 64], vec![0; 64]);
            for (at, len, byte) in writes {
                let end = (at + len as u64).min(64);
                let mut at = at;
                while at < end {
                    let part = gather.first(at..end);
                    let bytes = vec![byte; (part.end - part.start) as usize];
                    want[part.start as usize..part.end as usize].copy_from_slice(&bytes);
                    match gather.put(at, &bytes) {
                        Put::Held => {}
                        Put::Whole(at, piece) => file[at as usize..][..piece.len()].copy_from_slice(&piece),
                        Put::Late => unreachable!("no piece was said to be right"),
                        Put::NoRoom => file[part.start as usize..part.end as usize].copy_from_slice(&bytes),
                    }
                    at = part.end;
                }
            }
            for piece in 0..4 {
                let mut buf = [0; 16];
                if gather.read(piece * 16, &mut buf) {
                    prop_assert_eq!(&buf, &file[piece as usize * 16..][..16]);
                }
            }
            for (at, bytes) in gather.spill(0..64) {
                file[at as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            prop_assert_eq!(want, file);
        }
    }
}
