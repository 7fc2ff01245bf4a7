//! Writes the flat table of a chain by any rule, for vm-tests/run to measure; or how long that takes for a large one.
//!
//! usage: flat_table DIR RULE... -- DELTA...      sealed deltas, oldest first
//!        flat_table time
//! RULE: `linear`, a threshold in KiB, `short` (all runs), or `rule`. For each one, DIR gets RULE.tsv (first sector, sectors, then `zero`, `short`,
//! or number and sector of a delta), and, if there is a short device, RULE.concat (number, sector, sectors) and RULE.meta. A line of JSON each.

use blockbt::attach::table::{FlatTable, From, Rule, flat, flat_by};
use blockbt::blockio::FileIo;
use blockbt::chain::{ChainMap, Delta};
use blockbt::format::Extent;
use blockbt::format::sealed::Sealed;
use blockbt::ids::Digest;
use blockbt::units::{Bytes, ChunkSize, DiskChunk};
use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [word] if word == "time" => time(),
        [dir, rest @ ..] => {
            let split = rest.iter().position(|word| word == "--").expect("-- before the deltas");
            let map = chain(&rest[split + 1..]);
            for name in &rest[..split] {
                tell(name, &map, |table| write(Path::new(dir), name, table));
            }
        }
        [] => {}
    }
}

fn chain(paths: &[String]) -> ChainMap {
    let open = |path: &String| Sealed::open(&FileIo(File::open(path).expect("a delta"))).unwrap_or_else(|error| panic!("{path}: {error}"));
    let tables: Vec<_> = paths.iter().map(open).collect();
    let names: Vec<Digest> = tables
        .iter()
        .skip(1)
        .map(|above| above.facts.parent)
        .chain([Digest([1; 32])])
        .collect();
    let size = tables.last().expect("at least one delta").facts.virtual_size;
    let deltas: Vec<Delta> = tables
        .into_iter()
        .zip(names)
        .map(|(table, digest)| Delta::new(&table.facts, table.extents, digest))
        .collect();
    ChainMap::build(&deltas, size).expect("a chain")
}

fn by_name(name: &str, map: &ChainMap) -> FlatTable {
    let long = match name {
        "rule" => return flat(map),
        "linear" => 0,
        "short" => 1 << 43,
        kib => kib.parse::<u64>().expect("a rule") << 10,
    };
    let rule = Rule {
        linear_targets: 0,
        long: Bytes(long),
        most_targets: usize::MAX,
        ..Rule::MEASURED
    };
    flat_by(map, &rule)
}

fn tell(name: &str, map: &ChainMap, write: impl Fn(&FlatTable)) {
    let start = on_cpu();
    let table = by_name(name, map);
    let cut = on_cpu() - start;
    write(&table);
    let short = table.short.as_ref();
    println!(
        r#"{{"rule":"{name}","targets":{},"exceptions":{},"chunk_kib":{},"cut_ms":{:.2},"write_ms":{:.2},"runs":{}}}"#,
        table.targets(),
        short.map_or(0, |short| short.metadata.exception_count()),
        short.map_or(0, |short| short.chunk.bytes().0 >> 10),
        cut * 1e3,
        (on_cpu() - start - cut) * 1e3,
        map.runs(),
    );
}

fn write(dir: &Path, name: &str, table: &FlatTable) {
    let mut lines = String::new();
    for piece in &table.pieces {
        let from = match piece.from {
            From::Zero => "zero".into(),
            From::Short => "short".into(),
            From::Delta { index, offset } => format!("{index} {offset}"),
        };
        writeln!(lines, "{} {} {from}", piece.at, piece.len).expect("memory");
    }
    fs::write(dir.join(format!("{name}.tsv")), lines).expect("a file for the table");
    if let Some(short) = &table.short {
        let lines: String = short
            .concat
            .iter()
            .map(|part| format!("{} {} {}\n", part.index, part.offset, part.len))
            .collect();
        fs::write(dir.join(format!("{name}.concat")), lines).expect("a file for the concatenation");
        let file = FileIo(File::create(dir.join(format!("{name}.meta"))).expect("a file for the metadata"));
        short.metadata.write(&file).expect("metadata");
    }
}

/// 128 deltas of random 4 KiB chunks, and of runs as containers have them, on 64 GiB; the metadata goes to a file in /dev/shm.
fn time() {
    let mut state = 7u64;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % limit
    };
    let size = Bytes(64 << 30);
    for longest in [1, 60] {
        let deltas: Vec<Delta> = (0..128u8)
            .map(|number| {
                let mut at = 0;
                let extents = (0..2_000)
                    .map(|_| {
                        at += 1 + below(8_000);
                        let count = 1 + below(longest);
                        at += count;
                        Extent {
                            disk: DiskChunk(at - count),
                            count,
                        }
                    })
                    .collect();
                Delta {
                    extents,
                    chunk_size: ChunkSize::SEALED,
                    virtual_size: size,
                    digest: Digest([number + 1; 32]),
                    parent: if number == 0 { Digest::NONE } else { Digest([number; 32]) },
                    stands_for: Digest::NONE,
                }
            })
            .collect();
        let start = on_cpu();
        let map = ChainMap::build(&deltas, size).expect("a chain");
        println!(
            "runs up to {longest} chunks: {} runs merged in {:.1} ms",
            map.runs(),
            (on_cpu() - start) * 1e3
        );
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        for name in ["linear", "64", "rule", "short"] {
            tell(name, &map, |table| {
                if let Some(short) = &table.short {
                    let file = FileIo(File::create(dir.path().join("meta")).expect("a file"));
                    short.metadata.write(&file).expect("metadata");
                }
            });
        }
    }
}

/// Seconds that this thread has had of a core.
fn on_cpu() -> f64 {
    std::thread::yield_now();
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has /proc");
    text.split(' ')
        .next()
        .and_then(|word| word.parse::<f64>().ok())
        .expect("the first of three numbers")
        / 1e9
}
