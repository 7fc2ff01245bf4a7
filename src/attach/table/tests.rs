use super::*;
use crate::blockio::MemoryIo;
use crate::chain::Delta;
use crate::format::exceptions::read_all;
use crate::format::{Extent, file_chunk};
use crate::ids::Digest;
use crate::units::DiskChunk;
use proptest::prelude::*;
use std::collections::HashMap;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn delta(number: usize, chunk_size: u64, virtual_size: u64, extents: &[(u64, u64)]) -> Delta {
    let digest = |number: usize| Digest([number as u8 + 1; 32]);
    let extent = |(start, count): &(u64, u64)| Extent {
        disk: DiskChunk(*start),
        count: *count,
    };
    Delta {
        extents: extents.iter().map(extent).collect(),
        chunk_size: ChunkSize::new(Bytes(chunk_size)).unwrap(),
        virtual_size: Bytes(virtual_size),
        digest: digest(number),
        parent: number.checked_sub(1).map_or(Digest::NONE, digest),
        stands_for: Digest::NONE,
    }
}

fn map_of(deltas: &[Delta]) -> ChainMap {
    let size = deltas.last().map_or(Bytes(5 * MIB), |newest| newest.virtual_size);
    ChainMap::build(deltas, size).unwrap()
}

/// Extents of an upper bound of `limit` chunks, from gaps and lengths; exactly `fill` chunks in all if the disk has room for them.
fn extents(chunks: u64, steps: &[(u64, u64)], fill: Option<u64>) -> Vec<(u64, u64)> {
    let (mut found, mut at, mut total) = (Vec::new(), 0, 0);
    for (gap, len) in steps.iter().cycle().take(4096) {
        at += gap;
        let len = (*len).min(fill.unwrap_or(u64::MAX) - total).min(chunks.saturating_sub(at));
        if len == 0 || (fill.is_none() && found.len() >= steps.len()) {
            break;
        }
        found.push((at, len));
        at += len;
        total += len;
    }
    found
}

prop_compose! {
    fn any_layer()(
        shift in 0u32..9,
        sectors in 1u64..40_000,
        whole in any::<bool>(),
        steps in proptest::collection::vec((0u64..30, prop_oneof![9 => 1u64..9, 1 => 1u64..600]), 1..60),
        full in prop_oneof![3 => Just(0u64), 1 => 1u64..3],
    ) -> (u64, u64, Vec<(u64, u64)>) {
        let chunk = (4 * KIB) << shift;
        let size = if whole { (sectors * SECTOR).next_multiple_of(chunk) } else { sectors * SECTOR };
        let fill = (full > 0).then(|| full * chunk / 16);
        let found = extents(size.div_ceil(chunk), &steps, fill);
        (chunk, size, found)
    }
}

fn any_chain(depth: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Delta>> {
    proptest::collection::vec(any_layer(), depth).prop_map(|deltas| {
        let numbered = deltas.iter().enumerate();
        numbered
            .map(|(number, (chunk, size, extents))| delta(number, *chunk, *size, extents))
            .collect()
    })
}

prop_compose! {
    fn any_rule()(
        linear_targets in 0usize..60, long in 3u32..12, long_hole in 3u32..12, targets in 0usize..100, most_targets in 0usize..200,
    ) -> Rule {
        Rule { linear_targets, long: Bytes(KIB << long), long_hole: Bytes(KIB << long_hole), targets, most_targets }
    }
}

/// Where a stretch of the disk comes from: its first sector, sectors, and delta and sector of its file.
type Stretch = (u64, u64, Option<(usize, u64)>);

fn push(all: &mut Vec<Stretch>, (at, len, from): Stretch) {
    if let Some((before, there, last)) = all.last_mut() {
        assert_eq!(*before + *there, at, "no gap and no overlap");
        let goes_on = match (&last, &from) {
            (None, None) => true,
            (Some((index, offset)), Some((next, then))) => index == next && *offset + *there == *then,
            _ => false,
        };
        if goes_on {
            *there += len;
            return;
        }
    }
    all.push((at, len, from));
}

fn by_map(map: &ChainMap) -> Vec<Stretch> {
    let mut all = Vec::new();
    for piece in map.segments(Bytes::ZERO..map.size()) {
        let from = match piece.source {
            Source::Zero => None,
            Source::Delta { delta, offset } => Some((delta, offset.0 / SECTOR)),
        };
        push(&mut all, (piece.at.0 / SECTOR, piece.len.0 / SECTOR, from));
    }
    all
}

/// The short device as the kernel sees it: the exceptions by disk chunk, each resolved through the concatenation.
fn by_kernel(short: &Short) -> HashMap<u64, (usize, u64)> {
    let file = MemoryIo::default();
    short.metadata.write(&file).unwrap();
    let table = read_all(&file).unwrap();
    assert_eq!(table.header.chunk_size, short.chunk);
    assert_eq!(table.file_len, short.metadata.file_len());
    assert!(!table.missing_area, "an exactly full area has an empty one behind it");
    assert_eq!(table.exceptions.len() as u64, short.metadata.exception_count());
    assert!(table.exceptions.is_sorted_by_key(|exception| exception.disk));
    let sectors = u64::from(short.chunk.sectors());
    let mut found = HashMap::new();
    for exception in table.exceptions {
        let mut at = (exception.file.0 * sectors)
            .checked_sub(short.metadata.file_len().0 / SECTOR)
            .expect("no data in the metadata file");
        let place = short.concat.iter().find(|stretch| match at.checked_sub(stretch.len) {
            Some(behind) => {
                at = behind;
                false
            }
            None => true,
        });
        let stretch = place.expect("the COW device does not end before");
        assert!(at + sectors <= stretch.len, "a chunk lies in one stretch");
        let before = found.insert(exception.disk.0, (stretch.index, stretch.offset + at));
        assert_eq!(before, None, "a chunk for the second time");
    }
    found
}

fn by_table(table: &FlatTable) -> Vec<Stretch> {
    let mut all = Vec::new();
    let exceptions = table.short.as_ref().map(by_kernel).unwrap_or_default();
    assert_eq!(table.short.is_some(), table.pieces.iter().any(|piece| piece.from == From::Short));
    for piece in &table.pieces {
        assert!(piece.len > 0);
        match piece.from {
            From::Zero => push(&mut all, (piece.at, piece.len, None)),
            From::Delta { index, offset } => push(&mut all, (piece.at, piece.len, Some((index, offset)))),
            From::Short => {
                let sectors = u64::from(table.short.as_ref().unwrap().chunk.sectors());
                let mut at = piece.at;
                while at < piece.at + piece.len {
                    let chunk = at / sectors;
                    let end = ((chunk + 1) * sectors).min(piece.at + piece.len);
                    let found = exceptions.get(&chunk);
                    push(
                        &mut all,
                        (at, end - at, found.map(|(index, offset)| (*index, offset + at % sectors))),
                    );
                    at = end;
                }
            }
        }
    }
    let end = all.last().map(|(at, len, _)| at + len);
    assert_eq!(end, Some(table.size.0 / SECTOR), "it covers the disk");
    assert_eq!(all.first().map(|(at, ..)| *at), Some(0));
    all
}

proptest! {
    #[test]
    fn a_table_shows_what_its_map_says(deltas in any_chain(0..12), rule in any_rule()) {
        let map = map_of(&deltas);
        for rule in [rule, Rule::MEASURED] {
            let table = flat_by(&map, &rule);
            prop_assert_eq!(by_table(&table), by_map(&map));
            prop_assert!(table.pieces.windows(2).all(|pair| pair[0].at + pair[0].len == pair[1].at));
        }
    }

    #[test]
    fn no_run_that_is_long_is_in_the_short_device_and_no_short_one_outside(deltas in any_chain(1..12), rule in any_rule()) {
        let map = map_of(&deltas);
        let rule = Rule { linear_targets: 0, targets: usize::MAX, ..rule };
        let table = flat_by(&map, &rule);
        for (at, len, from) in by_map(&map) {
            let inside = table.pieces.iter().any(|piece| piece.from == From::Short && piece.at <= at && at < piece.at + piece.len);
            if from.is_some() && len.is_multiple_of(8) {
                prop_assert_eq!(inside, len * SECTOR < rule.long.0);
            } else if inside {
                prop_assert!(from.is_none() && len * SECTOR < rule.long_hole.0, "only short holes");
            }
        }
        for pair in table.pieces.windows(2) {
            let small = |piece: &Piece| piece.from == From::Short || (piece.from == From::Zero && piece.len * SECTOR < rule.long_hole.0);
            prop_assert!(!(small(&pair[0]) && small(&pair[1])), "two targets where one would do: {:?}", pair);
        }
    }

    #[test]
    fn deep_chains_are_shown_as_they_are(deltas in any_chain(100..129), rule in any_rule()) {
        let map = map_of(&deltas);
        let table = flat_by(&map, &rule);
        prop_assert_eq!(by_table(&table), by_map(&map));
    }
}

/// A chain of one delta with runs of `len` chunks and holes as long between them; one run is 1 MiB.
fn comb(runs: u64, len: u64) -> ChainMap {
    let mut extents: Vec<(u64, u64)> = (0..runs).map(|run| (run * 2 * len, len)).collect();
    extents.push((runs * 2 * len, 256));
    map_of(&[delta(0, 4 * KIB, (runs * 2 * len + 300) * 4 * KIB, &extents)])
}

#[test]
fn few_targets_are_linear_alone() {
    let map = comb(15_900, 1);
    let table = flat(&map);
    // An area ends in the middle of the long run.
    assert_eq!((table.pieces.len(), &table.short), (2 * 15_900 + 3, &None));
    assert_eq!(by_table(&table), by_map(&map));
}

#[test]
fn of_many_runs_the_short_ones_are_gathered() {
    let few = Rule {
        linear_targets: 1_000,
        targets: 1_000,
        most_targets: 3_000,
        ..Rule::MEASURED
    };
    for (rule, runs, kib, want) in [
        (Rule::MEASURED, 17_000, 4, 3..8),
        (few, 1_500, 16, 3..8),
        (few, 1_200, 32, 2_400..2_500),
        (few, 1_600, 32, 3..8),
    ] {
        let map = comb(runs, kib / 4);
        let table = flat_by(&map, &rule);
        let targets = table.targets();
        assert!(want.contains(&targets), "{runs} runs of {kib} KiB: {targets} targets");
        assert_eq!(by_table(&table), by_map(&map));
    }
}

#[test]
fn holes_have_no_targets_where_there_would_be_too_many() {
    for (runs, want) in [(7_000, 18_000..19_000), (20_000, 4_000..5_000)] {
        // Single blocks 1 MiB apart, then runs of 128 KiB, an area's end in some of them.
        let extents: Vec<(u64, u64)> = (0..runs + 2_000).map(|run| (run * 256, if run < runs { 1 } else { 32 })).collect();
        let map = map_of(&[delta(0, 4 * KIB, (runs + 2_000) * MIB, &extents)]);
        let rule = Rule {
            linear_targets: 0,
            long_hole: Bytes(512 * KIB),
            ..Rule::MEASURED
        };
        let table = flat_by(&map, &rule);
        assert!(want.contains(&table.targets()), "{runs} blocks: {} targets", table.targets());
        assert_eq!(by_table(&table), by_map(&map));
    }
}

#[test]
fn a_chain_without_data_is_one_target() {
    let zero = |size: u64| FlatTable {
        size: Bytes(size),
        pieces: vec![Piece {
            at: 0,
            len: size / SECTOR,
            from: From::Zero,
        }],
        short: None,
    };
    assert_eq!(flat(&map_of(&[])), zero(5 * MIB));
    assert_eq!(flat(&map_of(&[delta(0, 64 * KIB, 512, &[])])), zero(512));
}

#[test]
fn chunks_are_as_large_as_the_short_runs_allow() {
    let rule = Rule {
        linear_targets: 0,
        long: Bytes(256 * KIB),
        ..Rule::MEASURED
    };
    let chunk = |deltas: &[Delta]| flat_by(&map_of(deltas), &rule).short.map(|short| short.chunk.bytes().0 / KIB);
    let base = delta(0, 64 * KIB, 8 * MIB, &[(0, 1), (10, 90)]);
    assert_eq!(chunk(std::slice::from_ref(&base)), Some(64));
    // The long run of the base is cut by one block, the short one is not.
    let above = |at| delta(1, 4 * KIB, 8 * MIB, &[(at, 1)]);
    assert_eq!(chunk(&[base.clone(), above(16 * 50)]), Some(4));
    assert_eq!(chunk(&[base, delta(1, 16 * KIB, 8 * MIB, &[(4, 3)])]), Some(16));
}

#[test]
fn the_end_that_is_no_whole_block_is_linear() {
    // 40 KiB and three sectors; the last chunk has data behind the end of the disk.
    let size = 40 * KIB + 3 * SECTOR;
    let rule = Rule {
        linear_targets: 0,
        ..Rule::MEASURED
    };
    let table = flat_by(&map_of(&[delta(0, 4 * KIB, size, &[(0, 1), (4, 1), (10, 1)])]), &rule);
    let end = Piece {
        at: 80,
        len: 3,
        from: From::Delta {
            index: 0,
            offset: file_chunk(ChunkSize::MIN, 2).0 * 8,
        },
    };
    assert_eq!(table.pieces.last(), Some(&end));
    assert_eq!(table.short.unwrap().metadata.exception_count(), 2);
}

#[test]
fn an_exactly_full_area_of_metadata_has_an_empty_one_behind_it() {
    let rule = Rule {
        linear_targets: 0,
        ..Rule::MEASURED
    };
    for (runs, want_chunks) in [(255, 2), (256, 259), (257, 259), (512, 516)] {
        let extents: Vec<(u64, u64)> = (0..runs).map(|run| (run * 2, 1)).collect();
        let map = map_of(&[delta(0, 4 * KIB, 8 * MIB, &extents)]);
        let table = flat_by(&map, &rule);
        assert_eq!(by_table(&table), by_map(&map));
        let metadata = table.short.unwrap().metadata;
        assert_eq!(metadata.file_len(), Bytes(want_chunks * 4 * KIB), "{runs}");
        assert_eq!(metadata.exceptions().count() as u64, runs);
    }
}
