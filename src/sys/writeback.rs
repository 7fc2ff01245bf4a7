//! Writes to disk that begin before somebody waits for them.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Starts writing what is dirty of a file, and returns at once. Promises nothing: an `fsync` that follows has less to wait for.
pub fn start(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: takes numbers only; from 0, a length of 0 means all of the file (Linux fs/sync.c, ksys_sync_file_range).
    check(unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }).map(drop)
}
