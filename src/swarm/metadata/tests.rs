use super::*;
use proptest::prelude::*;

fn offer(fields: Vec<(&str, Value)>) -> Vec<u8> {
    bencode::encode(&Value::Dict(fields.into_iter().map(|(key, value)| (key.into(), value)).collect()))
}

fn extensions(number: i64) -> (&'static str, Value) {
    ("m", Value::dict([("ut_metadata", Value::Int(number))]))
}

fn block(kind: i64, piece: i64, data: &[u8]) -> Vec<u8> {
    let head = Value::dict([
        ("msg_type", Value::Int(kind)),
        ("piece", Value::Int(piece)),
        ("total_size", Value::Int(1)),
    ]);
    [bencode::encode(&head).as_slice(), data].concat()
}

#[test]
fn an_offer_is_believed_within_bounds_only() {
    let size = |size| ("metadata_size", Value::Int(size));
    assert_eq!(parse_offer(&offer(vec![extensions(2), size(100)])).unwrap(), (2, 100));
    for bad in [0, -1, 256, i64::MAX] {
        assert!(
            matches!(
                parse_offer(&offer(vec![extensions(bad), size(100)])),
                Err(MetadataError::NotOffered)
            ),
            "{bad}"
        );
    }
    for bad in [0, -1, MAX_INFO as i64 + 1, 1 << 32, 1 << 60, i64::MAX] {
        assert!(
            matches!(parse_offer(&offer(vec![extensions(2), size(bad)])), Err(MetadataError::Size { .. })),
            "{bad}"
        );
    }
    assert!(matches!(parse_offer(&offer(vec![extensions(2)])), Err(MetadataError::NotOffered)));
    assert!(matches!(parse_offer(&offer(vec![size(1)])), Err(MetadataError::NotOffered)));
    assert!(matches!(parse_offer(b"x"), Err(MetadataError::Protocol { .. })));
}

#[test]
fn a_block_has_its_place_and_its_length() {
    let size = BLOCK + 10;
    assert_eq!(parse_block(&block(1, 1, &[7; 10]), size).unwrap(), (1, &[7; 10][..]));
    assert_eq!(parse_block(&block(1, 0, &[7; BLOCK]), size).unwrap().1.len(), BLOCK);
    for (piece, len) in [(1, 9), (1, 11), (0, 10), (2, 0), (2, 10), (-1, 10), (i64::MAX, 10)] {
        assert!(
            matches!(
                parse_block(&block(1, piece, &vec![0; len]), size),
                Err(MetadataError::Protocol { .. })
            ),
            "{piece} {len}"
        );
    }
    assert!(matches!(parse_block(&block(2, 0, b""), size), Err(MetadataError::Refused)));
    assert!(matches!(parse_block(&block(9, 0, b""), size), Err(MetadataError::Protocol { .. })));
}

proptest! {
    #[test]
    fn any_message_is_an_answer_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..100_000) {
        let _ = parse_offer(&bytes);
        let _ = parse_block(&bytes, size);
    }
}
