//! Small files, each made durable: on a file system whose fsync is the disk's.

use super::Bench;
use super::peers::RawLoop;
use super::table::{Goal, Row, in_turns, median};
use super::thin::{Pool, SCRATCH};
use super::tool::{self, Mounted};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 7;
const FILES: usize = 40;

pub fn rows(bench: &Bench) -> Vec<Row> {
    let [at_ours, at_raw, at_thin, at_overlay] = ["ours", "raw", "thin", "overlay"].map(|name| bench.mount_point(name));
    bench.ours.clone_of("c8", "small");
    bench.ours.mount("small", &at_ours);
    let file = bench.dir("raw/written.raw");
    File::create(&file)
        .and_then(|file| file.set_len(1 << 30))
        .expect("the disk takes a sparse file");
    let raw = RawLoop::new(&file, false);
    tool::run("mkfs.ext4", &["-q", raw.device.to_str().expect("our own path is text")]);
    let on_raw = Mounted::ext4(&raw.device, &at_raw);
    let pool = Pool::open(&bench.dir("thin"));
    pool.snapshot(SCRATCH, 7);
    let device = pool.activate(SCRATCH);
    let on_thin = Mounted::ext4(&device.path, &at_thin);
    let upper = bench.dir("upper");
    let on_overlay = Mounted::overlay(&bench.dir("layers"), 8, &upper, &at_overlay);
    tool::settle();
    let mut rounds = [0; 4];
    let [r0, r1, r2, r3] = &mut rounds;
    let [ours, raw_us, thin_us, overlay_us] = in_turns(
        ROUNDS,
        [
            &mut || make(&at_ours, r0),
            &mut || make(&at_raw, r1),
            &mut || make(&at_thin, r2),
            &mut || make(&at_overlay, r3),
        ],
    );
    drop((on_overlay, on_thin, device));
    std::fs::remove_dir_all(&upper).expect("it is ours");
    pool.delete(SCRATCH);
    drop((on_raw, raw, pool));
    std::fs::remove_file(&file).expect("it is ours");
    bench.ours.umount("small");
    bench.ours.remove("small");
    vec![Row {
        what: "create and fsync a file of 4 KiB".into(),
        deltas: Some(8),
        ours: format!("{ours:.0} us"),
        beside: format!("raw loop {raw_us:.0}, dm-thin {thin_us:.0}, overlayfs {overlay_us:.0} us"),
        goal: Goal::at_most(ours / raw_us, 1.6, "x raw loop"),
    }]
}

/// Microseconds for each of some files; the median.
fn make(at: &Path, round: &mut usize) -> f64 {
    *round += 1;
    let dir = at.join("made").join(round.to_string());
    std::fs::create_dir_all(&dir).expect("there is room");
    let one = |number: usize| {
        let start = Instant::now();
        let mut file = File::create(dir.join(number.to_string())).expect("there is room");
        file.write_all(&[7; 4096]).expect("there is room");
        file.sync_all().expect("it can be synced");
        start.elapsed().as_secs_f64() * 1e6
    };
    median((0..FILES).map(one).collect())
}
