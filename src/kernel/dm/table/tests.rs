use super::*;
use proptest::prelude::*;

fn dev(major: u32, minor: u32) -> DevNo {
    DevNo { major, minor }
}

#[test]
fn what_dmsetup_prints_is_read() {
    let text = "0 2048 linear 7:3 16\n2048 8 zero \n2056 100 snapshot 253:1 7:12 PO 32 1 discard_zeroes_cow\n2156 1 error \n2157 8 snapshot 253:1 7:2 P 8\n";
    let table: Table = text.parse().unwrap();
    let want = [
        Target::Linear {
            device: dev(7, 3),
            offset: 16,
        },
        Target::Zero,
        Target::Snapshot {
            origin: dev(253, 1),
            cow: dev(7, 12),
            persistence: Persistence::PO,
            chunk_sectors: 32,
            discard_zeroes_cow: true,
        },
        Target::Error,
        Target::Snapshot {
            origin: dev(253, 1),
            cow: dev(7, 2),
            persistence: Persistence::P,
            chunk_sectors: 8,
            discard_zeroes_cow: false,
        },
    ];
    assert_eq!(table.lines().iter().map(|line| line.target.clone()).collect::<Vec<_>>(), want);
    assert_eq!(table.len_sectors(), 2165);
    assert_eq!(table.devices(), [dev(7, 2), dev(7, 3), dev(7, 12), dev(253, 1)]);
    assert_eq!(table.to_string(), text.replace("zero ", "zero").replace("error ", "error"));
}

#[test]
fn a_line_is_written_as_the_kernel_prints_it() {
    for text in [
        "0 8 zero",
        "8 1 error",
        "0 18446744073709551615 linear 253:1048575 18446744073709551615",
        "0 8 snapshot 7:0 7:1 P 4096",
        "0 8 snapshot 7:0 7:1 PO 32 1 discard_zeroes_cow",
    ] {
        assert_eq!(text.parse::<Line>().unwrap().to_string(), text);
    }
    assert_eq!(
        "0 8 snapshot 7:0 7:1 P 8 0".parse::<Line>().unwrap().to_string(),
        "0 8 snapshot 7:0 7:1 P 8"
    );
}

#[test]
fn what_is_not_ours_is_not_guessed_at() {
    for text in [
        "",
        "0",
        "0 8",
        "0 8 striped 7:0 0",
        "0 8 linear /dev/sda 0",
        "0 8 linear 7:0",
        "0 8 linear 7:0 0 0",
        "0 8 linear 7:+1 0",
        "-1 8 zero",
        "0 8 zero 1",
        "0 8 snapshot 7:0 7:1 N 8",
        "0 8 snapshot 7:0 7:1 P 8 1 discard_passdown_origin",
        "0 8 snapshot 7:0 7:1 P 4294967296",
        "name: 0 8 zero",
    ] {
        assert_eq!(text.parse::<Line>(), Err(TableError::Line { text: text.into() }));
    }
    for text in ["7", "7:", ":7", "7:1:2", "7:4294967296", "7:-1", " 7:1"] {
        assert_eq!(text.parse::<DevNo>(), Err(TableError::Device { text: text.into() }));
    }
}

#[test]
fn a_table_follows_on_from_sector_0() {
    let line = |start, len| Line {
        start,
        len,
        target: Target::Zero,
    };
    let gap = |index, found, want| Err(TableError::Gap { index, found, want });
    assert_eq!(Table::new(vec![]), Err(TableError::Empty));
    assert_eq!("\n \n".parse::<Table>(), Err(TableError::Empty));
    assert_eq!(Table::new(vec![line(1, 8)]), gap(0, 1, 0));
    assert_eq!(Table::new(vec![line(0, 8), line(9, 1)]), gap(1, 9, 8));
    assert_eq!(Table::new(vec![line(0, 8), line(7, 1)]), gap(1, 7, 8));
    assert_eq!(Table::new(vec![line(0, 0)]), Err(TableError::Length { index: 0 }));
    assert_eq!(
        Table::new(vec![line(0, 8), line(8, u64::MAX - 7)]),
        Err(TableError::Length { index: 1 })
    );
    let many = (0..=MAX_TARGETS as u64).map(|start| line(start, 1)).collect();
    assert_eq!(Table::new(many), Err(TableError::TooLong { found: MAX_TARGETS + 1 }));
}

#[test]
fn a_snapshots_status_is_read() {
    for (text, want) in [
        (
            "16/2048 16",
            SnapshotStatus::Used {
                used: 16,
                total: 2048,
                metadata: 16,
            },
        ),
        ("Invalid", SnapshotStatus::Invalid),
        ("Overflow ", SnapshotStatus::Overflow),
        ("Merge failed", SnapshotStatus::MergeFailed),
        ("Unknown", SnapshotStatus::Unknown),
    ] {
        assert_eq!(text.parse(), Ok(want));
    }
    for text in ["", "1/2", "1 2 3", "x/2 3", "1/2 3 4", "invalid"] {
        assert_eq!(text.parse::<SnapshotStatus>(), Err(TableError::Status { text: text.into() }));
    }
}

fn devices() -> impl Strategy<Value = DevNo> {
    any::<(u32, u32)>().prop_map(|(major, minor)| dev(major, minor))
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        (devices(), any::<u64>()).prop_map(|(device, offset)| Target::Linear { device, offset }),
        Just(Target::Zero),
        Just(Target::Error),
        (devices(), devices(), any::<(bool, u32, bool)>()).prop_map(|(origin, cow, (overflow, chunk_sectors, discard_zeroes_cow))| {
            Target::Snapshot {
                origin,
                cow,
                persistence: if overflow { Persistence::PO } else { Persistence::P },
                chunk_sectors,
                discard_zeroes_cow,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn text_and_value_are_the_same_thing(parts in proptest::collection::vec((1..1_u64 << 40, targets()), 1..30)) {
        let mut start = 0;
        let lines = parts.into_iter().map(|(len, target)| {
            let line = Line { start, len, target };
            start += len;
            line
        }).collect();
        let table = Table::new(lines).unwrap();
        prop_assert_eq!(table.len_sectors(), start);
        prop_assert_eq!(table.to_string().parse::<Table>(), Ok(table));
    }

    #[test]
    fn any_text_gets_an_answer(text in ".{0,200}", table in "([0-9]{1,22} ?[0-9]{0,3} (linear|zero|snapshot|error) ?([0-9:PON ]{0,30})\n?){0,4}") {
        for text in [text, table] {
            let _ = text.parse::<SnapshotStatus>();
            if let Ok(table) = text.parse::<Table>() {
                prop_assert_eq!(table.to_string().parse::<Table>(), Ok(table));
            }
        }
    }
}
