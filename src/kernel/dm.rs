//! Device-mapper: devices made of tables, told apart by UUID.
//!
//! Has not heard of deltas or images: names and UUIDs are strings that the caller chose. Invariant: everything is asked for and changed by
//! UUID, so that a device of somebody else's which has our name is never touched; such a one is an error that says whose it is.

mod node;
mod probe;
mod table;

pub use probe::Support;
pub use table::{DevNo, Line, MAX_TARGETS, Persistence, SnapshotStatus, Table, TableError, Target};

use super::{KernelError, Patience};
use crate::sys;
use crate::sys::dm::Spec;
use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid, errors};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const CONTROL: &str = "/dev/mapper/control";
/// The control device's number. Source: Linux `include/linux/miscdevice.h`, `MAPPER_CTRL_MINOR`.
const CONTROL_NUMBER: (u64, u64) = (10, 236);

/// The way to the kernel's device-mapper; a clone is the same way.
#[derive(Clone)]
pub struct Dm {
    dm: Arc<DM>,
}

/// Opened once by this process.
static OPENED: OnceLock<Dm> = OnceLock::new();

/// A device in the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub uuid: Option<String>,
    pub device: DevNo,
}

/// What the kernel says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub name: String,
    pub device: DevNo,
    /// Mounts, devices on top, and processes that have it open.
    pub open_count: u32,
    pub read_only: bool,
    pub suspended: bool,
    /// Without one it was never finished: its maker died between two steps.
    pub has_table: bool,
}

/// What a new device is to be.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    pub read_only: bool,
    /// Nobody but us looks into it: udev's rules leave it alone.
    pub internal: bool,
}

/// How much a suspend waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspend {
    /// Requests that are queued are sent down first.
    pub flush: bool,
    /// The file system above is frozen, and what it holds back is written.
    pub freeze: bool,
}

/// A name or a UUID that somebody else has.
#[derive(Debug, thiserror::Error)]
#[error("{name} is a device with the UUID {uuid:?}, wanted {want:?}: it is not touched")]
struct Taken {
    name: String,
    uuid: String,
    want: String,
}

impl Dm {
    /// What [`Dm::open`] has opened before.
    pub fn opened() -> Option<Dm> {
        OPENED.get().cloned()
    }

    /// Opens the control device, or takes it as it was opened before; makes its node where neither udev nor devtmpfs did.
    pub fn open() -> Result<Dm, KernelError> {
        if let Some(opened) = Dm::opened() {
            return Ok(opened);
        }
        let failed = |cause: io::Error| KernelError::new("open", CONTROL, cause);
        match File::open(CONTROL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_control().map_err(failed)?,
            Err(error) => return Err(failed(error)),
            Ok(_) => {}
        }
        File::open(CONTROL).map_err(failed)?;
        let dm = Arc::new(DM::new().map_err(|error| failed(cause(error)))?);
        Ok(OPENED.get_or_init(|| Dm { dm }).clone())
    }

    fn control(&self) -> &File {
        self.dm.file()
    }

    /// All devices of the machine. One that goes away meanwhile is left out.
    pub fn list(&self) -> Result<Vec<Listed>, KernelError> {
        let all = self
            .dm
            .list_devices()
            .map_err(|e| KernelError::new("list the devices of", CONTROL, cause(e)))?;
        let mut found = Vec::with_capacity(all.len());
        for (name, device, _) in all {
            match self.dm.device_info(&DevId::Name(&name)) {
                Ok(info) => found.push(Listed {
                    name: name.to_string(),
                    uuid: info.uuid().map(ToString::to_string),
                    device: dev_no(device),
                }),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(KernelError::new("ask for", name.to_string(), cause(error))),
            }
        }
        Ok(found)
    }

    /// One ioctl. `None`: there is no such device.
    pub fn info(&self, uuid: &str) -> Result<Option<Info>, KernelError> {
        match self.dm.device_info(&by_uuid(uuid)?) {
            Ok(info) => Ok(Some(describe(&info))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(KernelError::new("ask for", uuid, cause(error))),
        }
    }

    /// Makes a device with a table and switches it on; undone if a step fails. Has no node yet: see [`Dm::make_node`].
    ///
    /// Errors: of the kind `AlreadyExists` for a name or UUID that a device has, whoever made that.
    pub fn create(&self, new: &New, table: &Table) -> Result<DevNo, KernelError> {
        let name = DmName::new(new.name).map_err(|e| KernelError::new("name a device", new.name, cause(e)))?;
        let (id, uuid) = (by_uuid(new.uuid)?, parse_uuid(new.uuid)?);
        let made = match self.dm.device_create(name, Some(uuid), DmOptions::default()) {
            Ok(info) => dev_no(info.device()),
            Err(error) => {
                let taken = if errno(&error) == Some(libc::EBUSY) {
                    self.taken(new)
                } else {
                    None
                };
                return Err(KernelError::new("make device", new.name, taken.unwrap_or_else(|| cause(error))));
            }
        };
        let on = self
            .load(new.uuid, table, new.read_only)
            .and_then(|()| self.resume(new.uuid, new.internal));
        if let Err(error) = on {
            if let Err(left) = self.dm.device_remove(&id, options(true)) {
                tracing::warn!(uuid = new.uuid, error = %left, "a half made device stays");
            }
            return Err(error);
        }
        Ok(made)
    }

    /// Who has what a new device wanted.
    fn taken(&self, new: &New) -> Option<io::Error> {
        let ids = [DevId::Name(DmName::new(new.name).ok()?), by_uuid(new.uuid).ok()?];
        let holder = ids.iter().find_map(|id| self.dm.device_info(id).ok())?;
        let text = |text: Option<String>| text.unwrap_or_default();
        let taken = Taken {
            name: text(holder.name().map(ToString::to_string)),
            uuid: text(holder.uuid().map(ToString::to_string)),
            want: new.uuid.into(),
        };
        Some(io::Error::new(io::ErrorKind::AlreadyExists, taken))
    }

    /// Puts a table beside the live one; the next [`Dm::resume`] swaps them.
    pub fn load(&self, uuid: &str, table: &Table, read_only: bool) -> Result<(), KernelError> {
        let spec = |line: &Line| Spec {
            start: line.start,
            len: line.len,
            kind: line.target.kind(),
            params: line.target.params(),
        };
        parse_uuid(uuid)?;
        sys::dm::load_table(self.control(), uuid, read_only, table.lines().iter().map(spec))
            .map_err(|e| KernelError::new("load a table into", uuid, e))
    }

    /// Holds back what is read and written from now on, until [`Dm::resume`].
    pub fn suspend(&self, uuid: &str, how: Suspend) -> Result<(), KernelError> {
        let mut flags = DmFlags::DM_SUSPEND;
        flags.set(DmFlags::DM_NOFLUSH, !how.flush);
        flags.set(DmFlags::DM_SKIP_LOCKFS, !how.freeze);
        self.dm
            .device_suspend(&by_uuid(uuid)?, DmOptions::default().set_flags(flags))
            .map(drop)
            .map_err(|e| KernelError::new("suspend", uuid, cause(e)))
    }

    /// Goes on, with the table that was loaded last.
    pub fn resume(&self, uuid: &str, internal: bool) -> Result<(), KernelError> {
        self.dm
            .device_suspend(&by_uuid(uuid)?, options(internal))
            .map(drop)
            .map_err(|e| KernelError::new("resume", uuid, cause(e)))
    }

    /// Removes a device; one that is not there is fine.
    ///
    /// Errors: busy (see [`KernelError::is_busy`]) if it is still in use after `patience`, or was opened again at the last moment.
    pub fn remove(&self, uuid: &str, patience: Duration) -> Result<(), KernelError> {
        // Asked first, as the library tries a busy removal again for nearly a second whatever we want.
        self.await_unused(uuid, patience)?;
        match self.dm.device_remove(&by_uuid(uuid)?, options(true)) {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(KernelError::new("remove", uuid, cause(error))),
        }
    }

    /// Waits until nobody has the device open; the last close has written what the kernel held back for it. One that is not there is fine.
    ///
    /// Errors: busy if it is still in use after `patience`.
    pub fn await_unused(&self, uuid: &str, patience: Duration) -> Result<(), KernelError> {
        let mut patience = Patience::new(patience);
        while self.info(uuid)?.is_some_and(|info| info.open_count > 0) {
            if !patience.pause() {
                return Err(KernelError::new("remove", uuid, io::Error::from_raw_os_error(libc::EBUSY)));
            }
        }
        Ok(())
    }

    /// The live table. Errors: also for one with targets that we do not use.
    pub fn table(&self, uuid: &str) -> Result<Table, KernelError> {
        let failed = |cause| KernelError::new("read the table of", uuid, cause);
        let (_, lines) = self
            .dm
            .table_status(&by_uuid(uuid)?, DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE))
            .map_err(|e| failed(cause(e)))?;
        let line = |(start, len, kind, params): &(u64, u64, String, String)| match Target::parse(kind, params) {
            Some(target) => Ok(Line {
                start: *start,
                len: *len,
                target,
            }),
            None => Err(TableError::Line {
                text: format!("{start} {len} {kind} {params}"),
            }),
        };
        let lines: Result<Vec<Line>, TableError> = lines.iter().map(line).collect();
        lines.and_then(Table::new).map_err(|e| failed(io::Error::other(e)))
    }

    /// How a device of one snapshot target does. Nothing is written for the answer.
    pub fn snapshot_status(&self, uuid: &str) -> Result<SnapshotStatus, KernelError> {
        let failed = |cause| KernelError::new("read the status of", uuid, cause);
        let (_, lines) = self
            .dm
            .table_status(&by_uuid(uuid)?, DmOptions::default().set_flags(DmFlags::DM_NOFLUSH))
            .map_err(|e| failed(cause(e)))?;
        match lines.as_slice() {
            [(_, _, kind, status)] if kind == "snapshot" => status.parse().map_err(|e: TableError| failed(io::Error::other(e))),
            _ => Err(failed(io::Error::other("it is not one snapshot"))),
        }
    }

    /// `/dev/mapper/<name>`: made, or udev's waited for.
    pub fn make_node(&self, name: &str, device: DevNo) -> Result<PathBuf, KernelError> {
        node::make(name, device).map_err(|e| KernelError::new("make the node", node::path(name), e))
    }

    /// Removes a node that [`Dm::make_node`] made. One whose name a device has stays, and one that is not there is fine.
    pub fn remove_node(&self, name: &str) -> Result<(), KernelError> {
        let id = DmName::new(name).map_err(|e| KernelError::new("name a device", name, cause(e)))?;
        match self.dm.device_info(&DevId::Name(id)) {
            Err(error) if is_missing(&error) => node::remove(name).map_err(|e| KernelError::new("remove the node", node::path(name), e)),
            Err(error) => Err(KernelError::new("ask for", name, cause(error))),
            Ok(_) => Ok(()),
        }
    }
}

fn make_control() -> io::Result<()> {
    fs::create_dir_all(node::DIR)?;
    let number = makedev(CONTROL_NUMBER.0, CONTROL_NUMBER.1);
    match mknod(Path::new(CONTROL), SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What udev is told. A clone shows the same file system as its siblings, so that no link by its UUID may lead to it instead of to the
/// machine's own disk.
fn options(internal: bool) -> DmOptions {
    if internal {
        DmOptions::private()
    } else {
        DmOptions::default().set_udev_flags(DmUdevFlags::DM_UDEV_LOW_PRIORITY_FLAG)
    }
}

fn parse_uuid(uuid: &str) -> Result<&DmUuid, KernelError> {
    DmUuid::new(uuid).map_err(|e| KernelError::new("look up the UUID", uuid, cause(e)))
}

fn by_uuid(uuid: &str) -> Result<DevId<'_>, KernelError> {
    parse_uuid(uuid).map(DevId::Uuid)
}

fn dev_no(device: devicemapper::Device) -> DevNo {
    DevNo {
        major: device.major,
        minor: device.minor,
    }
}

fn describe(info: &DeviceInfo) -> Info {
    Info {
        name: info.name().map(ToString::to_string).unwrap_or_default(),
        device: dev_no(info.device()),
        open_count: u32::try_from(info.open_count()).unwrap_or(0),
        read_only: info.flags().contains(DmFlags::DM_READONLY),
        suspended: info.flags().contains(DmFlags::DM_SUSPEND),
        has_table: info.flags().contains(DmFlags::DM_ACTIVE_PRESENT),
    }
}

fn errno(error: &DmError) -> Option<i32> {
    match error {
        DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => Some(**errno as i32),
        _ => None,
    }
}

fn is_missing(error: &DmError) -> bool {
    errno(error) == Some(libc::ENXIO)
}

/// The library's errors stop here.
fn cause(error: DmError) -> io::Error {
    errno(&error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
