//! The processes that serve images in user mode, and their death.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    let pid = Pid::from_raw(servers[0] as i32).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    let dead = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&minute)).unwrap();
    assert_eq!(dead, 1, "a killed server goes");
}
