use super::*;
use crate::blockio::{BlockDevice, MemoryIo};
use crate::chain::tests::{Dice, chain_of};
use crate::chain::{ChainMap, Delta, Disk};
use crate::format::Extent;
use crate::format::seal::SealedDelta;
use crate::format::trailer::{FileSystem, SEAL_RULES};
use crate::ids::Digest;
use std::sync::Arc;

const SIZE: Bytes = Bytes((3 << 20) + 512);

fn facts(chunk: u64) -> Facts {
    Facts {
        parent: Digest::NONE,
        stands_for: Digest::NONE,
        virtual_size: SIZE,
        chunk_size: ChunkSize::new(Bytes(chunk)).unwrap(),
        seal_rules: SEAL_RULES,
        file_system: FileSystem::None,
    }
}

fn empty() -> Chain {
    Chain::new(ChainMap::build(&[], SIZE).unwrap(), Vec::new()).unwrap()
}

/// Full of ones.
fn ones() -> Chain {
    let chunks = ChunkSize::MIN.count(SIZE);
    chain_of(SIZE, ChunkSize::MIN, &[(0, chunks)], &vec![1; SIZE.0 as usize])
}

fn head(chain: Chain, chunk: u64) -> Disk<MemoryIo> {
    Disk::with_head(
        chain,
        Head::create(MemoryIo::default(), ChunkSize::new(Bytes(chunk)).unwrap()).unwrap(),
        SIZE,
    )
}

fn seal(disk: &Disk<MemoryIo>, clip: Bytes, chunk: u64) -> SealedDelta {
    let facts = facts(chunk);
    let mut sealer = Sealer::new(MemoryIo::default(), facts).unwrap();
    from_head(disk.chain(), disk.head().unwrap(), clip, &facts, &mut sealer, &mut |_, _| {}).unwrap();
    sealer.finish().unwrap()
}

fn seal_raw(file: &[u8], data: &[(u64, u64)], chunk: u64) -> Result<SealedDelta, SealChainError> {
    let facts = facts(chunk);
    let mut sealer = Sealer::new(MemoryIo::default(), facts).unwrap();
    let data = data.iter().map(|(start, end)| Bytes(*start)..Bytes(*end));
    from_raw(&MemoryIo::new(file.to_vec()), data, &facts, &mut sealer, &mut |_, _| {})?;
    Ok(sealer.finish().unwrap())
}

fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
    list.iter()
        .map(|(start, count)| Extent {
            disk: DiskChunk(*start),
            count: *count,
        })
        .collect()
}

#[test]
fn only_chunks_that_differ_from_the_parent_are_kept() {
    let disk = head(ones(), 16384);
    // The same again; another byte in the third 4 KiB of a head's chunk; zeros over data; the disk's last sector.
    disk.write(Bytes(0), &[1; 40_000]).unwrap();
    disk.write(Bytes(16384 * 5 + 9000), &[2]).unwrap();
    disk.zero(Bytes(1 << 20), Bytes(16384)).unwrap();
    disk.write(Bytes(3 << 20), &[3; 512]).unwrap();
    let delta = seal(&disk, SIZE, 4096);
    assert_eq!(delta.extents, extents(&[(22, 1), (256, 4), (768, 1)]));
    // The zeros take no space beside their exceptions, and a larger chunk takes its neighbours along.
    assert_eq!(seal(&disk, SIZE, 65536).extents, extents(&[(1, 1), (16, 1), (48, 1)]));
    assert_eq!(seal(&head(ones(), 4096), SIZE, 4096).extents, []);
}

#[test]
fn zeros_over_nothing_are_not_kept() {
    let disk = head(empty(), 16384);
    disk.write(Bytes(0), &vec![0; 1 << 20]).unwrap();
    disk.write(Bytes(8192), &[1]).unwrap();
    assert_eq!(seal(&disk, SIZE, 4096).extents, extents(&[(2, 1)]));
}

#[test]
fn what_the_smallest_size_hid_is_zeros_in_the_delta() {
    // Shrunk to 1 MiB + 512 and grown again: the parent's data must not come back.
    let clip = Bytes((1 << 20) + 512);
    let mut disk = head(ones(), 16384);
    disk = Disk::with_head(
        ones(),
        Head::create(MemoryIo::default(), disk.head().unwrap().chunk_size()).unwrap(),
        clip,
    );
    assert_eq!(seal(&disk, clip, 4096).extents, extents(&[(256, 513)]));
    disk.write(Bytes(2 << 20), &vec![1; 65536]).unwrap();
    assert_eq!(seal(&disk, clip, 4096).extents, extents(&[(256, 256), (528, 241)]));
}

#[test]
fn the_same_disk_over_the_same_parent_gives_the_same_file() {
    let mut digests = Vec::new();
    for (seed, head_chunk) in [(1, 4096), (2, 16384), (3, 1 << 20)] {
        let disk = head(ones(), head_chunk);
        let mut dice = Dice(seed);
        let mut sectors: Vec<u64> = (0..900).map(|index| index * 7 % 6145).collect();
        while !sectors.is_empty() {
            let sector = sectors.swap_remove(dice.below(sectors.len() as u64) as usize);
            disk.write(Bytes(sector * 512), &[sector as u8; 512]).unwrap();
        }
        let delta = seal(&disk, SIZE, 4096);
        digests.push((delta.digest, delta.meta));
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_raw_disk_and_a_head_with_its_bytes_give_the_same_base() {
    let mut raw = vec![0; SIZE.0 as usize];
    raw[5] = 1;
    raw[100_000..200_000].fill(2);
    raw[(3 << 20) - 100..].fill(3);
    for chunk in [4096, 16384, 65536, 1 << 20] {
        let disk = head(empty(), 16384);
        disk.write(Bytes(0), &raw).unwrap();
        let want = seal(&disk, SIZE, chunk);
        let len = raw.len() as u64;
        for data in [
            &[(0, len)][..],
            &[(0, 6), (5, 6), (99_000, 150_000), (150_000, 200_000), ((3 << 20) - 100, u64::MAX)],
        ] {
            assert_eq!(seal_raw(&raw, data, chunk).unwrap(), want, "{data:?}");
        }
    }
}

/// From which byte on a disk has what.
type Writes<'a> = &'a [(u64, Vec<u8>)];

/// `deltas`, oldest first, each over all below it: chunk size, disk size, and what is written.
fn stacked(deltas: &[(u64, u64, Writes)]) -> Chain {
    let (mut known, mut files) = (Vec::new(), Vec::<Arc<dyn ReadAt>>::new());
    let mut parent = Digest::NONE;
    for (chunk, size, writes) in deltas {
        let below = Chain::new(ChainMap::build(&known, Bytes(*size)).unwrap(), files.clone()).unwrap();
        let disk = Disk::with_head(below, Head::create(MemoryIo::default(), ChunkSize::HEAD).unwrap(), Bytes(*size));
        writes.iter().for_each(|(at, data)| disk.write(Bytes(*at), data).unwrap());
        let facts = Facts {
            parent,
            virtual_size: Bytes(*size),
            ..facts(*chunk)
        };
        let file = MemoryIo::default();
        let mut sealer = Sealer::new(&file, facts).unwrap();
        from_head(
            disk.chain(),
            disk.head().unwrap(),
            Bytes(*size),
            &facts,
            &mut sealer,
            &mut |_, _| {},
        )
        .unwrap();
        let sealed = sealer.finish().unwrap();
        known.push(Delta::new(&facts, sealed.extents, sealed.digest));
        files.push(Arc::new(file));
        parent = sealed.digest;
    }
    let (_, size, _) = deltas.last().unwrap();
    Chain::new(ChainMap::build(&known, Bytes(*size)).unwrap(), files).unwrap()
}

fn flat(chain: &Chain, chunk: u64) -> SealedDelta {
    let facts = Facts {
        virtual_size: chain.map().size(),
        ..facts(chunk)
    };
    let mut sealer = Sealer::new(MemoryIo::default(), facts).unwrap();
    let mut last = Bytes::ZERO;
    let mut progress = |done: Bytes, total: Bytes| {
        assert!(last <= done && done <= total);
        last = done;
    };
    from_chain(chain, &facts, &mut sealer, &mut progress).unwrap();
    sealer.finish().unwrap()
}

#[test]
fn a_flat_chain_is_the_base_that_its_disk_would_be() {
    // It grew, shrank over data, and grew again; the third delta zeros what the first had; chunks of four sizes.
    let chain = stacked(&[
        (65536, 2 << 20, &[(0, vec![1; 1 << 20]), ((2 << 20) - 512, vec![2; 512])]),
        (4096, 3 << 20, &[(300_000, vec![3; 70_000]), ((3 << 20) - 9000, vec![4; 9000])]),
        (1 << 20, 1 << 20, &[(4096, vec![0; 500_000])]),
        (16384, SIZE.0, &[((2 << 20) + 100, vec![5; 10]), (3 << 20, vec![6; 512])]),
    ]);
    let mut raw = vec![0; SIZE.0 as usize];
    chain.read(Bytes::ZERO, &mut raw).unwrap();
    assert!(
        raw[2 << 20..(2 << 20) + 100]
            .iter()
            .chain(&raw[(3 << 20) - 9000..3 << 20])
            .all(|byte| *byte == 0)
    );
    assert!(raw[4096..504_096].iter().all(|byte| *byte == 0) && raw[600_000] == 1 && raw[(2 << 20) + 100] == 5);
    for chunk in [4096, 65536, 1 << 20] {
        assert_eq!(flat(&chain, chunk), seal_raw(&raw, &[(0, SIZE.0)], chunk).unwrap());
    }
    assert_eq!(flat(&empty(), 65536).extents, []);
    assert_eq!(flat(&ones(), 65536).extents, extents(&[(0, 49)]));
}

#[test]
fn a_flat_chain_of_another_size_is_refused() {
    let facts = Facts {
        virtual_size: Bytes(SIZE.0 + 512),
        ..facts(4096)
    };
    let mut sealer = Sealer::new(MemoryIo::default(), facts).unwrap();
    let found = from_chain(&ones(), &facts, &mut sealer, &mut |_, _| {});
    assert!(matches!(found, Err(SealChainError::Size { .. })));
}

#[test]
fn a_raw_file_may_be_shorter_or_longer_than_the_disk() {
    assert_eq!(seal_raw(&[1; 5000], &[(0, 5000)], 4096).unwrap().extents, extents(&[(0, 2)]));
    let long = vec![1; SIZE.0 as usize + 100_000];
    assert_eq!(seal_raw(&long, &[(0, u64::MAX)], 4096).unwrap().extents, extents(&[(0, 769)]));
    assert_eq!(seal_raw(&[], &[(0, 100)], 4096).unwrap().extents, []);
}

#[test]
fn raw_ranges_out_of_order_are_refused() {
    let found = seal_raw(&[1; 50_000], &[(40_000, 50_000), (0, 100)], 4096);
    assert!(matches!(found, Err(SealChainError::Order { .. })));
}

#[test]
fn a_delta_of_another_size_than_the_disk_is_refused() {
    let disk = head(empty(), 4096);
    let facts = Facts {
        virtual_size: Bytes(SIZE.0 + 512),
        ..facts(4096)
    };
    let mut sealer = Sealer::new(MemoryIo::default(), facts).unwrap();
    let found = from_head(disk.chain(), disk.head().unwrap(), SIZE, &facts, &mut sealer, &mut |_, _| {});
    assert!(matches!(found, Err(SealChainError::Size { .. })));
}
