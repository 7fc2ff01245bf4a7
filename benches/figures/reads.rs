//! Reads of a long chain in user mode, beside a direct-I/O loop on the same disk in one flat file.

use crate::tool::{self, Store};
use crate::{Goal, Row, in_turns};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const DISK: u64 = 512 << 20;
const DELTAS: usize = 20;
/// Of a delta, each between 4 KiB and 512 KiB.
const WRITES: u64 = 48;

pub fn rows() -> Vec<Row> {
    let store = Store::new();
    fill(&store);
    let flat = store.dir().join("flat.raw");
    let flat_name = flat.to_str().expect("our own path is text");
    store.ctl(&["export", "deep", flat_name]);
    tool::run("fallocate", &["--length", &DISK.to_string(), flat_name]);
    let plain = Loop::new(flat_name);
    let ours = store.attach("deep");
    assert!(same(&ours.device, &plain.0), "the chain shows the flat file's bytes");
    let speeds = |workload: &[&str]| in_turns([&mut || fio(&ours.device, workload), &mut || fio(&plain.0, workload)]);
    let [ours_mb, flat_mb] = speeds(&["--rw=read", "--bs=1M", "--size=100%"]).map(|bytes| bytes / 1e6);
    let [ours_k, flat_k] = speeds(&["--rw=randread", "--bs=4k", "--time_based", "--runtime=2"]).map(|bytes| bytes / 4096e3);
    vec![
        Row {
            name: "user mode, sequential 1 MiB reads".into(),
            value: ours_mb / flat_mb,
            unit: "x",
            goal: Goal::AtLeast(0.55),
            detail: format!("{DELTAS} deltas, cold, direct: {ours_mb:.0} MB/s / flat file {flat_mb:.0} MB/s"),
        },
        Row {
            name: "user mode, random 4 KiB reads".into(),
            value: ours_k / flat_k,
            unit: "x",
            goal: Goal::AtLeast(0.45),
            detail: format!("{DELTAS} deltas, cold, direct, depth 1: {ours_k:.2} k/s / flat file {flat_k:.2} k/s"),
        },
    ]
}

/// A disk full of random bytes, parts of which each further delta has anew.
fn fill(store: &Store) {
    store.ctl(&["create", "deep", "--size", "512M", "--fs", "none"]);
    let block = tool::random(1 << 20);
    let mut dice = crate::Dice(11);
    for delta in 0..DELTAS {
        let attached = store.attach("deep");
        let device = File::options().write(true).open(&attached.device).expect("it was just attached");
        let mut write = |at: u64, len: u64| {
            let mut bytes = block[..len as usize].to_vec();
            // No two blocks are the same.
            for page in bytes.chunks_mut(4096) {
                page[..8].copy_from_slice(&dice.roll().to_le_bytes());
            }
            device.write_all_at(&bytes, at).expect("the device takes what fits");
        };
        if delta == 0 {
            (0..DISK >> 20).for_each(|mib| write(mib << 20, 1 << 20));
        } else {
            let mut place = crate::Dice(100 + delta as u64);
            for _ in 0..WRITES {
                let len = (1 + place.roll() % 128) * 4096;
                write(place.roll() % ((DISK - len) / 4096) * 4096, len);
            }
        }
        device.sync_all().expect("the device can be synced");
        drop((device, attached));
        store.ctl(&["commit", "deep"]);
    }
}

/// Bytes a second.
fn fio(device: &str, workload: &[&str]) -> f64 {
    tool::settle();
    tool::drop_caches();
    let done = Command::new("fio")
        .args([
            "--name=read",
            "--direct=1",
            "--ioengine=psync",
            "--readonly",
            "--output-format=json",
        ])
        .arg(format!("--filename={device}"))
        .args(workload)
        .output()
        .expect("fio is installed");
    assert!(done.status.success(), "fio: {}", String::from_utf8_lossy(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).expect("fio speaks JSON when asked to");
    report["jobs"][0]["read"]["bw_bytes"].as_f64().expect("fio reports a speed")
}

fn same(one: &str, other: &str) -> bool {
    let status = Command::new("cmp").args(["--silent", one, other]).status();
    status.expect("every system has cmp").success()
}

/// A loop device that reads its file past the page cache, as ours does.
struct Loop(String);

impl Loop {
    fn new(file: &str) -> Loop {
        let words = ["--find", "--show", "--direct-io=on", "--sector-size=512", file];
        let device = tool::run("losetup", &words);
        assert!(Path::new(device.trim()).exists(), "losetup says which device it took");
        Loop(device.trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool::run("losetup", &["--detach", &self.0]);
    }
}
