//! The first byte that is written to a big file of the base, and made durable.

use super::Bench;
use super::table::{Goal, Row, median};
use super::thin::{Pool, SCRATCH};
use super::tool::{self, Mounted, ms};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const ROUNDS: usize = 7;

pub fn rows(bench: &Bench) -> Vec<Row> {
    [1, 32].map(|depth| row(bench, depth)).into()
}

fn row(bench: &Bench, depth: usize) -> Row {
    let pool = Pool::open(&bench.dir("thin"));
    let at = bench.mount_point("first");
    let (mut ours, mut thin, mut overlay) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bench.ours.clone_of(&format!("c{depth}"), "first");
        bench.ours.mount("first", &at);
        ours.push(write(&at));
        bench.ours.umount("first");
        bench.ours.remove("first");
        pool.snapshot(SCRATCH, depth as u32 - 1);
        let device = pool.activate(SCRATCH);
        let mounted = Mounted::ext4(&device.path, &at);
        thin.push(write(&at));
        drop((mounted, device));
        pool.delete(SCRATCH);
        let upper = bench.dir("upper");
        let mounted = Mounted::overlay(&bench.dir("layers"), depth, &upper, &at);
        overlay.push(write(&at));
        drop(mounted);
        fs::remove_dir_all(&upper).expect("it is ours");
    }
    let (ours, thin, overlay) = (median(ours), median(thin), median(overlay));
    Row {
        what: "first byte written to a file of 100 MiB, and fsync".into(),
        deltas: Some(depth),
        ours: format!("{ours:.2} ms"),
        beside: format!("overlayfs {overlay:.1} ms, dm-thin {thin:.2} ms"),
        goal: Goal::at_least(overlay / ours, 50.0, "x as fast as overlayfs"),
    }
}

fn write(at: &Path) -> f64 {
    let path = at.join("var/big");
    // In the page cache: copying it up need not wait for the disk.
    tool::cache(&path);
    tool::settle();
    ms(|| {
        let file = File::options().write(true).open(&path).expect("the base has it");
        file.write_all_at(b"x", 50 << 20).expect("it can be written");
        file.sync_all().expect("it can be synced");
    })
}
