//! What is mounted where, in this mount namespace; mounting and unmounting.
//!
//! Refuses to know what a device holds. Invariant: paths come back as the bytes they are, the kernel's octal escapes undone.

use super::dm::DevNo;
use super::{KernelError, Patience};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    /// Device number of the file system.
    pub major: u32,
    pub minor: u32,
    pub dir: PathBuf,
    pub file_system: String,
    pub source: PathBuf,
    pub read_only: bool,
}

impl Mount {
    pub fn device(&self) -> DevNo {
        DevNo {
            major: self.major,
            minor: self.minor,
        }
    }
}

/// Everything that is mounted, oldest first.
pub fn list() -> Result<Vec<Mount>, KernelError> {
    // As a file of proc it has no size: read in pieces that are large from the start.
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(MOUNTINFO)
        .and_then(|file| file.take(u64::MAX).read_to_end(&mut bytes))
        .map(|_| parse(&bytes))
        .map_err(|e| KernelError::new("read", MOUNTINFO, e))
}

/// Lines that are not as `proc_pid_mountinfo(5)` has them are left out.
pub fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /dir rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_string);
    let dash = 6 + fields.get(6..)?.iter().position(|f| *f == b"-")?;
    let (major, minor) = std::str::from_utf8(fields[2]).ok()?.split_once(':')?;
    let read_only = |options: &[u8]| options.split(|b| *b == b',').any(|o| o == b"ro");
    Some(Mount {
        id: text(fields[0])?.parse().ok()?,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        dir: unescape(fields[4]),
        file_system: text(fields.get(dash + 1)?)?,
        source: unescape(fields.get(dash + 2)?),
        read_only: read_only(fields[5]) || fields.get(dash + 3).is_some_and(|options| read_only(options)),
    })
}

/// `\040` is a blank: the kernel escapes blank, tab, newline and backslash so.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(d) if first == b'\\' && d[0] <= b'3' => {
                out.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Mounts a block device's file system. No device nodes are hidden and no bits ignored: it is a root file system.
pub fn mount_device(device: &Path, dir: &Path, file_system: &str, options: Option<&str>, read_only: bool) -> Result<(), KernelError> {
    let mut flags = MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_RDONLY, read_only);
    mount(Some(device), dir, Some(file_system), flags, options).map_err(|e| KernelError::new("mount a file system at", dir, e))
}

/// Unmounts what was mounted last at `dir`; one that is busy is tried again for `patience`.
pub fn unmount(dir: &Path, patience: Duration) -> Result<(), KernelError> {
    let mut patience = Patience::new(patience);
    loop {
        match umount2(dir, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EBUSY) if patience.pause() => {}
            Err(error) => return Err(KernelError::new("unmount", dir, error)),
        }
    }
}

/// Takes a mount out of sight at once; it ends with its last user.
pub fn unmount_lazily(dir: &Path) -> Result<(), KernelError> {
    umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|e| KernelError::new("unmount", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_undone() {
        let line = b"36 35 7:12 / /mnt/a\\040b\\134c\\011\\012 rw,noatime shared:1 master:2 - ext4 /dev/loop12 rw,errors=continue\n";
        let want = Mount {
            id: 36,
            major: 7,
            minor: 12,
            dir: PathBuf::from("/mnt/a b\\c\t\n"),
            file_system: "ext4".into(),
            source: PathBuf::from("/dev/loop12"),
            read_only: false,
        };
        assert_eq!(parse(line), [want]);
    }

    #[test]
    fn a_read_only_file_system_under_a_writable_mount_is_read_only() {
        for (line, want) in [
            ("1 0 7:1 / /a rw - ext4 /dev/loop1 ro", true),
            ("1 0 7:1 / /a ro - ext4 /dev/loop1 rw", true),
            ("1 0 7:1 / /a rw - ext4 /dev/loop1 rw,errors=remount-ro", false),
        ] {
            assert_eq!(parse(line.as_bytes())[0].read_only, want, "{line}");
        }
    }

    #[test]
    fn nonsense_is_left_out() {
        for line in [
            "",
            "1",
            "1 2 3 4 5 6",
            "1 0 7:1 / /a rw ext4 /dev/loop1 rw",
            "x 0 7:1 / /a rw - ext4 d rw",
            "1 0 71 / /a rw - e d rw",
            "1 0 7:1 / /a rw -",
        ] {
            assert_eq!(parse(line.as_bytes()), [], "{line}");
        }
        assert_eq!(unescape(b"\\777\\04"), PathBuf::from("\\777\\04"));
    }

    #[test]
    fn this_machine_has_a_root_and_proc() {
        let all = list().expect("mountinfo can be read");
        assert!(
            all.iter().any(|m| m.dir == Path::new("/")) && all.iter().any(|m| m.file_system == "proc"),
            "{all:?}"
        );
    }
}
