//! Every state in which a power cut could leave a head: syncs are barriers, and between two of them any sectors of any writes
//! may have reached the disk. Each state is opened and read back; wrong orders beside it show that the test can fail.

use super::*;
use crate::blockio::record::{Op, RecordIo};
use crate::blockio::{MemoryIo, ReadAt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

const CHUNK: ChunkSize = ChunkSize::MIN;

/// A small generator of our own: the same seed gives the same cuts.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What a returned commit promised: so many ops were in the log, and each disk chunk had at least this version.
struct Promise {
    at: usize,
    versions: BTreeMap<u64, u64>,
}

/// A device as simple as can be over a head; each sector it writes says which disk chunk and version it is.
struct Life<'a, F: WriteAt> {
    head: Head<F>,
    record: &'a RecordIo,
    version: u64,
    versions: BTreeMap<u64, u64>,
    promises: Vec<Promise>,
}

impl<F: WriteAt> Life<'_, F> {
    fn write(&mut self, disk: u64) {
        self.version += 1;
        let mut data = [0; 4096];
        for sector in data.chunks_exact_mut(512) {
            sector[..8].copy_from_slice(&disk.to_le_bytes());
            sector[8..16].copy_from_slice(&self.version.to_le_bytes());
        }
        let old = self.head.get(DiskChunk(disk));
        let file = old.unwrap_or_else(|| self.head.allocate().unwrap());
        self.head.io().write_at(&data, CHUNK.offset(file).unwrap()).unwrap();
        if old.is_none() {
            assert!(self.head.record(DiskChunk(disk), file));
        }
        self.versions.insert(disk, self.version);
    }

    fn commit(&mut self) {
        self.head.commit().unwrap();
        self.promises.push(Promise {
            at: self.record.log().len(),
            versions: self.versions.clone(),
        });
    }

    /// Random writes, some over old chunks, and random commits.
    fn run(&mut self, writes: u64, rng: &mut Rng) {
        for _ in 0..writes {
            let disk = if rng.below(4) == 0 { rng.below(40) } else { rng.below(100_000) };
            self.write(disk);
            if rng.below(12) == 0 {
                self.commit();
            }
        }
        self.commit();
    }
}

/// Applies an op as a cut may leave it: whole, not at all, or some of its sectors.
fn apply_torn(op: &Op, file: &MemoryIo, mode: u64, rng: &mut Rng) {
    match op {
        _ if mode == 0 || (mode > 1 && rng.below(2) == 0) => {}
        Op::Write { at, data } if mode == 3 => {
            for (index, sector) in data.chunks(512).enumerate() {
                if rng.below(2) == 0 {
                    file.write_at(sector, Bytes(at.0 + index as u64 * 512)).unwrap();
                }
            }
        }
        op => op.apply(file).unwrap(),
    }
}

/// Calls `visit` with states that a cut could leave, `per_cut` for each `wanted` number of ops that were begun.
fn cuts(log: &[Op], per_cut: u64, wanted: &dyn Fn(usize) -> bool, rng: &mut Rng, visit: &mut dyn FnMut(usize, MemoryIo)) {
    let durable = MemoryIo::default();
    let mut synced = 0;
    for at in 1..=log.len() {
        if log[at - 1] == Op::Sync {
            log[synced..at].iter().for_each(|op| op.apply(&durable).unwrap());
            synced = at;
        }
        for mode in (0..per_cut).filter(|_| wanted(at)) {
            let state = MemoryIo::new(durable.bytes());
            log[synced..at].iter().for_each(|op| apply_torn(op, &state, mode.min(3), rng));
            visit(at, state);
        }
    }
}

/// Where most can go wrong: all that one sync, or the next, is there for has been written.
fn near_sync(log: &[Op], at: usize) -> bool {
    log[at - 1..log.len().min(at + 3)].contains(&Op::Sync)
}

/// What is wrong with a state, if anything: a promise that was not kept, or a sector of something else.
fn broken(state: &MemoryIo, promises: &[Promise], at: usize) -> Option<String> {
    let head = match Head::open(state) {
        Ok(head) => head,
        // Before the head was made there is nothing to open.
        Err(error) => return (!promises.is_empty() && promises[0].at <= at).then(|| format!("{error:?}")),
    };
    let none = BTreeMap::new();
    let promised = promises
        .iter()
        .rev()
        .find(|promise| promise.at <= at)
        .map_or(&none, |promise| &promise.versions);
    if let Some(disk) = promised.keys().find(|disk| head.get(DiskChunk(**disk)).is_none()) {
        return Some(format!("disk chunk {disk} was committed and is gone"));
    }
    for exception in head.exceptions() {
        let disk = exception.disk.0;
        let mut data = [0; 4096];
        state.read_at(&mut data, CHUNK.offset(exception.file).unwrap()).unwrap();
        for sector in data.chunks_exact(512) {
            let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap());
            let least = promised.get(&disk).copied().unwrap_or(1);
            if word(0) != disk || word(8) < least {
                return Some(format!(
                    "disk chunk {disk} version {least} reads as {} version {}",
                    word(0),
                    word(8)
                ));
            }
        }
    }
    (0..4).map(|_| CHUNK.offset(head.allocate().unwrap()).unwrap()).find_map(|fresh| {
        let mut data = [0; 4096];
        let dirty = state.read_at(&mut data, fresh).is_ok() && data != [0; 4096];
        dirty.then(|| format!("the fresh chunk at {} is not zero", fresh.0))
    })
}

/// A first life that crosses the ends of areas.
fn first_life<F: WriteAt>(record: &RecordIo, io: F, seed: u64) -> Life<'_, F> {
    let head = Head::create(io, CHUNK).unwrap();
    let mut life = Life {
        head,
        record,
        version: 0,
        versions: BTreeMap::new(),
        promises: Vec::new(),
    };
    life.commit();
    (0..230).for_each(|disk| life.write(disk * 7));
    life.commit();
    life.run(60, &mut Rng(seed));
    // One commit that fills more than one area.
    (0..530).for_each(|disk| life.write(200_000 + disk));
    life.commit();
    life.run(10, &mut Rng(seed + 1));
    life
}

fn first_failure(log: &[Op], promises: &[Promise], per_cut: u64) -> (usize, Option<String>) {
    let mut states = 0;
    let mut failure = None;
    // Long stretches of plain writes teach nothing new at each of them.
    let wanted = |at: usize| near_sync(log, at) || at.is_multiple_of(10);
    cuts(log, per_cut, &wanted, &mut Rng(7), &mut |at, state| {
        if failure.is_none() {
            states += 1;
            failure = broken(&state, promises, at);
        }
    });
    (states, failure)
}

#[test]
fn a_power_cut_loses_nothing_that_was_committed_and_mixes_nothing_up() {
    for seed in [1, 2] {
        let record = RecordIo::default();
        let life = first_life(&record, &record, seed);
        let (states, failure) = first_failure(&record.log(), &life.promises, 5);
        assert_eq!(failure, None);
        assert!(states > 500, "{states}");
    }
}

/// Opens a state that a cut left, by `open`, goes on writing, and is cut again: exceptions of the first life must not come back.
fn second_cuts(open: impl Fn(Arc<RecordIo>) -> Result<Head<Arc<RecordIo>>, HeadError>) -> (usize, Option<String>) {
    let first = RecordIo::default();
    let life = first_life(&first, &first, 3);
    let log = first.log();
    // The states in which the commit of three areas is under way: its area writes are the last four before a sync.
    let big = life
        .promises
        .iter()
        .position(|promise| promise.versions.contains_key(&200_529))
        .unwrap();
    let end = life.promises[big].at;
    let mut lives = Vec::new();
    cuts(&log[..end], 12, &|at| at + 3 > end && at < end, &mut Rng(11), &mut |_, state| {
        lives.push(state)
    });
    let mut states = 0;
    for (index, state) in lives.into_iter().enumerate() {
        let record = Arc::new(RecordIo::default());
        record.write_at(&state.bytes(), Bytes::ZERO).unwrap();
        record.sync().unwrap();
        let started = record.log().len();
        let head = open(record.clone()).unwrap();
        let versions: BTreeMap<u64, u64> = head.exceptions().iter().map(|exception| (exception.disk.0, 1)).collect();
        let promises = vec![Promise {
            at: started,
            versions: versions.clone(),
        }];
        let mut life = Life {
            head,
            record: &record,
            version: 10_000,
            versions,
            promises,
        };
        for disk in 0..300 {
            life.write(500_000 + disk);
            // Large enough to cross sectors: the first write of an area overwrites all that is stale in it.
            if disk % 100 == 99 {
                life.commit();
            }
        }
        life.commit();
        let log = record.log();
        let mut failure = None;
        let wanted = |at: usize| at >= started && log.get(at) == Some(&Op::Sync);
        cuts(&log, 8, &wanted, &mut Rng(index as u64), &mut |at, state| {
            if failure.is_none() {
                states += 1;
                failure = broken(&state, &life.promises, at);
            }
        });
        if failure.is_some() {
            return (states, failure);
        }
    }
    (states, None)
}

#[test]
fn a_second_power_cut_brings_nothing_of_the_first_life_back() {
    let (states, failure) = second_cuts(Head::open);
    assert_eq!(failure, None);
    assert!(states > 500, "{states}");
}

#[test]
fn without_tidying_a_second_power_cut_is_noticed() {
    let (_, failure) = second_cuts(Head::open_read_only);
    assert!(failure.is_some());
}

/// Drops the first sync of each pair: areas may then be on the disk before their data is.
struct HalfSynced<'a>(&'a RecordIo, AtomicUsize);

impl ReadAt for HalfSynced<'_> {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.0.read_at(buf, at)
    }
    fn size(&self) -> io::Result<Bytes> {
        self.0.size()
    }
}

impl WriteAt for HalfSynced<'_> {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        self.0.write_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        if self.1.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            self.0.sync()
        } else {
            Ok(())
        }
    }
    fn set_len(&self, len: Bytes) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        self.0.punch(at, len)
    }
}

#[test]
fn areas_written_before_their_data_is_durable_are_noticed() {
    let record = RecordIo::default();
    // The number of syncs before decides which of a pair is dropped; an empty commit has only one.
    let life = first_life(&record, HalfSynced(&record, AtomicUsize::new(1)), 1);
    let dropped_last = first_failure(&record.log(), &life.promises, 5).1;
    let record = RecordIo::default();
    let life = first_life(&record, HalfSynced(&record, AtomicUsize::new(0)), 1);
    let dropped_first = first_failure(&record.log(), &life.promises, 5).1;
    assert!(
        dropped_first.is_some() && dropped_last.is_some(),
        "{dropped_first:?} {dropped_last:?}"
    );
}
