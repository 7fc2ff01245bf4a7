use super::*;
use crate::blockio::MemoryIo;
use crate::blockio::ReadAt;

const CHUNK: ChunkSize = ChunkSize::MIN;

/// Writes a chunk of `byte`s to the head as a device would.
fn put<F: WriteAt>(head: &Head<F>, disk: u64, byte: u8) {
    let file = head.allocate();
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
    let fresh = again.allocate();
    assert_eq!(again.io().size().unwrap(), CHUNK.offset(fresh).unwrap());
}

#[test]
fn a_second_record_of_a_chunk_is_refused() {
    let head = Head::create(MemoryIo::default(), CHUNK).unwrap();
    let (a, b) = (head.allocate(), head.allocate());
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
