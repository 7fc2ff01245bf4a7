//! Exceptions as runs: disk chunks in a row that lie in a row in the file, too, are one entry.
//!
//! Invariant: runs do not overlap, and two that could be one are one.

use super::Exception;
use crate::units::{DiskChunk, FileChunk};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, Run>);

#[derive(Debug, Clone, Copy)]
struct Run {
    file: u64,
    count: u64,
}

impl Runs {
    /// `false`, and no change, if the disk chunk is there already.
    pub fn insert(&mut self, exception: Exception) -> bool {
        let (disk, file) = (exception.disk.0, exception.file.0);
        let mut start = disk;
        let mut run = Run { file, count: 1 };
        if let Some((&before, &left)) = self.0.range(..=disk).next_back() {
            if disk - before < left.count {
                return false;
            }
            if disk - before == left.count && left.file.checked_add(left.count) == Some(file) {
                start = before;
                run = Run {
                    file: left.file,
                    count: left.count + 1,
                };
            }
        }
        if let Some(behind) = disk.checked_add(1)
            && let Some(&right) = self.0.get(&behind)
            && file.checked_add(1) == Some(right.file)
        {
            self.0.remove(&behind);
            run.count += right.count;
        }
        self.0.insert(start, run);
        true
    }

    pub fn get(&self, disk: DiskChunk) -> Option<FileChunk> {
        let (start, run) = self.0.range(..=disk.0).next_back()?;
        let index = disk.0 - start;
        (index < run.count).then(|| FileChunk(run.file + index))
    }

    /// How many disk chunks before `end` are there.
    pub fn count_before(&self, end: DiskChunk) -> u64 {
        self.0.range(..end.0).map(|(disk, run)| run.count.min(end.0 - disk)).sum()
    }

    /// By disk chunk.
    pub fn iter(&self) -> impl Iterator<Item = Exception> {
        self.0.iter().flat_map(|(disk, run)| {
            (0..run.count).map(move |index| Exception {
                disk: DiskChunk(disk + index),
                file: FileChunk(run.file + index),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_answer_like_a_plain_map(pairs in proptest::collection::vec((0u64..40, 0u64..40), 0..80)) {
            let mut runs = Runs::default();
            let mut plain = BTreeMap::new();
            for (disk, file) in pairs {
                // Half of the chunks in step, so that runs come about.
                let file = if file % 2 == 0 { disk + 100 } else { file };
                let new = !plain.contains_key(&disk);
                plain.entry(disk).or_insert(file);
                prop_assert_eq!(runs.insert(Exception { disk: DiskChunk(disk), file: FileChunk(file) }), new);
            }
            for disk in 0..41 {
                prop_assert_eq!(runs.get(DiskChunk(disk)).map(|file| file.0), plain.get(&disk).copied());
            }
            let some = plain.range(..20).count() as u64;
            prop_assert_eq!(runs.count_before(DiskChunk(20)), some);
            let listed: Vec<(u64, u64)> = runs.iter().map(|e| (e.disk.0, e.file.0)).collect();
            prop_assert_eq!(listed, plain.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sequential_write_is_one_run_whatever_the_order() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]] {
            let mut runs = Runs::default();
            for disk in order {
                assert!(runs.insert(Exception {
                    disk: DiskChunk(disk),
                    file: FileChunk(disk + 2)
                }));
            }
            assert_eq!(runs.0.len(), 1);
        }
    }
}
