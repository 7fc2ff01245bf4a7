//! The one device-mapper ioctl that our library for the others lacks.
//!
//! Source: Linux include/uapi/linux/dm-ioctl.h and drivers/md/dm-ioctl.c, `get_target_version`; it came with Linux 5.4.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOWR(0xfd, 17, struct dm_ioctl)`.
const DM_GET_TARGET_VERSION: libc::Ioctl = 0xC138_FD11u32 as libc::Ioctl;
/// The interface that has it.
const INTERFACE: [u32; 3] = [4, 41, 0];

/// Bytes of a target's name, the final zero included. Source: `DM_MAX_TYPE_NAME`.
const KIND_SIZE: usize = 16;
const HEADER_SIZE: usize = 312;

/// `struct dm_ioctl`, and room for one `struct dm_target_versions` with its name behind it.
#[repr(C)]
struct Request {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
    next: u32,
    found: [u32; 3],
    found_name: [u8; 48],
}

const _: () = assert!(std::mem::offset_of!(Request, name) == 48);
const _: () = assert!(std::mem::offset_of!(Request, next) == HEADER_SIZE);
const _: () = assert!(size_of::<Request>() == HEADER_SIZE + 64);

/// The version of a target type; the kernel loads its module if it has to.
///
/// Shape: `control` is `/dev/mapper/control`.
/// Errors: `EINVAL` if there is no such target.
pub fn target_version(control: &impl AsFd, kind: &str) -> io::Result<[u32; 3]> {
    let mut request = Request {
        version: INTERFACE,
        data_size: size_of::<Request>() as u32,
        data_start: HEADER_SIZE as u32,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
        next: 0,
        found: [0; 3],
        found_name: [0; 48],
    };
    if kind.len() >= KIND_SIZE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..kind.len()].copy_from_slice(kind.as_bytes());
    // SAFETY: `request` lives across the call, begins with a struct dm_ioctl (layout asserted above), and the kernel reads and writes no more
    // than the `data_size` bytes that it is told there are.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), DM_GET_TARGET_VERSION, &mut request) })?;
    Ok(request.found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_control_device_says_so() {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        assert_eq!(target_version(&file, "linear").unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(
            target_version(&file, "a-name-of-more-bytes").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
