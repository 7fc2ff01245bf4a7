//! Raw loop files, and qcow2 through qemu-nbd.

use super::tool;
use blockbt::kernel::loops;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAME: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(10);

/// A loop device on a file, until this is dropped.
pub struct RawLoop {
    number: u32,
    pub device: PathBuf,
}

impl RawLoop {
    pub fn new(file: &Path, read_only: bool) -> RawLoop {
        RawLoop::made(file, read_only, false)
    }

    /// Past the page cache, as a head's.
    pub fn direct(file: &Path) -> RawLoop {
        RawLoop::made(file, false, true)
    }

    fn made(file: &Path, read_only: bool, direct_io: bool) -> RawLoop {
        let made = loops::attach(&loops::Attach {
            file,
            name: NAME,
            read_only,
            direct_io,
        });
        let made = made.unwrap_or_else(|error| panic!("{error}"));
        RawLoop {
            number: made.number,
            device: made.path(),
        }
    }
}

impl Drop for RawLoop {
    fn drop(&mut self) {
        loops::detach(self.number, NAME, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A qcow2 file served by qemu-nbd, until this is dropped.
pub struct Qcow2 {
    pub device: PathBuf,
}

impl Qcow2 {
    pub fn new(file: &Path, number: u32) -> Qcow2 {
        let device = format!("/dev/nbd{number}");
        let socket = format!("--socket=/run/nbd{number}");
        let connect = format!("--connect={device}");
        let path = file.to_str().expect("our own path is text");
        tool::run("qemu-nbd", &["--fork", "--read-only", "--cache=writeback", &socket, &connect, path]);
        let start = Instant::now();
        let size = format!("/sys/block/nbd{number}/size");
        while std::fs::read_to_string(&size).is_ok_and(|text| text.trim() == "0") {
            assert!(start.elapsed() < PATIENCE, "{device} has no size");
            std::thread::sleep(Duration::from_millis(5));
        }
        Qcow2 { device: device.into() }
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        let device = self.device.to_str().expect("our own path is text");
        tool::run("qemu-nbd", &["--disconnect", device]);
    }
}
