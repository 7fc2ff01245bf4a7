use super::*;
use crate::attach::table::Piece;
use crate::ids::ImageId;

const IMAGE: ImageId = ImageId([9; 16]);
const MIB: u64 = 1 << 20;

fn number(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn chain(deltas: u8) -> ChainId {
    ChainId::of(&(1..=deltas).map(digest).collect::<Vec<_>>())
}

fn numbers() -> Numbers {
    let devices = [
        (DeviceId::Lower(chain(2)), 1),
        (DeviceId::Short(chain(2)), 2),
        (DeviceId::Zero(chain(1)), 3),
        (DeviceId::Level(chain(1)), 4),
        (DeviceId::Pad(chain(2)), 5),
        (DeviceId::Level(chain(2)), 6),
        (DeviceId::Origin(IMAGE), 7),
    ];
    let loops = [
        (LoopId::Delta(digest(1)), 11),
        (LoopId::Delta(digest(2)), 12),
        (LoopId::Head(IMAGE), 13),
    ];
    Numbers {
        devices: devices.into_iter().map(|(device, minor)| (device, number(minor))).collect(),
        loops: loops.into_iter().map(|(id, minor)| (id, DevNo { major: 7, minor })).collect(),
    }
}

fn top(smallest: u64, size: u64) -> Top {
    Top {
        base: Some(Base {
            device: DeviceId::Lower(chain(2)),
            size: Bytes(4 * MIB),
        }),
        virtual_size: Bytes(size * MIB),
        head: Some(TopHead {
            smallest_size: Bytes(smallest * MIB),
            chunk: ChunkSize::HEAD,
        }),
        read_only: false,
    }
}

fn text(table: Result<Table, RecipeError>) -> String {
    table.unwrap().to_string()
}

#[test]
fn a_head_lies_over_an_origin_that_is_cut_where_the_disk_was_smallest() {
    let origin = |top: Top| text(top.table(DeviceId::Origin(IMAGE), &numbers()));
    assert_eq!(origin(top(4, 4)), "0 8192 linear 253:1 0\n");
    assert_eq!(origin(top(4, 8)), "0 8192 linear 253:1 0\n8192 8192 zero\n");
    assert_eq!(origin(top(2, 8)), "0 4096 linear 253:1 0\n4096 12288 zero\n");
    assert_eq!(origin(top(2, 2)), "0 4096 linear 253:1 0\n");
    assert_eq!(origin(Top { base: None, ..top(4, 4) }), "0 8192 zero\n");
}

#[test]
fn the_top_is_a_snapshot_with_the_head_or_the_chain_itself() {
    let image = |top: &Top| text(top.table(DeviceId::Image(IMAGE), &numbers()));
    assert_eq!(image(&top(4, 4)), "0 8192 snapshot 253:7 7:13 PO 32\n");
    let sealed = Top {
        head: None,
        read_only: true,
        ..top(4, 4)
    };
    assert_eq!(image(&sealed), "0 8192 linear 253:1 0\n");
}

#[test]
fn levels_stand_on_each_other_and_on_zeros_where_they_are_larger() {
    let level = |deltas: u8, size: u64| Level {
        chain: chain(deltas),
        digest: digest(deltas),
        size: Bytes(size * MIB),
        chunk: ChunkSize::SEALED,
    };
    let grown = Sealed::Stack(vec![level(1, 4), level(2, 8)]);
    let table = |sealed: &Sealed, device| text(sealed.table(device, &numbers()));
    assert_eq!(table(&grown, DeviceId::Zero(chain(1))), "0 8192 zero\n");
    assert_eq!(table(&grown, DeviceId::Level(chain(1))), "0 8192 snapshot 253:3 7:11 P 8\n");
    assert_eq!(table(&grown, DeviceId::Pad(chain(2))), "0 8192 linear 253:4 0\n8192 8192 zero\n");
    assert_eq!(table(&grown, DeviceId::Level(chain(2))), "0 16384 snapshot 253:5 7:12 P 8\n");
    let shrunk = Sealed::Stack(vec![level(1, 4), level(2, 2)]);
    assert_eq!(table(&shrunk, DeviceId::Level(chain(2))), "0 4096 snapshot 253:4 7:12 P 8\n");
}

#[test]
fn a_flat_chain_is_one_table() {
    let piece = |at, len, from| Piece { at, len, from };
    let sealed = Sealed::Flat {
        chain: chain(2),
        digests: vec![digest(1), digest(2)],
        table: FlatTable {
            size: Bytes(12 << 10),
            pieces: vec![
                piece(0, 8, From::Delta { index: 1, offset: 16 }),
                piece(8, 8, From::Zero),
                piece(16, 8, From::Delta { index: 0, offset: 24 }),
            ],
            short: None,
        },
    };
    let lower = DeviceId::Lower(chain(2));
    assert_eq!(
        text(sealed.table(lower, &numbers())),
        "0 8 linear 7:12 16\n8 8 zero\n16 8 linear 7:11 24\n"
    );
    let error = sealed.table(lower, &Numbers::default()).unwrap_err();
    assert!(matches!(error, RecipeError::Missing { .. }), "{error}");
}
