//! Look-ups in the merged map of a chain.

use crate::{Dice, Goal, Row, in_turns};
use blockbt::chain::{ChainMap, Delta};
use blockbt::format::Extent;
use blockbt::ids::Digest;
use blockbt::units::{Bytes, ChunkSize, DiskChunk};
use std::hint::black_box;

const EXTENTS: u64 = 1_000_000;
const LOOKUPS: u64 = 4_000_000;

pub fn rows() -> Vec<Row> {
    let mut dice = Dice(7);
    let mut disk = 0;
    let extents: Vec<Extent> = (0..EXTENTS)
        .map(|_| {
            disk += 2 + dice.roll() % 8;
            Extent {
                disk: DiskChunk(disk),
                count: 1,
            }
        })
        .collect();
    let size = Bytes((disk + 1) * ChunkSize::SEALED.bytes().0);
    let delta = Delta {
        extents,
        chunk_size: ChunkSize::SEALED,
        virtual_size: size,
        digest: Digest([1; 32]),
        parent: Digest::NONE,
        stands_for: Digest::NONE,
    };
    let map = ChainMap::build(&[delta], size).expect("one sorted base is a chain");
    let [speed] = in_turns([&mut || {
        let start = on_cpu();
        for _ in 0..LOOKUPS {
            black_box(map.lookup(Bytes(dice.roll() % size.0)));
        }
        LOOKUPS as f64 / (on_cpu() - start) / 1e6
    }]);
    let each = map.memory_bytes() as f64 / map.runs() as f64;
    let detail = format!("{} extents, uniformly random, by one core's time", map.runs());
    vec![
        Row {
            name: "map look-ups".into(),
            value: speed,
            unit: "M/s",
            goal: Goal::AtLeast(5.0),
            detail: detail.clone(),
        },
        Row {
            name: "memory of the map".into(),
            value: each,
            unit: "B an extent",
            goal: Goal::AtMost(28.0),
            detail,
        },
    ]
}

/// Seconds that this thread has had of a core: what others have of it is not the map's time.
fn on_cpu() -> f64 {
    // Up to date when the thread has just been put back.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has /proc");
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.expect("the first of three numbers") / 1e9
}
