//! The loop driver's ioctls.
//!
//! Source: Linux include/uapi/linux/loop.h and drivers/block/loop.c; `LOOP_CONFIGURE` came with Linux 5.8.

use super::check;
use crate::units::Bytes;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Bytes of a loop device's name, the final zero included.
const NAME_SIZE: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_SIZE],
    crypt_name: [u8; NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopInfo64, file_name) == 56);

impl LoopInfo64 {
    const EMPTY: LoopInfo64 = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_SIZE],
        crypt_name: [0; NAME_SIZE],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// What a loop device is to be.
#[derive(Debug, Clone)]
pub struct Config<'a> {
    /// At most 63 bytes; `losetup` shows it as the file's name.
    pub name: &'a str,
    pub sector_size: Bytes,
    pub read_only: bool,
    pub direct_io: bool,
}

/// What a loop device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    /// Device number (the kernel's encoding in user space) and inode of the file beneath.
    pub file_device: u64,
    pub file_inode: u64,
    pub read_only: bool,
    pub direct_io: bool,
    /// It goes away when its last user closes it.
    pub autoclear: bool,
}

/// The device, in a handle that can be borrowed from.
pub fn opened(device: loopdev::LoopDevice) -> File {
    // SAFETY: `into_raw_fd` hands over an open descriptor that nobody else closes.
    unsafe { File::from_raw_fd(device.into_raw_fd()) }
}

/// Puts `file` beneath a free loop device, with all its settings at once.
///
/// Errors: `EBUSY` if somebody else was faster; `InvalidInput` for a name that is too long.
pub fn configure(device: &impl AsFd, file: &impl AsFd, config: &Config) -> io::Result<()> {
    let mut info = LoopInfo64::EMPTY;
    if config.name.len() >= NAME_SIZE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("loop name of {} bytes, want 63 at most", config.name.len()),
        ));
    }
    info.file_name[..config.name.len()].copy_from_slice(config.name.as_bytes());
    if config.read_only {
        info.flags |= LO_FLAGS_READ_ONLY;
    }
    if config.direct_io {
        info.flags |= LO_FLAGS_DIRECT_IO;
    }
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let raw = LoopConfig {
        fd: u32::try_from(file.as_fd().as_raw_fd()).map_err(invalid)?,
        block_size: u32::try_from(config.sector_size.0).map_err(invalid)?,
        info,
        reserved: [0; 8],
    };
    // SAFETY: `raw` lives across the call, has the layout of struct loop_config (asserted above), and is only read.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &raw) }).map(drop)
}

/// Errors: `ENXIO` if the device is free; whatever the file beneath answers to a stat, if that file's server is dead.
pub fn status(device: &impl AsFd) -> io::Result<Status> {
    let mut info = LoopInfo64::EMPTY;
    // SAFETY: `info` lives across the call and LOOP_GET_STATUS64 stores exactly one struct loop_info64 (232 bytes, asserted above).
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &mut info) })?;
    let end = info.file_name.iter().position(|b| *b == 0).unwrap_or(NAME_SIZE);
    Ok(Status {
        name: String::from_utf8_lossy(&info.file_name[..end]).into_owned(),
        file_device: info.device,
        file_inode: info.inode,
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
        direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
        autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
    })
}

/// Frees the device: at once, or when the last one who has it open closes it.
pub fn clear(device: &impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CLR_FD, 0) }).map(drop)
}

/// Makes the device as large as the file beneath is now.
pub fn set_capacity(device: &impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument and touches no memory of ours.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
}
