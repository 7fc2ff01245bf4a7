//! Reads of whole devices, all that is beneath them in the page cache: what the path costs, not what the disk can.

use super::peers::{Qcow2, RawLoop};
use super::table::{Goal, Row, in_turns};
use super::thin::Pool;
use super::tool::{self, Load};
use super::{Bench, DEPTHS};
use std::path::Path;

const ROUNDS: usize = 3;

pub fn rows(bench: &Bench) -> Vec<Row> {
    let raw = RawLoop::new(&bench.dir("raw/disk.raw"), true);
    tool::warm(&raw.device);
    let mut rows = Vec::new();
    for depth in DEPTHS {
        rows.extend(layers(bench, &raw.device, depth));
    }
    rows.extend([8, 32, 128].map(|depth| random(bench, &raw.device, depth)));
    rows
}

fn layers(bench: &Bench, raw: &Path, depth: usize) -> [Row; 3] {
    let image = format!("c{depth}");
    bench.ours.clone_of(&image, "head");
    let flat = bench.ours.attach(&image, true);
    let head = bench.ours.attach("head", false);
    let pool = Pool::open(&bench.dir("thin"));
    let thin = pool.activate(depth as u32 - 1);
    let qcow2 = Qcow2::new(&bench.dir(&format!("qcow2/{:03}.qcow2", depth - 1)), 0);
    let all = [raw, &flat, &head, &thin.path, &qcow2.device];
    if depth == 128 {
        assert!(same(raw, &flat) && same(raw, &head), "the chain shows the raw file's bytes");
    }
    // qemu-nbd takes a minute for a whole disk: its files are read in its place.
    all[..4].iter().for_each(|device| tool::warm(device));
    (0..depth).for_each(|layer| tool::cache(&bench.dir(&format!("qcow2/{layer:03}.qcow2"))));
    let measure = |load: Load| {
        let one = |number: usize| tool::fio(all[number], &load);
        in_turns(
            ROUNDS,
            [&mut || one(0), &mut || one(1), &mut || one(2), &mut || one(3), &mut || one(4)],
        )
    };
    let [raw_s, flat_s, head_s, thin_s, qcow2_s] = measure(Load::Sequential);
    let [raw_r, flat_r, head_r, thin_r, qcow2_r] = measure(Load::Random);
    drop((qcow2, thin));
    drop(pool);
    bench.ours.detach("head");
    bench.ours.detach(&image);
    bench.ours.remove("head");
    let [sequential, through, randomly] = match depth {
        0..=8 => [0.85, 0.6, 0.75],
        9..=32 => [0.6, 0.5, 0.75],
        _ => [0.45, 0.4, 0.6],
    };
    [
        Row {
            what: "sequential reads, 1 MiB".into(),
            deltas: Some(depth),
            ours: format!("{flat_s:.0} MB/s"),
            beside: format!("raw loop {raw_s:.0}, dm-thin {thin_s:.0}, qcow2 {qcow2_s:.0} MB/s"),
            goal: Goal::at_least(flat_s / raw_s, sequential, "x raw loop"),
        },
        Row {
            what: "sequential reads, 1 MiB, through an empty head".into(),
            deltas: Some(depth),
            ours: format!("{head_s:.0} MB/s"),
            beside: format!("raw loop {raw_s:.0} MB/s"),
            goal: Goal::at_least(head_s / raw_s, through, "x raw loop"),
        },
        Row {
            what: "random reads, 4 KiB, 64 at a time".into(),
            deltas: Some(depth),
            ours: format!("{flat_r:.0} k/s (head {head_r:.0})"),
            beside: format!("raw loop {raw_r:.0}, dm-thin {thin_r:.0}, qcow2 {qcow2_r:.0} k/s"),
            goal: Goal::at_least(flat_r / raw_r, randomly, "x raw loop"),
        },
    ]
}

/// A chain of random blocks, which no file system makes.
fn random(bench: &Bench, raw: &Path, depth: usize) -> Row {
    let image = format!("r{depth}");
    let flat = bench.ours.attach(&image, true);
    tool::warm(&flat);
    let [raw_s, flat_s] = in_turns(
        ROUNDS,
        [&mut || tool::fio(raw, &Load::Sequential), &mut || {
            tool::fio(&flat, &Load::Sequential)
        }],
    );
    let [raw_r, flat_r] = in_turns(
        ROUNDS,
        [&mut || tool::fio(raw, &Load::Random), &mut || tool::fio(&flat, &Load::Random)],
    );
    bench.ours.detach(&image);
    Row {
        what: "a chain of random 4 KiB blocks: sequential, random reads".into(),
        deltas: Some(depth),
        ours: format!(
            "{flat_s:.0} MB/s ({:.2}x), {flat_r:.0} k/s ({:.2}x)",
            flat_s / raw_s,
            flat_r / raw_r
        ),
        beside: format!("raw loop {raw_s:.0} MB/s, {raw_r:.0} k/s"),
        goal: None,
    }
}

fn same(one: &Path, other: &Path) -> bool {
    let status = std::process::Command::new("cmp").arg("--silent").args([one, other]).status();
    status.expect("every system has cmp").success()
}
