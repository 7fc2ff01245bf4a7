//! What every figure needs: mounts, caches, fio, a clock.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Milliseconds that `work` took.
pub fn ms<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

pub fn run(program: &str, words: &[&str]) -> String {
    let done = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {}: {error}", words.join(" "));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Nobody's earlier writes are written back at the next one's cost.
pub fn settle() {
    nix::unistd::sync();
}

pub fn drop_caches() {
    settle();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("the guest is root's");
}

/// A line of /proc/meminfo, in KiB.
pub fn memory(line: &str) -> f64 {
    let text = fs::read_to_string("/proc/meminfo").expect("the guest has /proc");
    let value = text.lines().find_map(|l| l.strip_prefix(line)).expect("the kernel tells it");
    let number = value.trim_start_matches(':').trim().trim_end_matches(" kB");
    number.parse().expect("it is a number")
}

/// MiB that were read from the disk so far.
pub fn disk_reads_mib() -> f64 {
    let text = fs::read_to_string("/sys/block/ubda/stat").expect("the guest has one disk");
    let sectors = text.split_whitespace().nth(2).and_then(|word| word.parse::<f64>().ok());
    sectors.expect("the third number is sectors read") / 2048.0
}

/// Mounted until this is dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn ext4(device: &Path, at: &Path) -> Mounted {
        Mounted::new(device, at, "ext4", MsFlags::empty(), None)
    }

    /// ext4 on a device that takes no write.
    pub fn read_only(device: &Path, at: &Path) -> Mounted {
        Mounted::new(device, at, "ext4", MsFlags::MS_RDONLY, Some("noload"))
    }

    fn new(source: &Path, at: &Path, kind: &str, flags: MsFlags, options: Option<&str>) -> Mounted {
        mount(Some(source), at, Some(kind), flags, options)
            .unwrap_or_else(|error| panic!("mount {kind} {} at {}: {error}", source.display(), at.display()));
        Mounted(at.into())
    }

    /// Lower directories by their short names, as the kernel takes 4,095 bytes of options only: the process is in their parent.
    pub fn overlay(layers: &Path, count: usize, upper: &Path, at: &Path) -> Mounted {
        let lower: Vec<String> = (0..count).rev().map(|layer| format!("{layer:03}")).collect();
        let options = format!("lowerdir={},upperdir={1}/upper,workdir={1}/work", lower.join(":"), upper.display());
        std::env::set_current_dir(layers).expect("the disk has layers");
        for dir in ["upper", "work"] {
            fs::create_dir_all(upper.join(dir)).expect("the disk takes a directory");
        }
        Mounted::new(Path::new("overlay"), at, "overlay", MsFlags::empty(), Some(&options))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::empty()).unwrap_or_else(|error| panic!("umount {}: {error}", self.0.display()));
    }
}

pub enum Load {
    /// 1 MiB reads, one after the other: MB/s.
    Sequential,
    /// 4 KiB reads, 64 at a time: thousands a second.
    Random,
}

/// Reads of a whole device for half a second.
pub fn fio(device: &Path, load: &Load) -> f64 {
    let words: &[&str] = match load {
        Load::Sequential => &["--rw=read", "--bs=1M", "--ioengine=psync"],
        Load::Random => &[
            "--rw=randread",
            "--bs=4k",
            "--ioengine=io_uring",
            "--iodepth=64",
            "--norandommap",
            "--randrepeat=1",
        ],
    };
    let done = Command::new("fio")
        .args([
            "--name=read",
            "--direct=1",
            "--readonly",
            "--invalidate=0",
            "--output-format=json",
            "--time_based",
            "--runtime=500ms",
        ])
        .arg(format!("--filename={}", device.display()))
        .args(words)
        .output()
        .expect("fio is installed");
    assert!(done.status.success(), "fio: {}", String::from_utf8_lossy(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).expect("fio speaks JSON when asked to");
    let bytes = report["jobs"][0]["read"]["bw_bytes"].as_f64().expect("fio reports a speed");
    match load {
        Load::Sequential => bytes / 1e6,
        Load::Random => bytes / 4096e3,
    }
}

/// Has a file in the page cache.
pub fn cache(path: &Path) {
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    std::io::copy(&mut file, &mut std::io::sink()).expect("it can be read");
}

/// Reads all of a device, so that its files are in the page cache.
pub fn warm(device: &Path) {
    let source = format!("if={}", device.display());
    run("dd", &[&source, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
}
