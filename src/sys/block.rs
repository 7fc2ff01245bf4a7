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

/// Writes back what the kernel holds for the device, without a flush. Errors: also of what it has tried since `device` was opened.
pub fn write_back(device: &impl AsFd) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no pointers; a range from 0 of length 0 is the whole device (sync_file_range(2)).
    check(unsafe { libc::sync_file_range(device.as_fd().as_raw_fd(), 0, 0, all) })?;
    Ok(())
}
