//! `make vm-bench`: the figures of the kernel modes beside overlayfs, dm-thin, qcow2 and a raw loop file, on the disk that `vm-tests/bench_disk.py`
//! made, in the guest that `vm-tests/bench` booted. Nothing that is timed starts a program, but fio's reads.
//!
//! What is compared is measured in turns and the medians are set against each other. Arguments: the mounted disk, the file for the table, and
//! words: only rows whose name has one of them.

mod bare;
mod clones;
mod cycle;
mod depth;
mod devices;
mod first;
mod ours;
mod peers;
mod reads;
mod shared;
mod snapshotter;
mod table;
mod thin;
mod tool;
mod writes;

use std::path::{Path, PathBuf};
use table::{Row, Table};

/// Of chains of layers; the disk has an image for each.
pub const DEPTHS: [usize; 4] = [1, 8, 32, 128];

/// What is measured on.
pub struct Bench {
    pub disk: PathBuf,
    pub ours: ours::Ours,
}

impl Bench {
    pub fn dir(&self, name: &str) -> PathBuf {
        self.disk.join(name)
    }

    /// A new directory that goes away with the machine.
    pub fn mount_point(&self, name: &str) -> PathBuf {
        let dir = Path::new("/mnt/at").join(name);
        std::fs::create_dir_all(&dir).expect("the guest's /mnt is a tmpfs");
        dir
    }
}

type Group = (&'static str, fn(&Bench) -> Vec<Row>);

const GROUPS: &[Group] = &[
    ("clone", cycle::rows),
    ("attach", depth::rows),
    ("reads", reads::rows),
    ("shared", shared::rows),
    ("first", first::rows),
    ("fsync", writes::rows),
    ("many", clones::rows),
];

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let (Some(disk), Some(out)) = (words.next(), words.next()) else {
        println!("the bench of the kernel modes runs in a guest: make vm-bench");
        return;
    };
    let wanted: Vec<String> = words.collect();
    let bench = Bench {
        ours: ours::Ours::open(&Path::new(&disk).join("store")),
        disk: disk.into(),
    };
    for left in ["upper", "uppers", "heads"] {
        // Mostly there is nothing.
        let _none = std::fs::remove_dir_all(bench.dir(left));
    }
    let mut table = Table::default();
    for (name, measure) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            let start = std::time::Instant::now();
            table.add(measure(&bench));
            println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    bench.ours.stop();
    std::fs::write(out, table.text()).expect("the window can be written to");
}
