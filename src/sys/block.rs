//! Questions to any block device.

use super::check;
use crate::units::Bytes;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR(0x12, 114, size_t)`, Linux include/uapi/linux/fs.h.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272u32 as libc::Ioctl;

/// The device's size. Errors: `ENOTTY` for what is not a block device.
pub fn size(device: &impl AsFd) -> io::Result<Bytes> {
    let mut bytes = 0u64;
    // SAFETY: `bytes` lives across the call and BLKGETSIZE64 stores exactly one u64 through the pointer.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &mut bytes) })?;
    Ok(Bytes(bytes))
}
