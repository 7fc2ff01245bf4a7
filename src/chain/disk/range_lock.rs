//! Keeps two writers out of the same chunks.
//!
//! Invariant: of two guards that live at once, the ranges have nothing in common. A thread holds one guard at a time.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(super) struct RangeLock {
    /// A handful: one per thread that writes.
    held: Mutex<Vec<Range<u64>>>,
    freed: Condvar,
}

pub(super) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    range: Range<u64>,
}

impl RangeLock {
    /// Waits until nobody holds anything of `range`.
    pub(super) fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        let taken = |held: &mut Vec<Range<u64>>| held.iter().any(|other| other.start < range.end && range.start < other.end);
        let mut held = self
            .freed
            .wait_while(self.held(), taken)
            .expect("no thread panics while it holds this lock");
        held.push(range.clone());
        drop(held);
        RangeGuard { lock: self, range }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().expect("no thread panics while it holds this lock")
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.lock.held();
        if let Some(position) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(position);
        }
        drop(held);
        self.lock.freed.notify_all();
    }
}
