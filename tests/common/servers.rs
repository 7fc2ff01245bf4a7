//! The processes that serve images in user mode, their death, and what else goes a moment after the verb that took it away.

use blockbt::kernel::loops;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long what is on its way out may take, on however slow a machine.
pub const MINUTE: Duration = Duration::from_secs(60);

/// What serves an image whose place is at or below `place`.
pub fn servers(place: &Path) -> Vec<u32> {
    let serves = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"fuse-serve")
            && words
                .next()
                .is_some_and(|served| Path::new(std::ffi::OsStr::from_bytes(served)).starts_with(place))
    };
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(serves)
        .collect()
}

/// `kill -9` of the one that serves below `place`. Returns when none of its threads is left: before that its files may still be open, and
/// with them its locks and its end of FUSE, though its command line is empty already.
pub fn kill_server(place: &Path) {
    let servers = servers(place);
    assert_eq!(servers.len(), 1, "one server serves one image");
    let process = open(servers[0]).unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    assert!(ends(&process), "a killed server goes");
}

/// Waits for what a verb that is done leaves behind for a moment: a server that has let go of all its files and locks and has yet to end, and a dead
/// loop device that somebody who looks at all devices, such as another test, has open just now. What is not on its way out stays to be found.
pub fn await_ends(place: &Path, loop_names: &str) {
    for process in servers(place).into_iter().filter_map(open) {
        ends(&process);
    }
    let is_ours = |name: &str| name.starts_with(loop_names);
    let start = Instant::now();
    while loops::find(is_ours).unwrap().iter().any(|device| device.dying) && start.elapsed() < MINUTE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `None`: it has just ended.
fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

fn ends(process: &OwnedFd) -> bool {
    let timeout = Timespec {
        tv_sec: MINUTE.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}
