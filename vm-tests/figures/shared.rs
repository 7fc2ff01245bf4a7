//! Many clones read the same files, cold, at once.

use super::Bench;
use super::table::{Goal, Row, median};
use super::tool::{self, Mounted, ms};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

const CLONES: usize = 32;
const DEPTH: usize = 8;
const ROUNDS: usize = 3;
const BYTES: u64 = 300_000_000;

pub fn rows(bench: &Bench) -> Vec<Row> {
    let files = files(&bench.dir("layers/000"));
    let names: Vec<String> = (0..CLONES).map(|clone| format!("clone{clone}")).collect();
    let dirs: Vec<PathBuf> = names.iter().map(|name| bench.mount_point(name)).collect();
    let (mut one, mut all, mut overlay) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (name, dir) in names.iter().zip(&dirs) {
            bench.ours.clone_of(&format!("c{DEPTH}"), name);
            bench.ours.mount(name, dir);
        }
        one.push(read(&dirs[..1], &files));
        all.push(read(&dirs, &files));
        for name in &names {
            bench.ours.umount(name);
            bench.ours.remove(name);
        }
        let uppers = bench.dir("uppers");
        let mounted: Vec<Mounted> = names
            .iter()
            .zip(&dirs)
            .map(|(name, dir)| Mounted::overlay(&bench.dir("layers"), DEPTH, &uppers.join(name), dir))
            .collect();
        overlay.push(read(&dirs, &files));
        drop(mounted);
        fs::remove_dir_all(uppers).expect("it is ours");
    }
    let of = |figures: &[(f64, f64)]| {
        let (ms, mib) = figures.iter().copied().unzip();
        (median(ms), median(mib))
    };
    let ((one_ms, one_mib), (all_ms, all_mib), (overlay_ms, overlay_mib)) = (of(&one), of(&all), of(&overlay));
    vec![
        Row {
            what: format!("{CLONES} clones read the same 300 MB, cold, at once: bytes from the disk"),
            deltas: Some(DEPTH),
            ours: format!("{all_mib:.0} MiB (one clone {one_mib:.0} MiB)"),
            beside: format!("overlayfs {overlay_mib:.0} MiB"),
            goal: Goal::at_most(all_mib / one_mib, 1.1, "x one clone's"),
        },
        Row {
            what: format!("{CLONES} clones read the same 300 MB, cold, at once: time"),
            deltas: Some(DEPTH),
            ours: format!("{all_ms:.0} ms (one clone {one_ms:.0} ms)"),
            beside: format!("overlayfs {overlay_ms:.0} ms"),
            goal: Goal::at_most(all_ms / overlay_ms, 1.5, "x overlayfs"),
        },
    ]
}

/// The base's big files, until there are 300 MB of them.
fn files(base: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("var/big")];
    let mut sum = 100 << 20;
    let mut shared: Vec<_> = fs::read_dir(base.join("usr/share"))
        .expect("the base has it")
        .map(|entry| entry.expect("it can be listed"))
        .collect();
    shared.sort_by_key(fs::DirEntry::file_name);
    for entry in shared {
        if sum < BYTES {
            sum += entry.metadata().expect("it is there").len();
            found.push(Path::new("usr/share").join(entry.file_name()));
        }
    }
    found
}

/// Milliseconds that a thread in each of `dirs` took to read all files, and MiB that came from the disk.
fn read(dirs: &[PathBuf], files: &[PathBuf]) -> (f64, f64) {
    tool::drop_caches();
    let before = tool::disk_reads_mib();
    let took = ms(|| {
        std::thread::scope(|scope| {
            for dir in dirs {
                scope.spawn(move || {
                    let mut buffer = vec![0; 1 << 20];
                    for file in files {
                        let mut file = File::open(dir.join(file)).expect("the base has it");
                        while file.read(&mut buffer).expect("it can be read") > 0 {}
                    }
                });
            }
        });
    });
    (took, tool::disk_reads_mib() - before)
}
