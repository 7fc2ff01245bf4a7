//! Heads by hand: what the kernel itself takes for each, and how that grows with their number.

use super::devices;
use super::peers::RawLoop;
use devicemapper::DM;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const SIZE: u64 = 1 << 30;
/// Of a head of blockbt, in sectors.
const CHUNK: u32 = 32;

/// What is timed of each.
pub const PARTS: [&str; 8] = [
    "file",
    "loop",
    "create origin",
    "load it",
    "resume it",
    "create head",
    "load it",
    "resume it",
];

/// The heads of a directory over the chain that is attached, until this is dropped.
pub struct Heads {
    dm: DM,
    dir: PathBuf,
    below: String,
    loops: Vec<RawLoop>,
}

impl Heads {
    pub fn new(dir: PathBuf) -> Heads {
        fs::create_dir_all(&dir).expect("the disk takes a directory");
        let dm = DM::new().expect("the guest has device-mapper");
        Heads {
            below: devices::lower(&dm),
            dm,
            dir,
            loops: Vec::new(),
        }
    }

    /// One more: a sparse file, its loop, a linear origin and the snapshot. Milliseconds that each of `PARTS` took.
    pub fn add(&mut self) -> [f64; PARTS.len()] {
        let (dm, number, sectors) = (&self.dm, self.loops.len(), SIZE / 512);
        let path = self.dir.join(number.to_string());
        let [origin, head] = names(number);
        let mut took = [0.0; PARTS.len()];
        let mut last = Instant::now();
        let mut part = 0;
        let mut lap = || {
            took[part] = last.elapsed().as_secs_f64() * 1e3;
            (last, part) = (Instant::now(), part + 1);
        };
        make_file(&path);
        lap();
        let device = RawLoop::direct(&path);
        lap();
        let below = devices::new(dm, &origin);
        lap();
        devices::load(dm, &origin, sectors, "linear", &format!("{} 0", self.below));
        lap();
        devices::resume(dm, &origin);
        lap();
        devices::new(dm, &head);
        lap();
        devices::load(
            dm,
            &head,
            sectors,
            "snapshot",
            &format!("{} {} PO {CHUNK}", below.number, device.device.display()),
        );
        lap();
        devices::resume(dm, &head);
        lap();
        self.loops.push(device);
        took
    }

    /// The last one goes. Milliseconds.
    pub fn take(&mut self) -> Option<f64> {
        let device = self.loops.pop()?;
        let number = self.loops.len();
        let start = Instant::now();
        let [origin, head] = names(number);
        devices::remove(&self.dm, &head);
        devices::remove(&self.dm, &origin);
        drop(device);
        fs::remove_file(self.dir.join(number.to_string())).expect("it is ours");
        Some(start.elapsed().as_secs_f64() * 1e3)
    }
}

impl Drop for Heads {
    fn drop(&mut self) {
        while self.take().is_some() {}
        fs::remove_dir(&self.dir).expect("it is empty");
    }
}

fn names(number: usize) -> [String; 2] {
    [format!("bare-origin-{number}"), format!("bare-head-{number}")]
}

/// An empty exception store. Its length: all chunks, and as much again for metadata as is needed and more.
fn make_file(path: &Path) {
    let file = File::options().write(true).create_new(true).open(path).expect("nobody has it");
    file.set_len(SIZE + (SIZE >> 6)).expect("the disk takes a sparse file");
    let mut header = *b"SnAp\x01\0\0\0\x01\0\0\0\0\0\0\0";
    header[12..].copy_from_slice(&CHUNK.to_le_bytes());
    file.write_all_at(&header, 0).expect("there is room");
}
