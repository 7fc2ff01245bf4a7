use super::*;
use crate::blockio::MemoryIo;
use crate::blockio::ReadAt;
use crate::blockio::failing::FailingIo;

const CHUNK: ChunkSize = ChunkSize::MIN;

/// Writes a chunk of `byte`s to the head as a device would.
fn put<F: WriteAt>(head: &Head<F>, disk: u64, byte: u8) {
    let file = head.allocate().unwrap();
    head.io().write_at(&[byte; 4096], CHUNK.offset(file).unwrap()).unwrap();
    assert!(head.record(DiskChunk(disk), file));
}

fn first_byte<F: WriteAt>(head: &Head<F>, disk: u64) -> Option<u8> {
    let at = CHUNK.offset(head.get(DiskChunk(disk))?).unwrap();
    let mut byte = [0];
    head.io().read_at(&mut byte, at).unwrap();
    Some(byte[0])
}

#[test]
fn a_new_head_is_a_header_and_an_empty_area() {
    let head = Head::create(MemoryIo::new(vec![9; 99_999]), CHUNK).unwrap();
    let bytes = head.io().bytes();
    assert_eq!(&bytes[..16], b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    assert_eq!(bytes.len(), 8192);
    assert!(bytes[16..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    for count in [0, 1, 255, 256, 257, 511, 512, 513, 1024] {
        let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
        for i in 0..count {
            put(&head, i * 7 % 5000, i as u8);
            if i % 100 == 0 {
                head.commit().unwrap();
            }
        }
        head.commit().unwrap();
        let again = Head::open(MemoryIo::new(head.io().bytes())).unwrap();
        assert_eq!(again.exceptions(), head.exceptions());
        assert_eq!(again.io().bytes(), head.io().bytes(), "{count}: nothing to tidy after a commit");
        for i in 0..count {
            assert_eq!(first_byte(&again, i * 7 % 5000), Some(i as u8));
        }
        assert_eq!(again.allocate(), head.allocate());
    }
}

#[test]
fn what_was_only_recorded_is_gone_and_its_chunk_reads_as_zeros() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    put(&head, 1, 1);
    head.commit().unwrap();
    put(&head, 2, 2);
    let again = Head::open(MemoryIo::new(head.io().bytes())).unwrap();
    assert_eq!((first_byte(&again, 1), first_byte(&again, 2)), (Some(1), None));
    let fresh = again.allocate().unwrap();
    assert_eq!(again.io().size().unwrap(), CHUNK.offset(fresh).unwrap());
}

#[test]
fn a_second_record_of_a_chunk_is_refused() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    let (a, b) = (head.allocate().unwrap(), head.allocate().unwrap());
    assert!(head.record(DiskChunk(5), a));
    assert!(!head.record(DiskChunk(5), b));
    assert_eq!(head.get(DiskChunk(5)), Some(a));
}

#[test]
fn a_head_the_kernel_invalidated_is_not_opened() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    head.io().write_at(&[0], Bytes(4)).unwrap();
    assert!(matches!(Head::open(MemoryIo::new(head.io().bytes())), Err(HeadError::Invalidated)));
}

#[test]
fn a_commit_that_had_no_room_can_be_repeated() {
    let head = Head::create(FailingIo::default(), CHUNK).unwrap();
    (0..300).for_each(|disk| put(&head, disk, 1));
    head.io().set_full(true);
    assert_eq!(head.commit().unwrap_err().kind(), io::ErrorKind::StorageFull);
    head.io().set_full(false);
    (300..600).for_each(|disk| put(&head, disk, 2));
    head.commit().unwrap();
    let again = Head::open(MemoryIo::new(head.io().bytes())).unwrap();
    assert_eq!(again.exceptions(), head.exceptions());
    assert_eq!(again.exceptions().len(), 600);
}

#[test]
fn after_a_failed_sync_no_commit_claims_success() {
    let head = Head::create(FailingIo::default(), CHUNK).unwrap();
    put(&head, 1, 1);
    head.io().set_broken(true);
    assert!(head.commit().is_err());
    head.io().set_broken(false);
    assert!(head.commit().is_err());
    assert_eq!(first_byte(&head, 1), Some(1), "it can still be read");
}

#[test]
fn threads_never_share_a_chunk_and_all_they_committed_is_there() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let head = &head;
            scope.spawn(move || {
                for i in 0..300 {
                    put(head, thread * 1000 + i, thread as u8 + 1);
                    if i % 50 == 7 {
                        head.commit().unwrap();
                    }
                }
                head.commit().unwrap();
            });
        }
    });
    let again = Head::open(MemoryIo::new(head.io().bytes())).unwrap();
    assert_eq!(again.exceptions(), head.exceptions());
    for thread in 0..4 {
        for i in 0..300 {
            assert_eq!(first_byte(&again, thread * 1000 + i), Some(thread as u8 + 1));
        }
    }
}

fn edited(head: &Head<MemoryIo>, at: usize, value: u64) -> MemoryIo {
    let mut bytes = head.io().bytes();
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    MemoryIo::new(bytes)
}

#[test]
fn a_head_that_contradicts_itself_is_not_opened() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    (0..3).for_each(|disk| put(&head, disk, 1));
    head.commit().unwrap();
    let second = 4096 + 16;
    assert!(matches!(
        Head::open(edited(&head, second, 0)),
        Err(HeadError::Duplicate { index: 1, .. })
    ));
    assert!(matches!(
        Head::open(edited(&head, second + 8, 1)),
        Err(HeadError::Metadata { index: 1, .. })
    ));
    for file in [5, 1 << 52, u64::MAX] {
        assert!(
            matches!(
                Head::open(edited(&head, second + 8, file)),
                Err(HeadError::PastEnd { index: 1, .. })
            ),
            "{file}"
        );
    }
    assert!(matches!(Head::open(MemoryIo::default()), Err(HeadError::Read(_))));
}

#[test]
fn the_area_that_a_full_one_lacks_is_made_on_opening() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    (0..256).for_each(|disk| put(&head, disk, 1));
    head.commit().unwrap();
    let bytes = head.io().bytes();
    assert_eq!(bytes.len(), 259 * 4096);
    // Half of the area is there, with something in it.
    let mut cut = bytes[..258 * 4096 + 512].to_vec();
    cut[258 * 4096..].fill(7);
    let again = Head::open(MemoryIo::new(cut)).unwrap();
    assert_eq!(again.io().bytes(), bytes);
    assert_eq!(again.allocate(), Some(FileChunk(259)));
}

#[test]
fn a_head_opened_to_read_is_not_changed() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    put(&head, 1, 1);
    let bytes = head.io().bytes();
    let again = Head::open_read_only(MemoryIo::new(bytes.clone())).unwrap();
    assert_eq!(again.io().bytes(), bytes);
}

fn within(bytes: Vec<u8>, disk: u64, limit: Option<u64>, reserve: bool) -> Head<MemoryIo> {
    let bounds = HeadBounds {
        limit_bytes: limit.map(|chunks| Bytes(chunks * 4096)),
        reserve,
    };
    Head::open_within(MemoryIo::new(bytes), Bytes(disk * 4096), bounds).unwrap()
}

#[test]
fn a_head_at_its_limit_keeps_all_and_goes_on_with_a_larger_one() {
    for limit in [3, 4, 257, 258, 259, 260, 515, 516] {
        let head = within(
            Head::create(MemoryIo::default(), CHUNK).unwrap().io().bytes(),
            9999,
            Some(limit),
            false,
        );
        let mut disk = 0;
        while let Some(file) = head.allocate() {
            head.io().write_at(&[7; 4096], CHUNK.offset(file).unwrap()).unwrap();
            assert!(head.record(DiskChunk(disk), file));
            disk += 1;
            if disk % 50 == 0 {
                head.commit().unwrap();
            }
        }
        assert_eq!(head.allocate(), None, "and it stays full");
        head.commit().unwrap();
        let len = head.io().size().unwrap();
        assert!(len <= usable_len(Bytes(limit * 4096), CHUNK), "{limit}: {len:?}");
        let again = within(head.io().bytes(), 9999, Some(limit), false);
        assert_eq!((again.exceptions().len() as u64, again.allocate()), (disk, None), "{limit}");
        let more = within(head.io().bytes(), 9999, Some(limit + 3), false);
        assert_eq!(more.exceptions().len() as u64, disk);
        put(&more, 5000, 1);
        more.commit().unwrap();
        assert_eq!(
            Head::open(MemoryIo::new(more.io().bytes())).unwrap().exceptions().len() as u64,
            disk + 1
        );
    }
}

#[test]
fn a_head_of_full_length_has_room_for_all_of_the_disk_whatever_was_lost() {
    for (disk, lost, behind) in [(1, 0, 0), (256, 0, 0), (256, 3, 2), (300, 260, 0), (511, 0, 1), (600, 1, 5)] {
        let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
        put(&head, 0, 1);
        // Handed out, and never named; and named, for chunks that the disk has no more.
        (0..lost).for_each(|_| assert!(head.allocate().is_some()));
        (0..behind).for_each(|index| put(&head, disk + index, 1));
        if lost > 0 && behind == 0 {
            put(&head, disk - 1, 1);
        }
        head.commit().unwrap();
        let full = head.full_len(Bytes(disk * 4096), None).unwrap();
        assert!(lost + behind > 0 || full == full_len(Bytes(disk * 4096), CHUNK).unwrap());
        let head = within(head.io().bytes(), disk, Some(full.0 / 4096), true);
        assert_eq!(head.io().size().unwrap(), full, "all of it is reserved");
        for chunk in 0..disk {
            if head.get(DiskChunk(chunk)).is_none() {
                put(&head, chunk, 1);
            }
        }
        head.commit().unwrap();
        assert_eq!(head.io().size().unwrap(), full, "and it was enough");
        assert_eq!(head.allocate(), None, "and not more");
    }
}

/// A file that notices when its space is given back.
#[derive(Default)]
struct Kept(MemoryIo);

impl ReadAt for Kept {
    fn read_at(&self, buf: &mut [u8], at: Bytes) -> io::Result<()> {
        self.0.read_at(buf, at)
    }
    fn size(&self) -> io::Result<Bytes> {
        self.0.size()
    }
}

impl WriteAt for Kept {
    fn write_at(&self, data: &[u8], at: Bytes) -> io::Result<()> {
        self.0.write_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, len: Bytes) -> io::Result<()> {
        assert!(len >= self.size()?, "cut to {len}");
        self.0.set_len(len)
    }
    fn punch(&self, at: Bytes, len: Bytes) -> io::Result<()> {
        panic!("{len} punched at {at}");
    }
}

#[test]
fn a_reserved_head_keeps_its_space_and_nothing_of_a_former_life() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    (0..5).for_each(|disk| put(&head, disk, 1));
    head.commit().unwrap();
    (5..9).for_each(|disk| put(&head, disk, 9));
    let mut bytes = head.io().bytes();
    bytes.resize(500 * 4096, 9);
    let bounds = HeadBounds {
        limit_bytes: None,
        reserve: true,
    };
    let head = Head::open_within(Kept(MemoryIo::new(bytes)), Bytes(600 * 4096), bounds).unwrap();
    assert_eq!(head.io().size().unwrap(), full_len(Bytes(600 * 4096), CHUNK).unwrap());
    let bytes = head.io().0.bytes();
    assert!(bytes[7 * 4096..].iter().all(|byte| *byte == 0));
    head.erase(Bytes(2 * 4096), Bytes(4096)).unwrap();
    assert_eq!((first_byte(&head, 0), first_byte(&head, 1)), (Some(0), Some(1)));
}
