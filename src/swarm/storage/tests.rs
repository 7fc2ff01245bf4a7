use super::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

fn part(dir: &Path, len: u64) -> (io::Result<PartFile>, UnboundedReceiver<u32>) {
    let (say, pieces) = unbounded_channel();
    (PartFile::open(&dir.join("x.part"), Bytes(len), 1 << 18, say), pieces)
}

#[test]
fn every_change_of_a_seeded_file_is_an_error_and_marks_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    std::fs::write(&path, b"sealed").unwrap();
    type Change = fn(&SeedFile) -> io::Result<()>;
    let changes: [(&str, Change); 4] = [
        ("a write", |file| file.write(0, b"x")),
        ("a change of its length", |file| file.set_len(7)),
        ("a change of its length", |file| file.set_len(0)),
        ("its removal", |file| file.remove()),
    ];
    for (what, change) in changes {
        let file = SeedFile::open(&path, Bytes(6)).unwrap();
        assert_eq!(file.damage(), None);
        assert_eq!(change(&file).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(file.damage(), Some(Damage::Change { what }));
        assert_eq!(std::fs::read(&path).unwrap(), b"sealed");
    }
    let file = SeedFile::open(&path, Bytes(6)).unwrap();
    file.set_len(6).unwrap();
    let mut buf = [0; 3];
    file.read(3, &mut buf).unwrap();
    assert_eq!(&buf, b"led");
    assert_eq!(file.damage(), None);
    assert!(file.read(4, &mut buf).is_err());
    assert!(matches!(file.damage(), Some(Damage::Read { at: 4, .. })));
}

#[test]
fn a_seeded_file_of_another_length_is_damaged_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    std::fs::write(&path, b"sealed").unwrap();
    let file = SeedFile::open(&path, Bytes(7)).unwrap();
    assert_eq!(file.damage(), Some(Damage::Length { found: 6, want: 7 }));
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(SeedFile::open(&link, Bytes(6)).is_err(), "a symlink is not an object");
}

#[test]
fn what_is_missing_of_a_part_reads_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (part, _pieces) = part(dir.path(), 1 << 30);
    let part = part.unwrap();
    let mut buf = [9; 10];
    assert!(part.read(0, &mut buf).is_err(), "before the first write there is nothing to check");
    part.write(5, b"abc").unwrap();
    part.read(0, &mut buf).unwrap();
    assert_eq!(&buf, b"\0\0\0\0\0abc\0\0");
    part.read((1 << 30) - 10, &mut buf).unwrap();
    assert_eq!(buf, [0; 10]);
    assert!(std::fs::metadata(part.path()).unwrap().blocks() < 100, "it is sparse");
}

#[test]
fn a_part_takes_no_write_past_its_end_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (part, _pieces) = part(dir.path(), 10);
    let part = part.unwrap();
    for (at, data) in [(10, &b"x"[..]), (8, b"xyz"), (u64::MAX, b"x")] {
        assert!(part.write(at, data).is_err(), "{at}");
    }
    assert_eq!(part.take_failure().unwrap().kind(), io::ErrorKind::InvalidInput);
    assert!(part.take_failure().is_none());
    assert!(part.set_len(11).is_err());
    assert!(part.remove().is_err());
    assert_eq!(std::fs::metadata(part.path()).unwrap().len(), 10);
}

#[test]
fn a_sealed_part_is_read_only_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (part, mut pieces) = part(dir.path(), 4);
    let part = part.unwrap();
    part.write(0, b"data").unwrap();
    part.piece(3);
    assert_eq!(pieces.try_recv(), Ok(3));
    part.seal().unwrap();
    assert_eq!(part.write(0, b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(std::fs::metadata(part.path()).unwrap().permissions().mode() & 0o777, 0o400);
    let mut buf = [0; 4];
    part.read(0, &mut buf).unwrap();
    assert_eq!(&buf, b"data");
    // Not even the descriptor could write.
    assert!(part.file().write_all_at(b"x", 0).is_err());
}

#[test]
fn a_piece_that_is_right_stays_as_it_is_whatever_comes_late() {
    let dir = tempfile::tempdir().unwrap();
    let (part, _pieces) = part(dir.path(), 1 << 19);
    let part = part.unwrap();
    let (good, evil) = (vec![7; 1 << 18], vec![9; 1 << 18]);
    part.write(0, &good).unwrap();
    part.piece(0);
    part.write(1 << 14, &evil[..1 << 14]).unwrap();
    let mut buf = vec![0; 1 << 18];
    part.read(0, &mut buf).unwrap();
    assert!(buf == good, "part of it");
    part.write(0, &evil).unwrap();
    part.write(1 << 18, &good).unwrap();
    part.piece(1);
    part.write(3 << 17, &evil[..100]).unwrap();
    part.seal().unwrap();
    assert!(std::fs::read(part.path()).unwrap() == [good.clone(), good].concat(), "all of it");
}

#[test]
fn sealing_notices_a_file_that_took_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (part, _pieces) = part(dir.path(), 4);
    let part = part.unwrap();
    std::fs::remove_file(part.path()).unwrap();
    std::fs::write(part.path(), b"evil").unwrap();
    assert!(part.seal().is_err());
}

#[test]
fn a_part_with_two_names_is_left_to_its_other_name() {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("object");
    std::fs::write(&object, b"sealed").unwrap();
    std::fs::hard_link(&object, dir.path().join("x.part")).unwrap();
    let (part, _pieces) = part(dir.path(), 100);
    part.unwrap().write(0, b"other").unwrap();
    assert_eq!(std::fs::read(&object).unwrap(), b"sealed");
    std::fs::remove_file(dir.path().join("x.part")).unwrap();
    std::os::unix::fs::symlink(&object, dir.path().join("x.part")).unwrap();
    let (part, _pieces) = super::tests::part(dir.path(), 100);
    part.unwrap().write(0, b"other").unwrap();
    assert_eq!(std::fs::read(&object).unwrap(), b"sealed");
}

#[test]
fn a_part_goes_on_where_it_was_left_even_if_it_was_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _pieces) = part(dir.path(), 8);
    let first = first.unwrap();
    first.write(0, b"half").unwrap();
    let (second, _pieces) = part(dir.path(), 8);
    assert_eq!(second.err().unwrap().kind(), io::ErrorKind::WouldBlock, "one writer at a time");
    first.seal().unwrap();
    drop(first);
    let (second, _pieces) = part(dir.path(), 8);
    let second = second.unwrap();
    second.write(4, b"more").unwrap();
    second.seal().unwrap();
    assert_eq!(std::fs::read(second.path()).unwrap(), b"halfmore");
}
