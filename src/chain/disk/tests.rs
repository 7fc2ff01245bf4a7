use super::*;
use crate::blockio::MemoryIo;
use crate::blockio::failing::FailingIo;
use crate::blockio::record::{Op, RecordIo};
use crate::chain::ChainMap;
use crate::chain::tests::{Dice, chain_of};
use crate::format::head::HeadBounds;
use crate::units::ChunkSize;

const MIB: usize = 1 << 20;

fn empty(size: usize) -> Chain {
    Chain::new(ChainMap::build(&[], Bytes(size as u64)).unwrap(), Vec::new()).unwrap()
}

/// A chain that is full of ones up to `size`, with a head.
fn over_ones<F: WriteAt>(io: F, size: usize, clip: usize) -> Disk<F> {
    let ones = vec![1; size];
    let chunks = ChunkSize::MIN.count(Bytes(size as u64));
    let chain = chain_of(Bytes(size as u64), ChunkSize::MIN, &[(0, chunks)], &ones);
    Disk::with_head(chain, Head::create(io, ChunkSize::HEAD).unwrap(), Bytes(clip as u64))
}

fn bytes(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut all = vec![9; disk.size().0 as usize];
    disk.read(Bytes::ZERO, &mut all).unwrap();
    all
}

fn kind<T>(done: io::Result<T>) -> io::ErrorKind {
    done.err().map(|error| error.kind()).expect("an error")
}

#[test]
fn a_mebibyte_written_in_order_is_one_write() {
    let disk = Disk::with_head(
        empty(4 * MIB),
        Head::create(RecordIo::default(), ChunkSize::HEAD).unwrap(),
        Bytes(0),
    );
    let before = disk.head().unwrap().io().log().len();
    disk.write(Bytes(MIB as u64), &vec![5; MIB]).unwrap();
    disk.write(Bytes(MIB as u64), &vec![6; MIB]).unwrap();
    let log = disk.head().unwrap().io().log();
    let lens: Vec<usize> = log[before..]
        .iter()
        .map(|op| if let Op::Write { data, .. } = op { data.len() } else { 0 })
        .collect();
    assert_eq!(lens, [MIB, MIB]);
}

#[test]
fn a_first_write_keeps_the_rest_of_its_chunk() {
    let disk = over_ones(MemoryIo::default(), 16384 * 2 + 512, usize::MAX);
    disk.write(Bytes(20_000), &[2; 100]).unwrap();
    disk.write(Bytes(16384 * 2), &[3; 512]).unwrap();
    let mut want = vec![1; 16384 * 2 + 512];
    want[20_000..20_100].fill(2);
    want[16384 * 2..].fill(3);
    assert_eq!(bytes(&disk), want);
}

#[test]
fn nothing_of_the_chain_shows_behind_the_smallest_size() {
    let (size, clip) = (16384 * 4, 16384 * 2 + 1024);
    let disk = over_ones(MemoryIo::default(), size, clip);
    let mut want = vec![1; size];
    want[clip..].fill(0);
    assert_eq!(bytes(&disk), want);
    // Written to on both sides of the border, in the chunk that it cuts.
    disk.write(Bytes(clip as u64 + 2048), &[2; 512]).unwrap();
    disk.write(Bytes(clip as u64 - 512), &[3; 512]).unwrap();
    want[clip + 2048..clip + 2560].fill(2);
    want[clip - 512..clip].fill(3);
    assert_eq!(bytes(&disk), want);
}

#[test]
fn zeros_over_a_hole_take_no_space_and_zeros_over_data_hide_it() {
    let disk = Disk::with_head(
        empty(4 * MIB),
        Head::create(RecordIo::default(), ChunkSize::HEAD).unwrap(),
        Bytes(u64::MAX),
    );
    let before = disk.head().unwrap().io().log().len();
    disk.zero(Bytes(100), Bytes(3 * MIB as u64)).unwrap();
    assert_eq!(disk.head().unwrap().io().log().len(), before);

    let size = 16384 * 5 + 512;
    let disk = over_ones(MemoryIo::default(), size, usize::MAX);
    let mut want = vec![1; size];
    for (at, len) in [(5, 10), (16384, 2 * 16384), (16384 * 4 - 512, 600), (16384 * 5, 512)] {
        disk.zero(Bytes(at as u64), Bytes(len as u64)).unwrap();
        want[at..at + len].fill(0);
        assert_eq!(bytes(&disk), want, "{at}, {len}");
    }
    disk.flush().unwrap();
    let head = Head::open(MemoryIo::new(disk.head().unwrap().io().bytes())).unwrap();
    let again = Disk { head: Some(head), ..disk };
    assert_eq!(bytes(&again), want);
}

#[test]
fn a_discard_gives_back_what_the_head_had() {
    let disk = over_ones(RecordIo::default(), 4 * MIB, usize::MAX);
    disk.write(Bytes(0), &vec![2; MIB]).unwrap();
    disk.zero(Bytes(0), Bytes(MIB as u64)).unwrap();
    let log = disk.head().unwrap().io().log();
    assert_eq!(
        log.last(),
        Some(&Op::Punch {
            at: Bytes(2 * 16384),
            len: Bytes(MIB as u64)
        })
    );
    assert!(bytes(&disk)[..MIB].iter().all(|byte| *byte == 0));
}

#[test]
fn a_flush_after_overwrites_alone_still_syncs() {
    let disk = over_ones(RecordIo::default(), MIB, usize::MAX);
    disk.write(Bytes(0), &[2; 512]).unwrap();
    disk.flush().unwrap();
    disk.write(Bytes(0), &[3; 512]).unwrap();
    disk.flush().unwrap();
    let log = disk.head().unwrap().io().log();
    assert!(matches!(&log[log.len() - 2..], [Op::Write { .. }, Op::Sync]));
}

#[test]
fn a_sealed_disk_refuses_writes_and_a_range_outside_is_refused() {
    let sealed: Disk<MemoryIo> = Disk::sealed(empty(MIB));
    let shut = over_ones(MemoryIo::default(), MIB, usize::MAX).into_read_only();
    for disk in [&sealed, &shut] {
        assert!(disk.read_only());
        assert_eq!(kind(disk.write(Bytes(0), &[1])), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(disk.zero(Bytes(0), Bytes(1))), io::ErrorKind::PermissionDenied);
        disk.flush().unwrap();
    }
    let disk = over_ones(MemoryIo::default(), MIB, usize::MAX);
    for (at, len) in [(MIB as u64, 1), (MIB as u64 - 1, 2), (u64::MAX, 1), (u64::MAX - 10, 100)] {
        let mut buf = vec![0; len];
        assert_eq!(kind(disk.read(Bytes(at), &mut buf)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(disk.write(Bytes(at), &buf)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(disk.zero(Bytes(at), Bytes(len as u64))), io::ErrorKind::InvalidInput);
    }
    assert_eq!(kind(disk.zero(Bytes(10), Bytes(u64::MAX))), io::ErrorKind::InvalidInput);
}

#[test]
fn threads_that_meet_in_a_chunk_lose_nothing() {
    let disk = over_ones(MemoryIo::default(), MIB, usize::MAX);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut dice = Dice(thread);
                let mut sectors: Vec<u64> = (0..MIB as u64 / 512).filter(|sector| sector % 8 == thread).collect();
                while !sectors.is_empty() {
                    let sector = sectors.swap_remove(dice.below(sectors.len() as u64) as usize);
                    let byte = 10 + thread as u8;
                    match dice.below(8) {
                        0 => disk.zero(Bytes(sector * 512), Bytes(512)).unwrap(),
                        _ => disk.write(Bytes(sector * 512), &[byte; 512]).unwrap(),
                    }
                    if dice.below(50) == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    for (sector, found) in bytes(&disk).chunks(512).enumerate() {
        let want = 10 + (sector % 8) as u8;
        assert!(
            found.iter().all(|byte| *byte == want) || found.iter().all(|byte| *byte == 0),
            "sector {sector}"
        );
    }
}

#[test]
fn a_full_host_fails_the_write_and_keeps_what_was_there() {
    let disk = over_ones(FailingIo::default(), MIB, usize::MAX);
    disk.write(Bytes(0), &[2; 16384]).unwrap();
    disk.head().unwrap().io().set_full(true);
    assert_eq!(kind(disk.write(Bytes(16384), &[3; 40_000])), io::ErrorKind::StorageFull);
    assert_eq!(kind(disk.zero(Bytes(65536), Bytes(16384))), io::ErrorKind::StorageFull);
    let mut want = vec![1; MIB];
    want[..16384].fill(2);
    assert_eq!(bytes(&disk), want);
    disk.head().unwrap().io().set_full(false);
    disk.write(Bytes(16384), &[3; 40_000]).unwrap();
    disk.flush().unwrap();
    want[16384..16384 + 40_000].fill(3);
    assert_eq!(bytes(&disk), want);
}

#[test]
fn a_head_at_its_limit_refuses_new_chunks_and_keeps_every_byte() {
    let mut dice = Dice(5);
    for (limit, reserve) in [(3, false), (10, true), (30, false), (64, true)] {
        let bounds = |limit: u64| HeadBounds {
            limit_bytes: Some(Bytes(limit * 16384)),
            reserve,
        };
        let open = |bytes, limit| {
            let head = Head::open_within(MemoryIo::new(bytes), Bytes(MIB as u64), bounds(limit)).unwrap();
            let sealed = over_ones(MemoryIo::default(), MIB, usize::MAX);
            Disk::with_head(sealed.chain, head, Bytes(u64::MAX))
        };
        let mut disk = open(Head::create(MemoryIo::default(), ChunkSize::HEAD).unwrap().io().bytes(), limit);
        let mut want = vec![1; MIB];
        let mut refused = 0;
        for round in 0..600 {
            let at = dice.below(MIB as u64 - 1);
            let most = [600, 20_000, 300_000][dice.below(3) as usize];
            let len = (1 + dice.below(most)).min(MIB as u64 - at);
            let (range, byte) = (at as usize..(at + len) as usize, 2 + (round % 250) as u8);
            let (done, byte) = match dice.below(4) {
                0 => (disk.zero(Bytes(at), Bytes(len)), 0),
                _ => (disk.write(Bytes(at), &vec![byte; len as usize]), byte),
            };
            match done {
                Ok(()) => want[range].fill(byte),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                    refused += 1;
                    // Done in part, and nowhere else.
                    let found = bytes(&disk);
                    let in_part = found[range.clone()]
                        .iter()
                        .zip(&want[range.clone()])
                        .all(|(f, w)| f == w || *f == byte);
                    assert!(in_part, "round {round}");
                    want[range.clone()].copy_from_slice(&found[range]);
                }
            }
            if round % 50 == 0 {
                assert!(bytes(&disk) == want, "round {round}");
                disk.flush().unwrap();
                let file = disk.head().unwrap().io().bytes();
                assert!(file.len() as u64 <= limit * 16384);
                disk = open(file, limit);
            }
        }
        assert!(bytes(&disk) == want && refused > 0, "{refused} refused");
        disk.flush().unwrap();
        let disk = open(disk.head().unwrap().io().bytes(), 80);
        disk.write(Bytes::ZERO, &vec![7; MIB]).unwrap();
        disk.flush().unwrap();
    }
}
