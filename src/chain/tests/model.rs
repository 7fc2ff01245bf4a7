//! A disk that is written, flushed, sealed, resized, merged and opened again, beside a plain list of bytes.

use super::Dice;
use crate::blockio::{BlockDevice, MemoryIo, ReadAt};
use crate::chain::{Chain, ChainMap, Delta, Disk, seal};
use crate::format::head::{Head, full_len, trim};
use crate::format::seal::Sealer;
use crate::format::sealed::Sealed;
use crate::format::trailer::{Facts, FileSystem, SEAL_RULES};
use crate::ids::Digest;
use crate::units::{Bytes, ChunkSize, DiskChunk, SECTOR};
use std::sync::Arc;

struct Model {
    dice: Dice,
    deltas: Vec<(Delta, Arc<MemoryIo>)>,
    disk: Disk<MemoryIo>,
    head_clip: Bytes,
    want: Vec<u8>,
    /// No disk is larger, in bytes.
    largest: u64,
}

fn chain(deltas: &[(Delta, Arc<MemoryIo>)], size: Bytes) -> Chain {
    let facts: Vec<Delta> = deltas.iter().map(|(delta, _)| delta.clone()).collect();
    let files = deltas.iter().map(|(_, file)| Arc::clone(file) as Arc<dyn ReadAt>).collect();
    Chain::new(ChainMap::build(&facts, size).unwrap(), files).unwrap()
}

fn some_chunk(dice: &mut Dice) -> ChunkSize {
    // Mostly the smaller ones, of which a disk has more.
    let shift = if dice.below(4) == 0 { dice.below(9) } else { dice.below(5) };
    ChunkSize::new(Bytes(4096 << shift)).unwrap()
}

/// Opens what a sealer wrote, as a stranger would.
fn opened(file: MemoryIo, digest: Digest) -> (Delta, Arc<MemoryIo>) {
    let table = Sealed::open(&file).unwrap();
    (Delta::new(&table.facts, table.extents, digest), Arc::new(file))
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut dice = Dice(seed);
        // Some are larger than the window that sealing looks through.
        let largest = if seed.is_multiple_of(8) { 2500 << 10 } else { 700 << 10 };
        let size = Bytes(SECTOR * (1 + dice.below(largest / SECTOR)));
        let head = Head::create(MemoryIo::default(), some_chunk(&mut dice)).unwrap();
        let disk = Disk::with_head(chain(&[], size), head, size);
        Model {
            dice,
            deltas: Vec::new(),
            disk,
            head_clip: size,
            want: vec![0; size.0 as usize],
            largest,
        }
    }

    fn size(&self) -> Bytes {
        Bytes(self.want.len() as u64)
    }

    fn facts(&mut self, parent: Digest, virtual_size: Bytes) -> Facts {
        Facts {
            parent,
            stands_for: Digest::NONE,
            virtual_size,
            chunk_size: some_chunk(&mut self.dice),
            seal_rules: SEAL_RULES,
            file_system: FileSystem::None,
        }
    }

    /// A range of the disk: any bytes, or whole sectors, or whole chunks.
    fn range(&mut self) -> (u64, u64) {
        let grain = [1, 512, 4096, 65536][self.dice.below(4) as usize];
        let start = self.dice.below(self.size().0) / grain * grain;
        let most = [10, 9000, 200_000][self.dice.below(3) as usize];
        let end = (start + 1 + self.dice.below(most)).next_multiple_of(grain).min(self.size().0);
        (start, end)
    }

    fn write(&mut self) {
        let (start, end) = self.range();
        let seed = self.dice.below(255) + 1;
        // Sometimes what is there already, so that sealing has something to drop.
        let data: Vec<u8> = match self.dice.below(4) {
            0 => self.want[start as usize..end as usize].to_vec(),
            1 => vec![0; (end - start) as usize],
            _ => (start..end).map(|at| (seed + at / 100) as u8).collect(),
        };
        self.disk.write(Bytes(start), &data).unwrap();
        self.want[start as usize..end as usize].copy_from_slice(&data);
    }

    fn zero(&mut self) {
        let (start, end) = self.range();
        self.disk.zero(Bytes(start), Bytes(end - start)).unwrap();
        self.want[start as usize..end as usize].fill(0);
    }

    fn read(&mut self) {
        let (start, end) = self.range();
        let mut found = vec![1; (end - start) as usize];
        self.disk.read(Bytes(start), &mut found).unwrap();
        assert!(found == self.want[start as usize..end as usize], "{start}..{end}");
    }

    fn check(&self) {
        let mut found = vec![1; self.want.len()];
        self.disk.read(Bytes::ZERO, &mut found).unwrap();
        let first = found.iter().zip(&self.want).position(|(found, want)| found != want);
        assert_eq!(first, None, "first wrong byte, at depth {}", self.deltas.len());
    }

    /// The disk made again from its files.
    fn reopen(&mut self, size: Bytes) {
        self.disk.flush().unwrap();
        let head = Head::open(MemoryIo::new(self.disk.head().unwrap().io().bytes())).unwrap();
        self.disk = Disk::with_head(chain(&self.deltas, size), head, self.head_clip);
    }

    fn resize(&mut self) {
        let size = Bytes(SECTOR * (1 + self.dice.below(self.largest / SECTOR)));
        if size < self.size() {
            // What the head has behind the new end goes for good; the chain's is hidden by the clip.
            self.disk.flush().unwrap();
            let head = trim(self.disk.head().unwrap(), MemoryIo::default(), size).unwrap();
            assert!(head.io().size().unwrap() <= full_len(size, head.chunk_size()).unwrap());
            self.head_clip = self.head_clip.min(size);
            self.disk = Disk::with_head(chain(&self.deltas, size), head, self.head_clip);
        }
        self.want.resize(size.0 as usize, 0);
        self.reopen(size);
    }

    fn seal(&mut self) {
        let parent = self.deltas.last().map_or(Digest::NONE, |(delta, _)| delta.digest);
        let facts = self.facts(parent, self.size());
        let file = MemoryIo::default();
        let mut sealer = Sealer::new(&file, facts).unwrap();
        let head = self.disk.head().unwrap();
        let mut last = Bytes::ZERO;
        let mut progress = |done: Bytes, total: Bytes| {
            assert!(last <= done && done <= total);
            last = done;
        };
        seal::from_head(self.disk.chain(), head, self.head_clip, &facts, &mut sealer, &mut progress).unwrap();
        let digest = sealer.finish().unwrap().digest;
        self.deltas.push(opened(file, digest));
        self.head_clip = self.size();
        let head = Head::create(MemoryIo::default(), some_chunk(&mut self.dice)).unwrap();
        self.disk = Disk::with_head(chain(&self.deltas, self.size()), head, self.head_clip);
    }

    /// Some neighbours become one delta that stands for the newest of them.
    fn merge(&mut self) {
        if self.deltas.len() < 2 {
            return;
        }
        let first = self.dice.below(self.deltas.len() as u64 - 1) as usize;
        let last = first + 1 + self.dice.below((self.deltas.len() - first - 1) as u64) as usize;
        let newest = self.deltas[last].0.clone();
        // By the name the child above knows it by: that may be one that the newest stands for itself.
        let stands_for = self.deltas.get(last + 1).map_or(newest.digest, |(child, _)| child.parent);
        let size = newest.virtual_size;
        let facts = Facts {
            stands_for,
            ..self.facts(self.deltas[first].0.parent, size)
        };
        let bytes = facts.chunk_size.as_usize();
        let (below, all) = (chain(&self.deltas[..first], size), chain(&self.deltas[..=last], size));
        let file = MemoryIo::default();
        let mut sealer = Sealer::new(&file, facts).unwrap();
        if first == 0 && self.dice.below(4) > 0 {
            seal::from_chain(&all, &facts, &mut sealer, &mut |_, _| {}).unwrap();
            let digest = sealer.finish().unwrap().digest;
            self.deltas.splice(first..=last, [opened(file, digest)]);
            return self.reopen(self.size());
        }
        for disk in 0..facts.chunk_size.count(size) {
            let (mut old, mut new) = (vec![0; bytes], vec![0; bytes]);
            below.read(Bytes(disk * bytes as u64), &mut old).unwrap();
            all.read(Bytes(disk * bytes as u64), &mut new).unwrap();
            if old != new {
                sealer.push(DiskChunk(disk), &new).unwrap();
            }
        }
        let digest = sealer.finish().unwrap().digest;
        self.deltas.splice(first..=last, [opened(file, digest)]);
        self.reopen(self.size());
    }
}

#[test]
fn a_disk_is_its_bytes_whatever_is_done_to_it() {
    for seed in 0..60 {
        let mut model = Model::new(seed);
        for _ in 0..150 {
            match model.dice.below(40) {
                0..18 => model.write(),
                18..24 => model.zero(),
                24..32 => model.read(),
                32 => model.disk.flush().unwrap(),
                33 => model.reopen(model.size()),
                34 | 35 => model.resize(),
                36..39 => model.seal(),
                _ => model.merge(),
            }
            if model.dice.below(5) == 0 {
                model.check();
            }
        }
        model.check();
        model.seal();
        model.check();
    }
}
