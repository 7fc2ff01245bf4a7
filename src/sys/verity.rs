//! fs-verity, where the file system has it: the kernel then checks every read of a file that can never change again.
//!
//! Source: Linux include/uapi/linux/fsverity.h.

use super::check;
use crate::ids::Digest;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOW('f', 133, struct fsverity_enable_arg)`, whose size is 128.
const FS_IOC_ENABLE_VERITY: libc::Ioctl = 0x4080_6685;
/// `_IOWR('f', 134, struct fsverity_digest)`, whose size without the digest is 4.
const FS_IOC_MEASURE_VERITY: libc::Ioctl = 0xC004_6686u32 as libc::Ioctl;

const SHA256: u16 = 1;
const BLOCK_SIZE: u32 = 4096;

#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

#[repr(C)]
struct DigestArg {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

const _: () = assert!(size_of::<EnableArg>() == 128);
const _: () = assert!(size_of::<DigestArg>() == 36);

/// What became of the wish to have a file guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verity {
    Enabled,
    /// The kernel or the file system has no fs-verity.
    Unsupported,
}

/// Switches fs-verity on: SHA-256, 4 KiB blocks, no salt.
///
/// Shape: `file` is open read-only and nobody has it open for writing (`ETXTBSY` else).
pub fn enable(file: &impl AsFd) -> io::Result<Verity> {
    let arg = EnableArg {
        version: 1,
        hash_algorithm: u32::from(SHA256),
        block_size: BLOCK_SIZE,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: `arg` lives across the call, has the layout of struct fsverity_enable_arg (size asserted above), and both its pointers are null
    // with size zero.
    match check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_ENABLE_VERITY, &arg) }) {
        Ok(_) => Ok(Verity::Enabled),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(Verity::Unsupported),
            Some(libc::EEXIST) => Ok(Verity::Enabled),
            _ => Err(error),
        },
    }
}

/// Whether the kernel checks every read of `file`; `false` also where that cannot be found out.
pub fn is_enforced(file: &impl AsFd) -> bool {
    measure(file).is_ok_and(|digest| digest.is_some())
}

/// The digest that the kernel enforces for `file`; `None` where it enforces none of our kind.
pub fn measure(file: &impl AsFd) -> io::Result<Option<Digest>> {
    let mut arg = DigestArg {
        algorithm: 0,
        size: 32,
        digest: [0; 32],
    };
    // SAFETY: `arg` lives across the call; the kernel stores at most the `size` (32) bytes of digest that it is told there is room for.
    match check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_MEASURE_VERITY, &mut arg) }) {
        Ok(_) if arg.algorithm == SHA256 && arg.size == 32 => Ok(Some(Digest(arg.digest))),
        Ok(_) => Ok(None),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODATA | libc::EOVERFLOW) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_measured_as_unguarded() {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        assert_eq!(measure(&file).expect("an answer"), None);
    }
}
