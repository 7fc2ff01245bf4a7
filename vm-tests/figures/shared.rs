//! Many clones read the same files, cold, at once.
//!
//! Each clone has a file system and with it a page cache of its own, above the chain's, so that what it reads is copied once more than overlayfs
//! does. What that alone costs is measured beside it: a device for each clone that is nothing but the chain, mounted read-only.

use super::Bench;
use super::devices;
use super::table::{Goal, Row, median};
use super::tool::{self, Mounted, ms};
use devicemapper::DM;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

const CLONES: usize = 32;
const DEPTH: usize = 8;
const ROUNDS: usize = 3;
const BYTES: u64 = 300_000_000;
const SECTORS: u64 = (1 << 30) / 512;

/// Milliseconds, and MiB that came from the disk.
type Figure = (f64, f64);

pub fn rows(bench: &Bench) -> Vec<Row> {
    let files = files(&bench.dir("layers/000"));
    let names: Vec<String> = (0..CLONES).map(|clone| format!("clone{clone}")).collect();
    let dirs: Vec<PathBuf> = names.iter().map(|name| bench.mount_point(name)).collect();
    let [mut one, mut all, mut bare, mut overlay] = [(); 4].map(|()| Vec::new());
    for round in 0..=ROUNDS {
        let by_clones = clones(bench, &names, &dirs, &files);
        let by_bare = chains(bench, &names, &dirs, &files);
        let by_overlay = overlays(bench, &names, &dirs, &files);
        // In the first the host gives the guest its memory, page by page.
        if round > 0 {
            one.push(by_clones.0);
            all.push(by_clones.1);
            bare.push(by_bare);
            overlay.push(by_overlay);
        }
    }
    let of = |figures: Vec<Figure>| {
        let (ms, mib) = figures.into_iter().unzip();
        (median(ms), median(mib))
    };
    let [one, all, bare, overlay] = [one, all, bare, overlay].map(of);
    vec![
        Row {
            what: format!("{CLONES} clones read the same 300 MB, cold, at once: bytes from the disk"),
            deltas: Some(DEPTH),
            ours: format!("{:.0} MiB (one clone {:.0} MiB)", all.1, one.1),
            beside: format!("overlayfs {:.0} MiB", overlay.1),
            goal: Goal::at_most(all.1 / one.1, 1.1, "x one clone's"),
        },
        Row {
            what: format!("{CLONES} clones read the same 300 MB, cold, at once: time"),
            deltas: Some(DEPTH),
            ours: format!("{:.0} ms (one clone {:.0} ms)", all.0, one.0),
            beside: format!(
                "overlayfs {:.0} ms; a file system each right on the chain, without heads, {:.0} ms ({:.2}x)",
                overlay.0,
                bare.0,
                bare.0 / overlay.0
            ),
            goal: Goal::at_most(all.0 / overlay.0, 1.5, "x overlayfs"),
        },
    ]
}

/// The first of them alone, and all.
fn clones(bench: &Bench, names: &[String], dirs: &[PathBuf], files: &[PathBuf]) -> (Figure, Figure) {
    for (name, dir) in names.iter().zip(dirs) {
        bench.ours.clone_of(&format!("c{DEPTH}"), name);
        bench.ours.mount(name, dir);
    }
    let took = (read(&dirs[..1], files), read(dirs, files));
    for name in names {
        bench.ours.umount(name);
        bench.ours.remove(name);
    }
    took
}

fn chains(bench: &Bench, names: &[String], dirs: &[PathBuf], files: &[PathBuf]) -> Figure {
    bench.ours.clone_of(&format!("c{DEPTH}"), "keeper");
    bench.ours.attach("keeper", false);
    let dm = DM::new().expect("the guest has device-mapper");
    let table = format!("{} 0", devices::lower(&dm));
    let mount = |(name, dir): (&String, &PathBuf)| Mounted::read_only(&devices::create(&dm, name, SECTORS, "linear", &table).path, dir);
    let mounted: Vec<Mounted> = names.iter().zip(dirs).map(mount).collect();
    let took = read(dirs, files);
    drop(mounted);
    names.iter().for_each(|name| devices::remove(&dm, name));
    bench.ours.detach("keeper");
    bench.ours.remove("keeper");
    took
}

fn overlays(bench: &Bench, names: &[String], dirs: &[PathBuf], files: &[PathBuf]) -> Figure {
    let (layers, uppers) = (bench.dir("layers"), bench.dir("uppers"));
    let mount = |(name, dir): (&String, &PathBuf)| Mounted::overlay(&layers, DEPTH, &uppers.join(name), dir);
    let mounted: Vec<Mounted> = names.iter().zip(dirs).map(mount).collect();
    let took = read(dirs, files);
    drop(mounted);
    fs::remove_dir_all(uppers).expect("it is ours");
    took
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

/// What a thread in each of `dirs` took to read all files.
fn read(dirs: &[PathBuf], files: &[PathBuf]) -> Figure {
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
