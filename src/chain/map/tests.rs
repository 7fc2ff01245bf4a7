use super::*;
use crate::chain::tests::Dice;
use crate::chain::{diff, union, written};
use crate::format::{Exception, Extent, file_chunk};
use crate::units::{ChunkSize, DiskChunk, FileChunk, MAX_DISK};

fn digest(number: usize) -> Digest {
    Digest([number as u8 + 1; 32])
}

fn extent(start: u64, count: u64) -> Extent {
    Extent {
        disk: DiskChunk(start),
        count,
    }
}

/// Delta `number` of a chain, 4 KiB chunks.
fn delta(number: usize, virtual_size: u64, extents: &[(u64, u64)]) -> Delta {
    Delta {
        extents: extents.iter().map(|(start, count)| extent(*start, *count)).collect(),
        chunk_size: ChunkSize::MIN,
        virtual_size: Bytes(virtual_size),
        digest: digest(number),
        parent: number.checked_sub(1).map_or(Digest::NONE, digest),
        stands_for: Digest::NONE,
    }
}

fn random_delta(dice: &mut Dice, number: usize) -> Delta {
    let chunk_size = ChunkSize::new(Bytes(4096 << dice.below(4))).unwrap();
    let virtual_size = Bytes(SECTOR * (1 + dice.below(20_000)));
    let (mut extents, mut at) = (Vec::new(), 0);
    let chunks = chunk_size.count(virtual_size);
    loop {
        at += dice.below(40);
        let count = 1 + if dice.below(20) == 0 { dice.below(600) } else { dice.below(9) };
        if at + count > chunks {
            break;
        }
        extents.push(extent(at, count));
        at += count;
    }
    Delta {
        chunk_size,
        extents,
        ..delta(number, virtual_size.0, &[])
    }
}

/// The source of every sector of the disk, found the slow way.
fn sector_by_sector(deltas: &[Delta], size: Bytes) -> Vec<Option<(usize, u64)>> {
    let mut disk = vec![None; (size.0 / SECTOR) as usize];
    for (number, delta) in deltas.iter().enumerate() {
        disk.iter_mut()
            .skip((delta.virtual_size.0 / SECTOR) as usize)
            .for_each(|sector| *sector = None);
        let sectors = u64::from(delta.chunk_size.sectors());
        let chunks = delta.extents.iter().flat_map(|extent| extent.disk.0..extent.disk.0 + extent.count);
        for (index, chunk) in chunks.enumerate() {
            for within in 0..sectors {
                let at = chunk * sectors + within;
                if at < (delta.virtual_size.0 / SECTOR).min(disk.len() as u64) {
                    disk[at as usize] = Some((number, file_chunk(delta.chunk_size, index as u64).0 * sectors + within));
                }
            }
        }
    }
    disk
}

fn origin(map: &ChainMap, sector: u64) -> Option<(usize, u64)> {
    let piece = map.lookup(Bytes(sector * SECTOR));
    assert!(piece.at.0 <= sector * SECTOR && piece.end().0 > sector * SECTOR);
    match piece.source {
        Source::Zero => None,
        Source::Delta { delta, offset } => Some((delta, offset.0 / SECTOR + (sector - piece.at.0 / SECTOR))),
    }
}

#[test]
fn every_sector_has_the_source_that_the_layers_give_it() {
    let mut dice = Dice(1);
    for depth in 0..40 {
        let deltas: Vec<Delta> = (0..depth).map(|number| random_delta(&mut dice, number)).collect();
        let size = Bytes(SECTOR * (1 + dice.below(20_000)));
        let map = ChainMap::build(&deltas, size).unwrap();
        let want = sector_by_sector(&deltas, size);
        for (sector, want) in want.iter().enumerate() {
            assert_eq!(origin(&map, sector as u64), *want, "depth {depth}, sector {sector}");
        }
        assert_eq!(origin(&map, want.len() as u64), None);
        assert_eq!(map.lookup(Bytes(u64::MAX)).source, Source::Zero);
    }
}

#[test]
fn pieces_cover_a_range_without_gaps_and_agree_with_lookups() {
    let mut dice = Dice(2);
    let deltas: Vec<Delta> = (0..5).map(|number| random_delta(&mut dice, number)).collect();
    let map = ChainMap::build(&deltas, Bytes(SECTOR * 15_000)).unwrap();
    for _ in 0..2000 {
        let start = dice.below(16_000 * SECTOR);
        let end = start + dice.below(300 * SECTOR);
        let mut at = start;
        for piece in map.segments(Bytes(start)..Bytes(end)) {
            assert_eq!(piece.at.0, at);
            assert!(piece.len.0 > 0);
            assert_eq!(map.lookup(piece.at).cut(piece.at, piece.end()), piece);
            at = piece.end().0;
        }
        assert_eq!(at, end);
    }
}

#[test]
fn a_run_stops_at_an_area_and_goes_on_behind_it() {
    let map = ChainMap::build(&[delta(0, 4 << 20, &[(0, 300), (300, 10)])], Bytes(4 << 20)).unwrap();
    let pieces: Vec<(u64, u64, Source)> = map
        .segments(Bytes::ZERO..Bytes(4 << 20))
        .map(|piece| (piece.at.0 / 4096, piece.len.0 / 4096, piece.source))
        .collect();
    let source = |chunk: u64| Source::Delta {
        delta: 0,
        offset: Bytes(chunk * 4096),
    };
    assert_eq!(pieces, [(0, 256, source(2)), (256, 54, source(259)), (310, 714, Source::Zero)]);
}

#[test]
fn what_was_cut_off_by_shrinking_stays_away_after_growing() {
    let mib = 1 << 20;
    // 4 MiB full of data, then one delta made at 1 MiB, then one at 8 MiB.
    let deltas = [
        delta(0, 4 * mib, &[(0, 1024)]),
        delta(1, mib, &[(3, 1)]),
        delta(2, 8 * mib, &[(700, 2)]),
    ];
    let map = ChainMap::build(&deltas, Bytes(8 * mib)).unwrap();
    let layer_at = |at: u64| match map.lookup(Bytes(at)).source {
        Source::Zero => None,
        Source::Delta { delta, .. } => Some(delta),
    };
    assert_eq!(layer_at(mib - 512), Some(0));
    assert_eq!(layer_at(3 * 4096), Some(1));
    assert_eq!(layer_at(mib), None);
    assert_eq!(layer_at(4 * mib - 512), None);
    assert_eq!(layer_at(700 * 4096), Some(2));
    // The image itself was shrunk below its newest delta.
    let map = ChainMap::build(&deltas, Bytes(512 * 5)).unwrap();
    assert_eq!(map.lookup(Bytes(0)).len, Bytes(512 * 5));
    assert_eq!(map.lookup(Bytes(512 * 5)).source, Source::Zero);
}

#[test]
fn a_child_fits_over_its_parent_and_over_what_stands_for_it() {
    let mib = 1 << 20;
    let build = |deltas: &[Delta]| ChainMap::build(deltas, Bytes(mib));
    let base = delta(0, mib, &[(0, 1)]);
    let child = delta(1, mib, &[(1, 1)]);
    assert!(build(&[base.clone(), child.clone()]).is_ok());
    let stranger = Delta {
        digest: digest(9),
        ..base.clone()
    };
    let want = ChainError::Parent {
        delta: 1,
        digest: digest(1),
        found: digest(0),
        below: digest(9),
    };
    assert_eq!(build(&[stranger.clone(), child.clone()]).unwrap_err(), want);
    let flat = Delta {
        stands_for: digest(0),
        ..stranger
    };
    assert!(build(&[flat.clone(), child.clone()]).is_ok());
    // Only the delta that names the missing one, and only for its own child.
    assert!(build(&[flat, delta(2, mib, &[])]).is_err());
    let orphan = Delta {
        parent: Digest::NONE,
        ..child.clone()
    };
    assert!(build(&[base, orphan]).is_err(), "a base over a base");
    assert_eq!(
        build(&[child]).unwrap_err(),
        ChainError::NotABase {
            digest: digest(1),
            parent: digest(0)
        }
    );
}

#[test]
fn hostile_extents_are_refused() {
    let mib = 1 << 20;
    for extents in [
        &[(0, 0)][..],
        &[(u64::MAX, 1)],
        &[(u64::MAX, u64::MAX)],
        &[(0, u64::MAX)],
        &[(1 << 52, 1)],
        &[(256, 1)],
        &[(255, 2)],
        &[(5, 2), (6, 1)],
        &[(5, 2), (1, 1)],
        &[(5, 2), (5, 2)],
    ] {
        let delta = delta(0, mib, extents);
        assert!(
            matches!(ChainMap::build(&[delta], Bytes(mib)), Err(ChainError::Extent { .. })),
            "{extents:?}"
        );
    }
    for size in [0, 1, 4097, MAX_DISK.0 + 512, u64::MAX] {
        assert!(
            matches!(ChainMap::build(&[delta(0, size, &[])], Bytes(mib)), Err(ChainError::Size { .. })),
            "{size}"
        );
        assert!(matches!(ChainMap::build(&[], Bytes(size)), Err(ChainError::ImageSize(_))), "{size}");
    }
    // Cut off is not unchecked.
    assert!(ChainMap::build(&[delta(0, mib, &[(255, 2)])], Bytes(512)).is_err());
}

#[test]
fn the_largest_disk_has_a_map() {
    let chunk_size = ChunkSize::MAX;
    let whole = Delta {
        chunk_size,
        ..delta(0, MAX_DISK.0, &[(0, chunk_size.count(MAX_DISK))])
    };
    let map = ChainMap::build(&[whole], MAX_DISK).unwrap();
    assert_eq!(map.runs(), 256);
    let last = map.lookup(Bytes(MAX_DISK.0 - 1));
    assert_eq!(last.end(), MAX_DISK);
    assert!(matches!(last.source, Source::Delta { delta: 0, .. }));
}

#[test]
fn a_million_runs_take_less_than_28_bytes_each() {
    // Evenly spread, then crowded at one end of a large disk.
    for (stride, far) in [(16, 0), (2, 1 << 30)] {
        let mut extents: Vec<(u64, u64)> = (0..1_000_000).map(|index| (index * stride, 1)).collect();
        extents.push((far + 16_000_000, 1));
        let map = ChainMap::build(&[delta(0, MAX_DISK.0, &extents)], MAX_DISK).unwrap();
        assert_eq!(map.runs(), 1_000_001);
        let each = map.memory_bytes() as f64 / map.runs() as f64;
        assert!(each < 28.0, "{each} bytes a run");
    }
}

#[test]
fn a_diff_lists_exactly_the_sectors_with_another_source() {
    let mut dice = Dice(3);
    for round in 0..30 {
        let deltas: Vec<Delta> = (0..6).map(|number| random_delta(&mut dice, number)).collect();
        let (one, other) = (dice.below(7) as usize, dice.below(7) as usize);
        let a = ChainMap::build(&deltas[..one], Bytes(SECTOR * (1 + dice.below(20_000)))).unwrap();
        let b = ChainMap::build(&deltas[..other], Bytes(SECTOR * (1 + dice.below(20_000)))).unwrap();
        let changes = diff(&a, &b);
        assert!(changes.iter().all(|change| change.start < change.end));
        assert!(changes.windows(2).all(|pair| pair[0].end < pair[1].start));
        for sector in 0..20_001 {
            let at = Bytes(sector * SECTOR);
            let listed = changes.iter().any(|change| change.contains(&at));
            assert_eq!(listed, origin(&a, sector) != origin(&b, sector), "round {round}, sector {sector}");
        }
        assert_eq!(diff(&a, &a), []);
    }
}

#[test]
fn a_union_has_what_either_has() {
    let bytes = |list: &[(u64, u64)]| -> Vec<Range<Bytes>> { list.iter().map(|(start, end)| Bytes(*start)..Bytes(*end)).collect() };
    let joined = union(
        &bytes(&[(0, 5), (10, 20), (30, 31)]),
        &bytes(&[(5, 6), (12, 15), (18, 25), (40, 40)]),
    );
    assert_eq!(joined, bytes(&[(0, 6), (10, 25), (30, 31)]));
}

#[test]
fn what_a_head_has_ends_with_the_disk() {
    let exceptions: Vec<Exception> = [(0, 9), (1, 3), (4, 2), (9, 5), (u64::MAX, 6)]
        .map(|(disk, file)| Exception {
            disk: DiskChunk(disk),
            file: FileChunk(file),
        })
        .into();
    let found = written(&exceptions, ChunkSize::MIN, Bytes(4 * 4096 + 512));
    assert_eq!(found, [Bytes(0)..Bytes(8192), Bytes(16384)..Bytes(16896)]);
}
