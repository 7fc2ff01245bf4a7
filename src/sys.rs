//! Calls that no safe library has: loop devices in one step, device-mapper's targets, the size of a block device, fs-verity, early writeback.
//!
//! The one home of `unsafe`. Refuses to know why a call is made: no names, no policy, no retries. Invariant: every function here is safe to
//! call with any arguments; what the kernel dislikes comes back as an `io::Error`.
#![allow(unsafe_code)]

pub mod block;
pub mod dm;
pub mod loops;
pub mod verity;
pub mod writeback;

use std::io;

/// The result of an ioctl: negative means `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
