use super::*;
use crate::blockio::{MemoryIo, ReadAt};
use crate::format::exceptions::read_all;
use crate::format::facts::{FileSystem, SEAL_RULES};
use crate::format::sealed::Sealed;
use crate::format::trailer::TrailerError;
use crate::format::verity::digest_file;
use crate::units::ChunkSize;
use proptest::prelude::*;

fn facts(chunk: ChunkSize) -> Facts {
    Facts {
        parent: Digest([0xaa; 32]),
        stands_for: Digest::NONE,
        virtual_size: Bytes(1 << 30),
        chunk_size: chunk,
        seal_rules: SEAL_RULES,
        file_system: FileSystem::Ext4,
    }
}

/// A chunk's bytes: every third is zeros.
fn content(chunk: ChunkSize, disk: u64) -> Vec<u8> {
    let byte = if disk.is_multiple_of(3) { 0 } else { disk as u8 | 1 };
    vec![byte; chunk.as_usize()]
}

fn seal(chunk: ChunkSize, disks: &[u64]) -> (SealedDelta, Vec<u8>) {
    let io = MemoryIo::new(vec![0xff; 3_000_000]);
    let mut sealer = Sealer::new(&io, facts(chunk)).unwrap();
    for disk in disks {
        sealer.push(DiskChunk(*disk), &content(chunk, *disk)).unwrap();
    }
    (sealer.finish().unwrap(), io.bytes())
}

fn check_delta(chunk: ChunkSize, disks: &[u64]) {
    let (delta, bytes) = seal(chunk, disks);
    let io = MemoryIo::new(bytes.clone());
    assert_eq!(delta.len, Bytes(bytes.len() as u64));
    assert_eq!(digest_file(&io, &mut |_| {}).unwrap().0, delta.digest);
    let table = Sealed::open(&io).unwrap();
    assert_eq!(table.facts, facts(chunk));
    assert_eq!(table.extents, delta.extents);
    let kernel = read_all(&io).unwrap();
    assert!(!kernel.missing_area, "{} exceptions", disks.len());
    assert_eq!(kernel.exceptions, table.exceptions().collect::<Vec<_>>());
    assert_eq!(kernel.exceptions.iter().map(|e| e.disk.0).collect::<Vec<_>>(), disks);
    for exception in &kernel.exceptions {
        let mut data = vec![1; chunk.as_usize()];
        io.read_at(&mut data, chunk.offset(exception.file).unwrap()).unwrap();
        assert_eq!(data, content(chunk, exception.disk.0));
    }
    let crcs: Vec<u8> = bytes[..table.data_len.0 as usize]
        .chunks(65536)
        .flat_map(|part| crc32fast::hash(part).to_le_bytes())
        .collect();
    assert_eq!(&bytes[table.footer.crcs.offset.0 as usize..][..crcs.len()], crcs);
    let meta = Meta::parse(&delta.meta).unwrap();
    assert_eq!(meta.digest(), delta.digest);
    assert_eq!(
        (meta.file_len, meta.data_len, meta.extents, meta.facts),
        (table.file_len, table.data_len, table.extents, table.facts)
    );
}

#[test]
fn a_sealed_delta_says_the_same_in_its_areas_and_in_its_trailer() {
    for count in [0, 1, 2, 255, 256, 257, 512, 513, 1000] {
        check_delta(ChunkSize::MIN, &(0..count).map(|i| i * 2 + i / 10).collect::<Vec<_>>());
    }
    for kib in [16, 64, 1024] {
        check_delta(ChunkSize::new(Bytes(kib << 10)).unwrap(), &[0, 1, 2, 5, 9, 10]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_set_of_chunks_is_sealed_faithfully(disks in proptest::collection::btree_set(0u64..2000, 0..700)) {
        check_delta(ChunkSize::MIN, &disks.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_bytes_of_a_delta_are_pinned() {
    let (delta, bytes) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
    assert_eq!(bytes.len(), 6 * 4096 + 8192);
    assert_eq!(&bytes[..16], b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    assert_eq!(&bytes[4096..4112], b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    assert_eq!(&bytes[4144..4160], b"\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
    let facts = &bytes[24576..24664];
    assert_eq!(facts[..64], [[0xaa; 32], [0; 32]].concat());
    assert_eq!(facts[64..], *b"\0\0\0\x40\0\0\0\0\0\x10\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0");
    let extents = &bytes[24664..24696];
    assert_eq!(extents, b"\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    let footer = &bytes[28672..];
    assert_eq!(footer[..24], *b"BlkBtDlt\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(footer[24..40], *b"\0\x60\0\0\0\0\0\0\0\x80\0\0\0\0\0\0");
    assert_eq!(footer[40..44], *b"\x01\0\0\0");
    assert_eq!(footer[48..64], *b"\0\x60\0\0\0\0\0\0\x58\0\0\0\0\0\0\0");
    assert_eq!(
        delta.digest.to_string(),
        "f9ef639175025d6bdc8696dc001b20b6f15ac2b03c27122a2eb12594d596f6b4"
    );
    assert_eq!(
        crate::ids::Sha256::of(&delta.meta).to_string(),
        "7813cbed2d06e1ef7acd9ce4f68cd2abbc529e06b49af3dd67eba67e28585728"
    );
}

#[test]
fn bad_pushes_are_refused() {
    let chunk = ChunkSize::MIN;
    let small = Facts {
        virtual_size: Bytes(3 * 4096 + 512),
        ..facts(chunk)
    };
    let mut sealer = Sealer::new(MemoryIo::default(), small).unwrap();
    sealer.push(DiskChunk(1), &[1; 4096]).unwrap();
    assert!(matches!(sealer.push(DiskChunk(1), &[1; 4096]), Err(SealError::Order { .. })));
    assert!(matches!(sealer.push(DiskChunk(0), &[1; 4096]), Err(SealError::Order { .. })));
    assert!(matches!(sealer.push(DiskChunk(2), &[1; 4095]), Err(SealError::Length { .. })));
    assert!(matches!(sealer.push(DiskChunk(3), &[1; 4096]), Err(SealError::Padding { .. })));
    assert!(matches!(sealer.push(DiskChunk(4), &[0; 4096]), Err(SealError::PastEnd { .. })));
    assert!(matches!(
        sealer.push(DiskChunk(u64::MAX), &[0; 4096]),
        Err(SealError::PastEnd { .. })
    ));
    let mut last = [0; 4096];
    last[..512].fill(1);
    sealer.push(DiskChunk(3), &last).unwrap();
    assert_eq!(
        sealer.finish().unwrap().extents,
        [
            Extent {
                disk: DiskChunk(1),
                count: 1
            },
            Extent {
                disk: DiskChunk(3),
                count: 1
            }
        ]
    );
    assert!(
        Sealer::new(
            MemoryIo::default(),
            Facts {
                virtual_size: Bytes(100),
                ..small
            }
        )
        .is_err()
    );
}

#[test]
fn zero_chunks_are_not_written() {
    let io = crate::blockio::record::RecordIo::default();
    let mut sealer = Sealer::new(&io, facts(ChunkSize::MIN)).unwrap();
    for disk in 0..1000 {
        sealer.push(DiskChunk(disk), &[0; 4096]).unwrap();
    }
    sealer.finish().unwrap();
    let written: usize = io
        .log()
        .iter()
        .map(|op| {
            if let crate::blockio::record::Op::Write { data, .. } = op {
                data.len()
            } else {
                0
            }
        })
        .sum();
    assert_eq!(written, (1 + 4) * 4096 + 8192);
}

#[test]
fn every_flipped_bit_of_a_trailer_is_an_error() {
    let (_, bytes) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
    let sections = 24576..24576 + 88 + 32;
    for at in sections.chain(28672..32768).chain(0..12) {
        for bit in [0, 7] {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            // The kernel takes any "valid" word but zero, and so do we.
            let harmless = (4..8).contains(&at) && bad[4..8] != [0; 4];
            assert_eq!(Sealed::open(&MemoryIo::new(bad)).is_ok(), harmless, "byte {at} bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let (delta, bytes) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
    for len in (0..bytes.len()).step_by(512) {
        assert!(Sealed::open(&MemoryIo::new(bytes[..len].to_vec())).is_err(), "{len}");
    }
    for len in 0..delta.meta.len() {
        assert!(Meta::parse(&delta.meta[..len]).is_err(), "{len}");
    }
}

/// A footer with another word, and the CRC that makes it believable.
fn forge(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bad = bytes.to_vec();
    let footer = bytes.len() - 4096;
    bad[footer + at..][..value.len()].copy_from_slice(value);
    let crc = crc32fast::hash(&bad[footer..footer + 4092]);
    bad[footer + 4092..].copy_from_slice(&crc.to_le_bytes());
    bad
}

#[test]
fn unknown_features_blank_files_and_forged_numbers_are_told_apart() {
    let (_, bytes) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
    let open = |bytes: Vec<u8>| Sealed::open(&MemoryIo::new(bytes));
    assert!(matches!(open(forge(&bytes, 8, &[2])), Err(TrailerError::Newer { found: 2 })));
    assert!(matches!(open(forge(&bytes, 12, &[4])), Err(TrailerError::Incompatible { bits: 4 })));
    assert_eq!(open(forge(&bytes, 16, &[8])).unwrap().footer.ro_compat, 8);
    assert!(matches!(open(vec![0; 1 << 16]), Err(TrailerError::Blank)));
    assert!(matches!(open(vec![b'x'; 1 << 16]), Err(TrailerError::NotOurs { .. })));
    assert!(matches!(open(vec![]), Err(TrailerError::Length { len: 0 })));
    for (at, value) in [
        (24, u64::MAX),
        (24, 1 << 60),
        (24, 8192),
        (32, 4096),
        (48, 0),
        (48, u64::MAX),
        (56, u64::MAX),
        (56, 87),
        (40 + 24 + 16, 1 << 60),
        (40 + 24 + 16, 16),
        (40 + 48 + 16, 0),
        (40 + 24, 1),
        (40 + 24, 0),
    ] {
        let result = open(forge(&bytes, at, &value.to_le_bytes()));
        assert!(
            matches!(result, Err(TrailerError::Damaged { .. } | TrailerError::Crc { .. })),
            "{at} {value}: {result:?}"
        );
    }
}

/// A `.meta` with other bytes at `at`, and the CRC that makes it believable.
fn forge_meta(meta: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bad = meta.to_vec();
    bad[at..][..value.len()].copy_from_slice(value);
    let end = bad.len() - 4;
    let crc = crc32fast::hash(&bad[..end]);
    bad[end..].copy_from_slice(&crc.to_le_bytes());
    bad
}

#[test]
fn a_meta_with_forged_numbers_is_refused() {
    let (delta, _) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
    let extent = 56 + 88;
    for (at, value) in [
        (24, u64::MAX),
        (24, 0),
        (24, 1 << 20),
        (24, 6 * 4096),
        (32, 0),
        (32, u64::MAX),
        (40, u64::MAX),
        (40, 1 << 60),
        (40, 1),
        (48, u64::MAX),
        (48, 0),
        (extent, u64::MAX),
        (extent, 8),
        (extent, 4),
        (extent + 8, 0),
        (extent + 8, u64::MAX),
        (extent + 8, 2),
        (extent + 16, 4),
        (extent + 16, 1 << 18),
        (56 + 64, 0),
        (56 + 64, 513),
        (56 + 64, 7 * 4096),
        (56 + 72, 0),
        (56 + 72, 8192),
        (56 + 80, 77),
    ] {
        let result = Meta::parse(&forge_meta(&delta.meta, at, &value.to_le_bytes()));
        assert!(result.is_err(), "{at} {value}");
    }
    let good = Meta::parse(&forge_meta(&delta.meta, 16, &[1])).unwrap();
    assert_eq!(good.digest(), delta.digest);
    assert!(matches!(
        Meta::parse(&forge_meta(&delta.meta, 8, &[9])),
        Err(crate::format::meta::MetaError::Newer { found: 9 })
    ));
    assert!(matches!(
        Meta::parse(&forge_meta(&delta.meta, 12, &[9])),
        Err(crate::format::meta::MetaError::Incompatible { bits: 9 })
    ));
    assert!(matches!(Meta::parse(&vec![0; 500]), Err(crate::format::meta::MetaError::Blank)));
    assert!(matches!(
        Meta::parse(&vec![1; 500]),
        Err(crate::format::meta::MetaError::NotOurs { .. })
    ));
    for at in 0..delta.meta.len() {
        let mut bad = delta.meta.clone();
        bad[at] ^= 0x10;
        assert!(Meta::parse(&bad).is_err(), "{at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_in_a_trailer_or_meta_never_panic(at in 0usize..8192, junk in proptest::collection::vec(any::<u8>(), 1..64)) {
        let (delta, bytes) = seal(ChunkSize::MIN, &[1, 2, 3, 7]);
        let in_footer = at % (4092 - junk.len());
        let _ = Sealed::open(&MemoryIo::new(forge(&bytes, in_footer, &junk)));
        let in_meta = at % (delta.meta.len() - 4 - junk.len());
        let _ = Meta::parse(&forge_meta(&delta.meta, in_meta, &junk));
    }
}

/// Written by the first program that sealed. They must open for ever.
#[test]
fn a_delta_and_a_meta_of_version_1_still_open() {
    let (delta, meta) = (
        include_bytes!("../../../tests/fixtures/v1.delta"),
        include_bytes!("../../../tests/fixtures/v1.meta"),
    );
    let table = Sealed::open(&MemoryIo::new(delta.to_vec())).unwrap();
    assert_eq!(table.facts, facts(ChunkSize::MIN));
    assert_eq!(
        table.extents,
        [
            Extent {
                disk: DiskChunk(1),
                count: 3
            },
            Extent {
                disk: DiskChunk(7),
                count: 1
            }
        ]
    );
    let digest = digest_file(&MemoryIo::new(delta.to_vec()), &mut |_| {}).unwrap().0;
    assert_eq!(Meta::parse(meta).unwrap().digest(), digest);
    assert_eq!(
        digest.to_string(),
        "f9ef639175025d6bdc8696dc001b20b6f15ac2b03c27122a2eb12594d596f6b4"
    );
}
