use super::*;
use crate::blockio::MemoryIo;
use crate::format::facts::{Facts, FileSystem};
use crate::format::meta::Meta;
use crate::format::seal::{SealedDelta, Sealer};
use crate::units::DiskChunk;
use proptest::prelude::*;

const CHUNK: ChunkSize = ChunkSize::MIN;

fn exception(disk: u64, file: u64) -> Exception {
    Exception {
        disk: DiskChunk(disk),
        file: FileChunk(file),
    }
}

/// A head made by hand: header, areas as given, and room for `chunks` chunks.
fn head(chunks: u64, areas: &[&[Exception]]) -> Vec<u8> {
    let mut bytes = vec![0; (chunks * 4096) as usize];
    bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    for (area, exceptions) in areas.iter().enumerate() {
        let at = (1 + 257 * area) * 4096;
        for (slot, exception) in exceptions.iter().enumerate() {
            bytes[at + slot * 16..][..8].copy_from_slice(&exception.disk.0.to_le_bytes());
            bytes[at + slot * 16 + 8..][..8].copy_from_slice(&exception.file.0.to_le_bytes());
        }
    }
    bytes
}

fn sealed(count: u64) -> (SealedDelta, Vec<u8>) {
    let facts = Facts {
        parent: Digest::NONE,
        stands_for: Digest::NONE,
        virtual_size: Bytes(1 << 30),
        chunk_size: CHUNK,
        seal_rules: 1,
        file_system: FileSystem::None,
    };
    let io = MemoryIo::default();
    let mut sealer = Sealer::new(&io, facts).unwrap();
    for disk in 0..count {
        sealer.push(DiskChunk(disk * 3), &[disk as u8; 4096]).unwrap();
    }
    (sealer.finish().unwrap(), io.bytes())
}

fn findings(bytes: &[u8], kind: Kind) -> Vec<Finding> {
    let mut all = Vec::new();
    check(&MemoryIo::new(bytes.to_vec()), kind, &mut |finding| all.push(finding));
    all
}

type Place = (FindingKind, Option<u64>, Option<u64>, Option<u64>);

fn places(findings: &[Finding]) -> Vec<Place> {
    findings
        .iter()
        .map(|f| (f.kind, f.area, f.exception, f.offset.map(|at| at.0)))
        .collect()
}

fn edit(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bad = bytes.to_vec();
    bad[at..][..value.len()].copy_from_slice(value);
    bad
}

#[test]
fn good_deltas_have_no_findings() {
    assert_eq!(findings(&head(2, &[]), Kind::Head), []);
    assert_eq!(findings(&head(5, &[&[exception(9, 4), exception(1, 2)]]), Kind::Head), []);
    for count in [0, 1, 255, 256, 257, 600] {
        let (delta, bytes) = sealed(count);
        assert_eq!(findings(&bytes, Kind::Sealed), [], "{count}");
        let units = Meta::parse(&delta.meta).unwrap().units;
        let want = Expected {
            digest: delta.digest,
            units: Some(&units),
        };
        let mut read = 0;
        check_deep(&MemoryIo::new(bytes), want, &mut |bytes| read += bytes.0, &mut |finding| {
            panic!("{finding}")
        });
        assert_eq!(read, delta.len.0);
    }
}

#[test]
fn each_kind_of_damage_to_a_head_is_found_in_its_place() {
    use FindingKind::*;
    let good = head(6, &[&[exception(9, 4), exception(1, 2)]]);
    let full: Vec<Exception> = (0..256).map(|i| exception(i, i + 2)).collect();
    let second = 258 * 4096;
    let cases: Vec<(&str, Vec<u8>, Vec<Place>)> = vec![
        ("blank", vec![0; 8192], vec![(Blank, None, None, Some(0))]),
        ("empty", vec![], vec![(BadHeader, None, None, Some(0))]),
        ("not ours", edit(&good, 0, b"LUKS"), vec![(NotOurs, None, None, Some(0))]),
        ("newer", edit(&good, 8, &[2]), vec![(Newer, None, None, Some(8))]),
        ("version 0", edit(&good, 8, &[0]), vec![(BadHeader, None, None, Some(8))]),
        ("chunk size", edit(&good, 12, &[9]), vec![(BadHeader, None, None, Some(12))]),
        ("invalidated", edit(&good, 4, &[0]), vec![(Invalidated, None, None, Some(4))]),
        (
            "duplicate",
            head(6, &[&[exception(9, 4), exception(1, 2), exception(9, 5)]]),
            vec![(Duplicate, Some(0), Some(2), Some(4128))],
        ),
        (
            "shared",
            head(6, &[&[exception(9, 4), exception(1, 4)]]),
            vec![(Shared, Some(0), Some(1), Some(4112))],
        ),
        (
            "in the header",
            edit(&good, 4096 + 24, &[1]),
            vec![(MetadataSlot, Some(0), Some(1), Some(4112))],
        ),
        (
            "past the end",
            head(6, &[&[exception(9, 4), exception(1, 6)]]),
            vec![(PastEnd, Some(0), Some(1), Some(4112))],
        ),
        (
            "far past the end",
            head(6, &[&[exception(9, 4), exception(1, u64::MAX)]]),
            vec![(PastEnd, Some(0), Some(1), Some(4112))],
        ),
        (
            "in an area",
            head(300, &[&full, &[exception(1000, 260), exception(2000, 258)]]),
            vec![(MetadataSlot, Some(1), Some(257), Some(second + 16))],
        ),
        (
            "no area behind a full one",
            head(258, &[&full]),
            vec![(MissingArea, Some(1), None, Some(second))],
        ),
        (
            "half an area behind a full one",
            head(259, &[&full])[..258 * 4096 + 512].to_vec(),
            vec![(MissingArea, Some(1), None, Some(second))],
        ),
    ];
    for (name, bytes, want) in cases {
        assert_eq!(places(&findings(&bytes, Kind::Head)), want, "{name}");
    }
}

#[test]
fn each_kind_of_damage_to_a_sealed_delta_is_found_in_its_place() {
    use FindingKind::*;
    let (_, good) = sealed(300);
    let footer = good.len() - 4096;
    let newer = |at: usize| {
        let mut bad = edit(&good, footer + at, &[2]);
        let crc = crc32fast::hash(&bad[footer..footer + 4092]);
        bad[footer + 4092..].copy_from_slice(&crc.to_le_bytes());
        bad
    };
    let at = |offset: usize| Some(offset as u64);
    let second = 258 * 4096;
    let swapped = [&good[4112..4128], &good[4096..4112]].concat();
    let cases: Vec<(&str, Vec<u8>, Vec<Place>)> = vec![
        (
            "lost trailer",
            good[..footer - 4096].to_vec(),
            vec![(NotOurs, None, None, at(footer - 8192))],
        ),
        (
            "blank footer",
            edit(&good, footer, &[0; 4096]),
            vec![(Blank, None, None, at(footer))],
        ),
        ("newer trailer", newer(8), vec![(Newer, None, None, at(footer + 8))]),
        ("incompatible trailer", newer(12), vec![(Newer, None, None, at(footer + 12))]),
        (
            "damaged footer",
            edit(&good, footer + 100, &[0xff]),
            vec![(BadTrailer, None, None, at(footer))],
        ),
        (
            "truncated",
            good[..good.len() - 1].to_vec(),
            vec![(BadTrailer, None, None, at(footer - 1))],
        ),
        ("invalidated", edit(&good, 4, &[0]), vec![(Invalidated, None, None, Some(4))]),
        (
            "behind the header",
            edit(&good, 100, &[7]),
            vec![(BadHeader, None, None, Some(100))],
        ),
        (
            "unsorted",
            edit(&good, 4096, &swapped),
            vec![
                (AreaDiffers, Some(0), Some(0), Some(4096)),
                (Unsorted, Some(0), Some(1), Some(4112)),
            ],
        ),
        (
            "disk chunk of another",
            edit(&good, second, &[0xfd, 2]),
            vec![
                (AreaDiffers, Some(1), Some(256), at(second)),
                (Duplicate, Some(1), Some(256), at(second)),
            ],
        ),
        (
            "behind the last exception",
            edit(&good, second + 44 * 16, &[1]),
            vec![(AreaDiffers, Some(1), Some(300), at(second + 44 * 16))],
        ),
        (
            "file chunk in the trailer",
            edit(&good, second + 43 * 16 + 8, &[0x2f, 1]),
            vec![
                (AreaDiffers, Some(1), Some(299), at(second + 43 * 16)),
                (PastEnd, Some(1), Some(299), at(second + 43 * 16)),
            ],
        ),
    ];
    for (name, bytes, want) in cases {
        assert_eq!(places(&findings(&bytes, Kind::Sealed)), want, "{name}");
    }
}

#[test]
fn a_flipped_bit_of_data_is_found_by_crc_and_by_digest() {
    let (delta, good) = sealed(300);
    let units = Meta::parse(&delta.meta).unwrap().units;
    let bad = MemoryIo::new(edit(&good, 700_000, &[0xee]));
    for units in [Some(&units[..]), None, Some(&[[1; 32]; 3][..])] {
        let mut all = Vec::new();
        check_deep(
            &bad,
            Expected {
                digest: delta.digest,
                units,
            },
            &mut |_| {},
            &mut |finding| all.push(finding),
        );
        let mut want = vec![(FindingKind::Crc, None, None, Some(655_360))];
        if units.is_some_and(|units| units[0] != [1; 32]) {
            want.push((FindingKind::Digest, None, None, Some(UNIT)));
        }
        want.push((FindingKind::Digest, None, None, None));
        assert_eq!(places(&all), want);
    }
}

#[test]
fn a_finding_prints_where_it_is() {
    let bytes = head(6, &[&[exception(9, 4), exception(1, 6)]]);
    assert_eq!(
        findings(&bytes, Kind::Head)[0].to_string(),
        "area 0, exception 1, byte 4112: data of disk chunk 1 in file chunk 6, past the end at byte 24576"
    );
}

proptest! {
    #[test]
    fn any_damage_to_a_sealed_delta_is_found_and_never_a_panic(at in 0usize..1_245_184, bit in 0u8..8) {
        let (delta, mut bytes) = sealed(300);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let mut found = false;
        check_deep(&MemoryIo::new(bytes), Expected { digest: delta.digest, units: None }, &mut |_| {}, &mut |_| found = true);
        prop_assert!(found);
    }

    #[test]
    fn any_areas_are_checked_without_a_panic(junk in proptest::collection::vec((0u64..8, any::<u64>(), any::<bool>()), 0..256)) {
        let junk: Vec<Exception> = junk.into_iter().map(|(disk, file, small)| exception(disk, if small { file % 9 } else { file })).collect();
        for kind in [Kind::Head, Kind::Sealed] {
            findings(&head(7, &[&junk]), kind);
        }
    }
}
