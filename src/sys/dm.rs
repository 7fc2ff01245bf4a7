//! The device-mapper ioctl that our library for the others lacks, and the one that it makes dear: a table of 20,000 targets as seven copies of itself.
//!
//! Source: Linux include/uapi/linux/dm-ioctl.h and drivers/md/dm-ioctl.c, `table_load` and `get_target_version`; that came with Linux 5.4.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOWR(0xfd, 17, struct dm_ioctl)`.
const DM_GET_TARGET_VERSION: libc::Ioctl = 0xC138_FD11u32 as libc::Ioctl;
/// The interface that has it.
const INTERFACE: [u32; 3] = [4, 41, 0];
/// `_IOWR(0xfd, 9, struct dm_ioctl)`.
const DM_TABLE_LOAD: libc::Ioctl = 0xC138_FD09u32 as libc::Ioctl;
const DM_READONLY_FLAG: u32 = 1;

/// Bytes of a target's name, the final zero included. Source: `DM_MAX_TYPE_NAME`.
const KIND_SIZE: usize = 16;
const HEADER_SIZE: usize = 312;
const UUID_SIZE: usize = 129;
/// Of `struct dm_target_spec`.
const SPEC_SIZE: usize = 40;

/// One target of a table, in 512-byte sectors.
#[derive(Debug)]
pub struct Spec {
    pub start: u64,
    pub len: u64,
    pub kind: &'static str,
    pub params: String,
}

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
    uuid: [u8; UUID_SIZE],
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
        uuid: [0; UUID_SIZE],
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

/// Puts a table beside the live one of the device with this UUID.
///
/// Shape: `control` is `/dev/mapper/control`; of `targets` one at a time is held.
/// Errors: the kernel's; `InvalidInput` for a UUID or a kind that does not fit.
pub fn load_table(control: &impl AsFd, uuid: &str, read_only: bool, targets: impl Iterator<Item = Spec>) -> io::Result<()> {
    let mut request = table_request(uuid, read_only, targets)?;
    // SAFETY: `request` lives across the call, begins with a struct dm_ioctl, and its `data_size` is its length, which is all that the kernel reads
    // and writes.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), DM_TABLE_LOAD, request.as_mut_ptr()) })?;
    Ok(())
}

/// A struct dm_ioctl with its struct dm_target_spec's, each with its text behind it, zero-terminated, and zeros up to a multiple of 8.
fn table_request(uuid: &str, read_only: bool, targets: impl Iterator<Item = Spec>) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    if uuid.len() >= UUID_SIZE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = Vec::with_capacity(HEADER_SIZE + targets.size_hint().0 * (SPEC_SIZE + 16));
    request.resize(HEADER_SIZE, 0);
    let mut count = 0_u32;
    for Spec { start, len, kind, params } in targets {
        if kind.len() >= KIND_SIZE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let next = (SPEC_SIZE + params.len() + 1).next_multiple_of(8);
        let end = request.len() + next;
        request.extend_from_slice(&start.to_ne_bytes());
        request.extend_from_slice(&len.to_ne_bytes());
        request.extend_from_slice(&0_i32.to_ne_bytes());
        request.extend_from_slice(&u32::try_from(next).map_err(too_long)?.to_ne_bytes());
        request.extend_from_slice(kind.as_bytes());
        request.resize(end - next + SPEC_SIZE, 0);
        request.extend_from_slice(params.as_bytes());
        request.resize(end, 0);
        count += 1;
    }
    let size = u32::try_from(request.len()).map_err(too_long)?;
    let flags = if read_only { DM_READONLY_FLAG } else { 0 };
    let numbers = [4, 0, 0, size, HEADER_SIZE as u32, count, 0, flags];
    for (field, number) in request.chunks_exact_mut(4).zip(numbers) {
        field.copy_from_slice(&number.to_ne_bytes());
    }
    let at = std::mem::offset_of!(Request, uuid);
    request[at..at + uuid.len()].copy_from_slice(uuid.as_bytes());
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_what_the_kernel_walks() {
        let target = |start, len, kind, params: &str| Spec {
            start,
            len,
            kind,
            params: params.into(),
        };
        let targets = [target(0, 8, "zero", ""), target(8, 16, "linear", "7:130 4096")];
        let request = table_request("BLOCKBT-x", true, targets.into_iter()).unwrap();
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        // Version, data_size, data_start, target_count, open_count, flags.
        let header: Vec<u32> = (0..8).map(|index| number(4 * index)).collect();
        assert_eq!(header, [4, 0, 0, 312 + 48 + 56, 312, 2, 0, 1]);
        assert_eq!(&request[176..186], b"BLOCKBT-x\0");
        let spec = |at: usize| (number(at), number(at + 8), number(at + 16), number(at + 20));
        assert_eq!((spec(312), spec(360)), ((0, 8, 0, 48), (8, 16, 0, 56)));
        assert_eq!(&request[336..360], b"zero\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&request[384..], b"linear\0\0\0\0\0\0\0\0\0\x007:130 4096\0\0\0\0\0\0");
        let long = "x".repeat(UUID_SIZE);
        assert!(table_request(&long, true, std::iter::empty()).is_err());
    }

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
