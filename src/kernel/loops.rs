//! Loop devices: one file, one block device, made in one step and found again by name.
//!
//! Refuses to know what the names mean. Invariant: a device is never configured in two steps, so that nobody sees it half made.

use super::dm::DevNo;
use super::{KernelError, Patience};
use crate::sys;
use crate::units::Bytes;
use loopdev::LoopControl;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const SYS_BLOCK: &str = "/sys/block";
const CONTROL: &str = "/dev/loop-control";
/// How long we race others for a free device. Somebody wins every race, so that only a crowd makes us wait at all.
const RACE_PATIENCE: Duration = Duration::from_secs(20);
/// Races that are lost before we ask for a device that the kernel has not made yet: a free one that somebody has claimed, as a table over it
/// does, is offered for ever and never had.
const RACES: u32 = 24;
/// The loop driver's. Source: Linux include/uapi/linux/major.h.
const LOOP_MAJOR: u32 = 7;

/// A loop device in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    pub number: u32,
    /// Its name as `losetup` shows it; `None` if the file beneath no longer answers.
    pub name: Option<String>,
    /// Where the file beneath was when last seen by the kernel.
    pub backing: PathBuf,
    /// Device number of the file system that the file is in.
    pub file_device: Option<u64>,
    /// With `file_device` it says which file that is, whatever became of its name.
    pub file_inode: Option<u64>,
    /// It is on its way out: freed when its last user closes it.
    pub dying: bool,
    pub direct_io: bool,
    pub read_only: bool,
}

impl LoopDevice {
    pub fn path(&self) -> PathBuf {
        node(self.number)
    }
}

/// What to put beneath a device.
#[derive(Debug, Clone)]
pub struct Attach<'a> {
    pub file: &'a Path,
    /// At most 63 bytes.
    pub name: &'a str,
    pub read_only: bool,
    /// No second copy in the page cache, for a head; where the host cannot, the device is buffered, and says so.
    /// What many devices share, a sealed delta, is better buffered: read once and cached once.
    pub direct_io: bool,
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn open_file(path: &Path, read_only: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path)
}

/// Makes a loop device with 512-byte sectors over a file. Errors: also when others took every free device for 20 s.
pub fn attach(wanted: &Attach) -> Result<LoopDevice, KernelError> {
    let file = open_file(wanted.file, wanted.read_only).map_err(|e| KernelError::new("open", wanted.file, e))?;
    attach_open(&file, wanted)
}

/// As [`attach`], over a file that the caller has open, in the mode that is wanted; its path is only for errors.
pub fn attach_open(file: &File, wanted: &Attach) -> Result<LoopDevice, KernelError> {
    let (made, device) = configured(file, wanted)?;
    match sys::loops::status(&device) {
        Ok(status) => Ok(described(made.number, wanted.file.into(), status)),
        Err(error) => {
            // Nobody would know of it.
            if let Err(left) = sys::loops::clear(&device) {
                tracing::warn!(number = made.number, error = %left, "a loop device that does not answer stays");
            }
            Err(KernelError::new("read back", node(made.number), error))
        }
    }
}

/// A loop device that was just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    pub number: u32,
    /// What a table names it by.
    pub device: DevNo,
}

/// As [`attach_open`], without asking the kernel what became of it: five calls where nobody else makes one.
pub fn make(file: &File, wanted: &Attach) -> Result<Made, KernelError> {
    configured(file, wanted).map(|(made, _)| made)
}

fn configured(file: &File, wanted: &Attach) -> Result<(Made, File), KernelError> {
    let control = control()?;
    let mut config = sys::loops::Config {
        name: wanted.name,
        sector_size: Bytes(512),
        read_only: wanted.read_only,
        direct_io: wanted.direct_io,
    };
    let (mut until, mut pause, mut lost) = (None, Duration::from_micros(50), 0);
    loop {
        let (number, device) = match lost {
            0..RACES => next_free(control)?,
            _ => one_more(control)?,
        };
        let made = Made {
            number,
            device: device.metadata().and_then(|data| block_number(&data)).map_err(looked(number))?,
        };
        match sys::loops::configure(&device, file, &config).map_err(|e| (e.raw_os_error(), e)) {
            Ok(()) => return Ok((made, device)),
            // Somebody else was faster.
            Err((Some(libc::EBUSY | libc::ENXIO), error)) => {
                if Instant::now() > *until.get_or_insert_with(|| Instant::now() + RACE_PATIENCE) {
                    return Err(KernelError::new("find a free loop device by", CONTROL, error));
                }
                lost += 1;
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
            }
            // Most kernels fall back by themselves where the file cannot do direct I/O in 512-byte sectors; not all do.
            Err((Some(libc::EINVAL), _)) if config.direct_io => config.direct_io = false,
            Err((_, error)) => return Err(KernelError::new("configure", node(number), error)),
        }
    }
}

/// Opened once by this process.
fn control() -> Result<&'static LoopControl, KernelError> {
    static OPENED: OnceLock<LoopControl> = OnceLock::new();
    if let Some(control) = OPENED.get() {
        return Ok(control);
    }
    let control = LoopControl::open().map_err(|e| KernelError::new("open", CONTROL, e))?;
    Ok(OPENED.get_or_init(|| control))
}

/// A free device, opened; makes its node where no udev did.
fn next_free(control: &LoopControl) -> Result<(u32, File), KernelError> {
    let found = match control.next_free() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_nodes().and_then(|()| control.next_free()),
        other => other,
    };
    found
        .and_then(|device| {
            let path = device.path().ok_or(io::ErrorKind::NotFound)?;
            let number = path.to_str().and_then(|path| path.strip_prefix("/dev/loop")?.parse().ok());
            Ok((number.ok_or(io::ErrorKind::InvalidData)?, sys::loops::opened(device)))
        })
        .map_err(|e| KernelError::new("find a free loop device by", CONTROL, e))
}

/// A device with a number that none had, opened. Another one may be faster here, too, or with the number.
fn one_more(control: &LoopControl) -> Result<(u32, File), KernelError> {
    let failed = |e| KernelError::new("add a loop device by", CONTROL, e);
    let number = numbers().map_err(failed)?.last().map_or(0, |last| last + 1);
    match control.add(number) {
        Ok(device) => return Ok((number, sys::loops::opened(device))),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_nodes().map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    open_file(&node(number), false).map(|device| (number, device)).map_err(failed)
}

/// `/dev/loopN` for each device that the kernel has and `/dev` has not.
fn make_nodes() -> io::Result<()> {
    for number in numbers()? {
        let path = node(number);
        if path.exists() {
            continue;
        }
        let text = fs::read_to_string(format!("{SYS_BLOCK}/loop{number}/dev"))?;
        let parsed = text
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = parsed.ok_or(io::ErrorKind::InvalidData)?;
        match mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn numbers() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(SYS_BLOCK)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|n| n.strip_prefix("loop")).and_then(|n| n.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The file beneath, by the kernel's account; `None` if the device is free.
fn backing(number: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("{SYS_BLOCK}/loop{number}/loop/backing_file")).ok()?;
    Some(PathBuf::from(text.strip_suffix('\n').unwrap_or(&text)))
}

fn flag(number: u32, name: &str) -> bool {
    fs::read_to_string(format!("{SYS_BLOCK}/loop{number}/loop/{name}")).is_ok_and(|text| text.trim() == "1")
}

fn inspect(number: u32) -> io::Result<LoopDevice> {
    let backing = backing(number).ok_or_else(|| io::Error::from_raw_os_error(libc::ENXIO))?;
    let status = open_file(&node(number), true).and_then(|device| sys::loops::status(&device));
    Ok(match status {
        Ok(status) => described(number, backing, status),
        // The file beneath no longer answers: what the driver itself remembers.
        Err(_) => LoopDevice {
            number,
            name: None,
            backing,
            file_device: None,
            file_inode: None,
            dying: flag(number, "autoclear"),
            direct_io: flag(number, "dio"),
            read_only: fs::read_to_string(format!("{SYS_BLOCK}/loop{number}/ro")).is_ok_and(|text| text.trim() == "1"),
        },
    })
}

fn described(number: u32, backing: PathBuf, status: sys::loops::Status) -> LoopDevice {
    LoopDevice {
        number,
        name: Some(status.name),
        backing,
        file_device: Some(status.file_device),
        file_inode: Some(status.file_inode),
        dying: status.autoclear,
        direct_io: status.direct_io,
        read_only: status.read_only,
    }
}

/// All loop devices in use. One that goes away meanwhile is left out.
pub fn list() -> Result<Vec<LoopDevice>, KernelError> {
    let numbers = numbers().map_err(|e| KernelError::new("list", SYS_BLOCK, e))?;
    Ok(numbers.into_iter().filter_map(|number| inspect(number).ok()).collect())
}

/// What the device with this number is, without a look at any other. `None`: it is free, or there is none.
pub fn get(number: u32) -> Option<LoopDevice> {
    inspect(number).ok()
}

/// The name of one device, if it is in use and answers.
pub fn name_of(number: u32) -> Option<String> {
    let device = open_file(&node(number), true).ok()?;
    sys::loops::status(&device).ok().map(|status| status.name)
}

/// The devices whose names are `wanted`: one ioctl for each device of the machine, and no more for those that are not.
pub fn find(wanted: impl Fn(&str) -> bool) -> Result<Vec<LoopDevice>, KernelError> {
    let numbers = numbers().map_err(|e| KernelError::new("list", SYS_BLOCK, e))?;
    let named = |number| {
        // A free one has no such directory: opening each of a thousand would cost more than all else.
        Path::new(&format!("{SYS_BLOCK}/loop{number}/loop")).exists().then_some(())?;
        let status = open_file(&node(number), true).and_then(|device| sys::loops::status(&device)).ok()?;
        wanted(&status.name).then_some(())?;
        Some(described(number, backing(number)?, status))
    };
    Ok(numbers.into_iter().filter_map(named).collect())
}

/// The number that a table names the device by. It is not always 7:N: a driver that was told to leave room for partitions counts otherwise.
pub fn dev_no(number: u32) -> Result<DevNo, KernelError> {
    fs::metadata(node(number))
        .and_then(|data| block_number(&data))
        .map_err(looked(number))
}

fn looked(number: u32) -> impl FnOnce(io::Error) -> KernelError {
    move |error| KernelError::new("look at", node(number), error)
}

fn block_number(data: &fs::Metadata) -> io::Result<DevNo> {
    let part = |n: u64| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    match part(major(data.rdev()))? {
        LOOP_MAJOR if data.file_type().is_block_device() => Ok(DevNo {
            major: LOOP_MAJOR,
            minor: part(minor(data.rdev()))?,
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The loop device that a table names; `None` if that is no loop device.
pub fn number_of(device: DevNo) -> Option<u32> {
    let link = (device.major == LOOP_MAJOR).then(|| fs::read_link(format!("/sys/dev/block/{device}")).ok())??;
    link.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()
}

/// Makes the device as large as its file has become.
pub fn set_capacity(number: u32) -> Result<(), KernelError> {
    open_file(&node(number), true)
        .and_then(|device| sys::loops::set_capacity(&device))
        .map_err(|e| KernelError::new("grow", node(number), e))
}

/// Writes out what the kernel holds back for the device, and has the file beneath made durable.
pub fn flush(number: u32) -> Result<(), KernelError> {
    open_file(&node(number), true)
        .and_then(|device| device.sync_all())
        .map_err(|e| KernelError::new("flush", node(number), e))
}

/// Frees the device if it still has this name, and waits until it is gone.
///
/// Errors: busy (see [`KernelError::is_busy`]) if it is mounted or claimed, in any mount namespace, and if somebody still has it open after
/// `patience`; it then goes away with its last user.
pub fn detach(number: u32, name: &str, patience: Duration) -> Result<(), KernelError> {
    // O_EXCL on a block device: nobody has it mounted or claimed, and nobody can until we close it.
    detach_by(number, name, libc::O_EXCL, patience)
}

/// As [`detach`], for a device whose file has died: one that is still claimed goes away with its last user.
pub fn detach_dead(number: u32, name: &str, patience: Duration) -> Result<(), KernelError> {
    detach_by(number, name, 0, patience)
}

/// Whether a file system, a device on top, or a program has it for itself, if it still has this name or answers no more.
pub fn is_claimed(number: u32, name: &str) -> bool {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(node(number));
    // While it is open here nobody can give the number to another file, whose owner we would be in the way of.
    let Ok(device) = open(0) else { return false };
    let is_other = match sys::loops::status(&device) {
        Ok(status) => status.name != name,
        Err(error) => error.raw_os_error() == Some(libc::ENXIO),
    };
    !is_other && open(libc::O_EXCL).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Frees the device if nobody has it in use and `ours` says so of its name; returns the name of one that was freed.
pub fn detach_unused(number: u32, ours: impl Fn(&str) -> bool, patience: Duration) -> Result<Option<String>, KernelError> {
    match open_and_free(number, |name| name.is_some_and(&ours), libc::O_EXCL, patience) {
        Err(error) if error.is_busy() => Ok(None),
        other => other,
    }
}

fn detach_by(number: u32, name: &str, flags: i32, patience: Duration) -> Result<(), KernelError> {
    open_and_free(number, |found| found.is_none_or(|found| found == name), flags, patience).map(drop)
}

/// `ours` gets no name where the file beneath no longer answers.
fn open_and_free(number: u32, ours: impl Fn(Option<&str>) -> bool, flags: i32, patience: Duration) -> Result<Option<String>, KernelError> {
    let path = node(number);
    let device = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => return Ok(None),
        other => other.map_err(|e| KernelError::new("open", path, e))?,
    };
    // As long as we have it open nobody can give the number to another file.
    let name = match sys::loops::status(&device) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        answer => answer.ok().map(|status| status.name),
    };
    if !ours(name.as_deref()) {
        return Ok(None);
    }
    free(device, number, name.as_deref(), patience).map(|()| name)
}

fn free(device: File, number: u32, name: Option<&str>, patience: Duration) -> Result<(), KernelError> {
    // Or another file's already: as soon as it is free anybody may take it.
    let is_free = |device: &File| match sys::loops::status(device) {
        Err(error) => error.raw_os_error() == Some(libc::ENXIO),
        Ok(status) => name != Some(&status.name),
    };
    match sys::loops::clear(&device) {
        Ok(()) if is_free(&device) => return Ok(()),
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
        Err(error) => return Err(KernelError::new("free", node(number), error)),
    }
    // The last close frees it, and ours may be the last.
    let before = backing(number);
    drop(device);
    let mut patience = Patience::new(patience);
    while before.is_some() && backing(number) == before {
        if !patience.pause() {
            return Err(KernelError::new(
                "wait for the last user of",
                node(number),
                io::Error::from_raw_os_error(libc::EBUSY),
            ));
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "root-tests"))]
mod tests;
