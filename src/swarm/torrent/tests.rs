use super::*;
use crate::blockio::MemoryIo;
use proptest::prelude::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

fn build(len: usize) -> TorrentInfo {
    TorrentInfo::build("object", &MemoryIo::new(pattern(len)), &|_| {}).unwrap()
}

fn roomy() -> Limits<'static> {
    Limits {
        max_len: Bytes(1 << 44),
        name: None,
    }
}

/// An info dict with one field replaced.
fn with(field: &str, value: Value) -> Vec<u8> {
    let Value::Dict(mut dict) = bencode::decode(&build(3 * MIN_PIECE as usize).info_dict()).unwrap() else {
        panic!("an info dict is a dict");
    };
    dict.insert(field.into(), value);
    bencode::encode(&Value::Dict(dict))
}

#[test]
fn the_info_dict_has_its_four_keys_and_no_other() {
    let info = TorrentInfo::build("a", &MemoryIo::new(b"hello".to_vec()), &|_| {}).unwrap();
    let mut want = b"d6:lengthi5e4:name1:a12:piece lengthi262144e6:pieces20:".to_vec();
    want.extend(hex::decode("aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d").unwrap());
    want.push(b'e');
    assert_eq!(info.info_dict(), want);
    // The same dict through Python's hashlib.
    assert_eq!(info.info_hash(), InfoHash(sha1(&want)));
    assert_eq!(info.torrent_file(), [b"d4:info".as_slice(), &want, b"e"].concat());
}

#[test]
fn pieces_are_as_short_as_their_count_allows() {
    let full = u64::from(MIN_PIECE) * MAX_PIECES;
    for (len, want) in [
        (1, MIN_PIECE),
        (full, MIN_PIECE),
        (full + 1, MIN_PIECE * 2),
        (16 << 40, 1 << 30),
        (1 << 45, 1 << 31),
    ] {
        assert_eq!(piece_len(Bytes(len)).unwrap(), want, "{len}");
    }
    assert!(matches!(piece_len(Bytes(0)), Err(TorrentError::Empty)));
    assert!(matches!(piece_len(Bytes((1 << 45) + 1)), Err(TorrentError::TooLong { .. })));
    assert!(matches!(piece_len(Bytes(u64::MAX)), Err(TorrentError::TooLong { .. })));
}

#[test]
fn a_whole_number_of_pieces_has_no_empty_piece_at_its_end() {
    for (len, want) in [(MIN_PIECE, 1), (MIN_PIECE * 4, 4), (MIN_PIECE * 4 + 1, 5), (MIN_PIECE * 4 - 1, 4)] {
        assert_eq!(build(len as usize).pieces.len(), want, "{len}");
    }
}

#[test]
fn two_threads_hash_as_one_does() {
    let data = pattern(5 * MIN_PIECE as usize + 77);
    let seen = AtomicU64::new(0);
    let info = TorrentInfo::build("x", &MemoryIo::new(data.clone()), &|done| {
        seen.fetch_max(done.0, Ordering::Relaxed);
    })
    .unwrap();
    let want: Vec<[u8; 20]> = data.chunks(MIN_PIECE as usize).map(sha1).collect();
    assert_eq!(info.pieces, want);
    assert_eq!(seen.into_inner(), data.len() as u64);
    assert_eq!(info.piece_range(5), 5 * u64::from(MIN_PIECE)..data.len() as u64);
    assert!(info.piece_range(u32::MAX).is_empty());
}

#[test]
fn what_was_built_parses_to_itself() {
    for len in [1, 4096, MIN_PIECE as usize, 3 * MIN_PIECE as usize + 5] {
        let info = build(len);
        assert_eq!(parse_info(&info.info_dict(), Some(info.info_hash()), roomy()).unwrap(), info);
    }
}

#[test]
fn hostile_info_dicts_are_named_errors() {
    let parse = |bytes: &[u8]| parse_info(bytes, None, roomy()).unwrap_err();
    assert!(matches!(parse(&with("length", Value::Int(0))), TorrentError::Length { found: 0 }));
    assert!(matches!(parse(&with("length", Value::Int(-1))), TorrentError::Length { found: -1 }));
    assert!(matches!(parse(&with("length", Value::Int(1 << 60))), TorrentError::TooLong { .. }));
    assert!(matches!(parse(&with("length", Value::Int(i64::MAX))), TorrentError::TooLong { .. }));
    assert!(matches!(
        parse(&with("length", Value::Int(1 << 43))),
        TorrentError::PieceLength { .. }
    ));
    for piece in [0, -1, 1, 262_143, 262_145, 524_288, 1 << 31, 1 << 32, i64::MAX] {
        assert!(
            matches!(parse(&with("piece length", Value::Int(piece))), TorrentError::PieceLength { .. }),
            "{piece}"
        );
    }
    for size in [0, 1, 20, 40, 59, 61, 80, 4000] {
        assert!(
            matches!(parse(&with("pieces", Value::Bytes(vec![1; size]))), TorrentError::Pieces { .. }),
            "{size}"
        );
    }
    let long = "x".repeat(256);
    for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b", "a\\b", "a\nb", &long] {
        assert!(
            matches!(parse(&with("name", Value::bytes(name))), TorrentError::Name { .. }),
            "{name:?}"
        );
    }
    assert!(matches!(parse(&with("name", Value::bytes(b"\xff"))), TorrentError::Name { .. }));
    assert!(matches!(parse(&with("name", Value::Int(1))), TorrentError::Field { field: "name" }));
    for key in ["private", "files", "meta version", "a"] {
        assert!(matches!(parse(&with(key, Value::Int(1))), TorrentError::UnknownKey { .. }), "{key}");
    }
    assert!(matches!(parse(b"i1e"), TorrentError::Field { .. }));
    assert!(matches!(parse(b"de"), TorrentError::Field { field: "length" }));
    assert!(matches!(parse(b""), TorrentError::Bencode(_)));
    assert!(matches!(parse(&vec![b'd'; MAX_INFO as usize + 1]), TorrentError::TooBig { .. }));
    let other = build(9);
    assert!(matches!(
        parse_info(&other.info_dict(), Some(InfoHash([7; 20])), roomy()),
        Err(TorrentError::InfoHash { .. })
    ));
    let limits = Limits {
        max_len: Bytes(8),
        name: Some("b"),
    };
    assert!(matches!(
        parse_info(&other.info_dict(), None, limits),
        Err(TorrentError::TooLong { len: 9, max: 8 })
    ));
    let limits = Limits {
        max_len: Bytes(9),
        name: Some("b"),
    };
    assert!(matches!(
        parse_info(&other.info_dict(), None, limits),
        Err(TorrentError::OtherName { .. })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_not_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = parse_info(&bytes, None, roomy());
    }

    #[test]
    fn a_changed_byte_is_never_the_same_torrent(at in 0usize..1000, flip in 1u8..=255) {
        let info = build(2 * MIN_PIECE as usize);
        let mut bytes = info.info_dict();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert!(parse_info(&bytes, Some(info.info_hash()), roomy()).is_err());
        if let Ok(parsed) = parse_info(&bytes, None, roomy()) {
            prop_assert_eq!(parsed.info_dict(), bytes);
        }
    }
}
