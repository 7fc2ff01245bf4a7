//! What to read ahead when a disk is read from front to back.
//!
//! The files' own read-ahead does not see it: a chain's reads jump between files, and over what newer deltas hide. Refuses to read anything.
//! Invariant: a random reader is never read ahead for.

use std::sync::Mutex;

/// How far ahead: a few requests' worth, so that it costs little when the reader stops.
const WINDOW: u64 = 4 << 20;
/// Asked for at once, so that hints are few.
const STEP: u64 = 1 << 20;
/// Requests of one reader reach the threads out of order, but not by more.
const SLACK: u64 = 1 << 20;
/// A reader is one that goes on for this long.
const TRUST: u64 = 256 << 10;

/// The one stream that is followed: the newest.
#[derive(Debug, Default)]
pub struct Ahead(Mutex<Stream>);

#[derive(Debug, Default)]
struct Stream {
    /// Bytes read in a row.
    read: u64,
    /// The end of what was read.
    end: u64,
    /// The end of what was asked for ahead.
    asked: u64,
}

impl Ahead {
    /// Takes note of a read; returns the range (start, length) to ask for now.
    pub fn after_read(&self, at: u64, len: u64) -> Option<(u64, u64)> {
        let mut stream = self.0.lock().expect("no thread panics while it holds this lock");
        let near = at <= stream.end.saturating_add(SLACK) && at.saturating_add(SLACK) >= stream.end;
        let end = at.saturating_add(len);
        if !near || len < 4096 {
            *stream = Stream {
                read: len,
                end,
                asked: end,
            };
            return None;
        }
        stream.end = stream.end.max(end);
        stream.read = stream.read.saturating_add(len);
        let wanted = stream.end.saturating_add(WINDOW);
        let from = stream.asked.max(stream.end);
        if stream.read < TRUST || wanted.saturating_sub(from) < STEP {
            return None;
        }
        stream.asked = wanted;
        Some((from, wanted - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_kept_ahead_of_without_asking_twice() {
        let ahead = Ahead::default();
        let mut asked = 0;
        for request in 0..64u64 {
            let at = request << 19;
            if let Some((from, len)) = ahead.after_read(at, 1 << 19) {
                assert!(from >= asked && from >= at + (1 << 19), "request {request}");
                assert!(len <= WINDOW + STEP);
                asked = from + len;
            }
            assert!(request < 2 || asked >= at + (1 << 19) + WINDOW - STEP, "request {request}: {asked}");
        }
    }

    #[test]
    fn two_halves_out_of_order_are_one_reader() {
        let ahead = Ahead::default();
        let mut hints = 0;
        for pair in 0..32u64 {
            for half in [1, 0] {
                hints += u32::from(ahead.after_read((pair << 20) + (half << 19), 1 << 19).is_some());
            }
        }
        assert!(hints >= 20, "{hints}");
    }

    #[test]
    fn a_random_reader_is_not_read_ahead_for() {
        let ahead = Ahead::default();
        let mut at = 1u64;
        for _ in 0..1000 {
            at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            assert_eq!(ahead.after_read((at >> 24) << 12, 4096), None);
        }
        assert_eq!(ahead.after_read(u64::MAX, u64::MAX), None);
    }
}
