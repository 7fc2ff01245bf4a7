//! What device-mapper has of one image now.
//!
//! Refuses to change anything. Invariant: asking for one image costs the same with one attached as with a thousand: a walk over all loop
//! devices is made only where something was left half done.

use super::covered;
use crate::attach::AttachError;
use crate::attach::below::{self, Slave};
use crate::attach::mode::Mode;
use crate::attach::names::{DeviceId, LoopId};
use crate::ids::{ImageId, StoreId};
use crate::kernel::KernelError;
use crate::kernel::dm::{DevNo, Dm, Info, SnapshotStatus};
use crate::kernel::loops::{self, LoopDevice};
use crate::kernel::mounts::{self, Mount};
use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

/// One image, as device-mapper has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedSeen {
    pub id: ImageId,
    /// Its top.
    pub image: Option<ImageSeen>,
    pub has_origin: bool,
    /// Loops of its head, by number and name: one, or more after accidents.
    pub heads: Vec<(u32, String)>,
    /// The shared device that it stands on.
    pub base: Option<DeviceId>,
    /// Where its file system is mounted, oldest first.
    pub mounts: Vec<PathBuf>,
    /// One of those, with something else mounted over it.
    pub covered: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSeen {
    pub device: PathBuf,
    pub number: (u32, u32),
    pub read_only: bool,
    pub open_count: u32,
    /// Its maker came to the end.
    pub is_whole: bool,
}

impl MappedSeen {
    /// Nothing.
    pub fn of(id: ImageId) -> MappedSeen {
        MappedSeen {
            id,
            image: None,
            has_origin: false,
            heads: Vec::new(),
            base: None,
            mounts: Vec::new(),
            covered: None,
        }
    }

    /// `half_done`: a verb on the image died, so that there may be loops on which nothing stands.
    pub fn look(dm: &Dm, store: StoreId, id: ImageId, half_done: bool, around: &Around) -> Result<MappedSeen, AttachError> {
        let mut seen = MappedSeen::of(id);
        let top = dm.info(&DeviceId::Image(id).uuid(store))?;
        let below = dm.info(&DeviceId::Origin(id).uuid(store))?;
        seen.has_origin = below.is_some();
        if let Some(info) = &top {
            seen.image = Some(ImageSeen::of(info));
            seen.mounts = mounts_of(info, around)?;
            if !seen.mounts.is_empty() {
                seen.covered = covered(around.mounts()?, |mount| mount.device() == info.device);
            }
        }
        let slaves = |info: &Option<Info>| info.as_ref().map_or(Vec::new(), |info| below::slaves(info.device));
        let (under_top, under_origin) = (slaves(&top), slaves(&below));
        let is_base = |slave: &Slave| match slave {
            Slave::Mapped(name) => below::device_id(name, store).filter(|found| found.is_shared()),
            _ => None,
        };
        // Without a head the image stands on it itself.
        let on_base = if below.is_some() { &under_origin } else { &under_top };
        seen.base = on_base.iter().find_map(is_base);
        let head = LoopId::Head(id).name(store);
        let numbers: Vec<u32> = match half_done || (top.is_none() && below.is_some()) {
            true => around.loops_named(&head)?,
            // Whoever frees one asks for its name.
            false => under_top.iter().filter_map(Slave::number).collect(),
        };
        seen.heads = numbers.into_iter().map(|number| (number, head.clone())).collect();
        Ok(seen)
    }

    /// How the head does.
    pub fn snapshot(&self, dm: &Dm, store: StoreId) -> Option<SnapshotStatus> {
        let there = self.attached().is_some() && self.has_origin;
        there
            .then(|| dm.snapshot_status(&DeviceId::Image(self.id).uuid(store)))
            .and_then(Result::ok)
    }

    /// The device, if all of it is there.
    pub fn attached(&self) -> Option<&ImageSeen> {
        self.image.as_ref().filter(|image| image.is_whole)
    }

    pub fn is_nothing(&self) -> bool {
        self.image.is_none() && !self.has_origin && self.heads.is_empty()
    }

    /// `None` where the device below does not say: there is none.
    pub fn mode(&self) -> Option<Mode> {
        match self.base? {
            DeviceId::Lower(_) => Some(Mode::Flat),
            DeviceId::Level(_) => Some(Mode::Stack),
            _ => None,
        }
    }
}

impl ImageSeen {
    fn of(info: &Info) -> ImageSeen {
        ImageSeen {
            device: device_path(&info.name),
            number: (info.device.major, info.device.minor),
            read_only: info.read_only,
            open_count: info.open_count,
            is_whole: info.has_table,
        }
    }
}

/// What is mounted, and all loop devices: each read once, and only if somebody asks.
#[derive(Debug, Default)]
pub struct Around {
    mounts: OnceCell<Vec<Mount>>,
    loops: OnceCell<Vec<LoopDevice>>,
}

impl Around {
    pub fn mounts(&self) -> Result<&[Mount], KernelError> {
        known(&self.mounts, mounts::list)
    }

    pub fn loops(&self) -> Result<&[LoopDevice], KernelError> {
        known(&self.loops, loops::list)
    }

    fn loops_named(&self, name: &str) -> Result<Vec<u32>, KernelError> {
        let numbers = |found: &[LoopDevice]| {
            let named = found.iter().filter(|found| found.name.as_deref() == Some(name));
            named.map(|found| found.number).collect()
        };
        match self.loops.get() {
            Some(all) => Ok(numbers(all)),
            None => loops::find(|found| found == name).map(|found| numbers(&found)),
        }
    }
}

fn known<T>(cell: &OnceCell<Vec<T>>, list: impl FnOnce() -> Result<Vec<T>, KernelError>) -> Result<&[T], KernelError> {
    match cell.get() {
        Some(known) => Ok(known),
        None => list().map(|found| cell.get_or_init(|| found).as_slice()),
    }
}

/// Where the node of a device is.
pub fn device_path(name: &str) -> PathBuf {
    PathBuf::from("/dev/mapper").join(name)
}

fn mounts_of(info: &Info, around: &Around) -> Result<Vec<PathBuf>, KernelError> {
    // Nobody has it open: it is not mounted.
    if info.open_count == 0 {
        return Ok(Vec::new());
    }
    let DevNo { major, minor } = info.device;
    let here = around.mounts()?.iter().filter(|m| (m.major, m.minor) == (major, minor));
    Ok(here.map(|m| m.dir.clone()).collect())
}

/// The kernel's device-mapper, where there is one: whether it can do all that our tables ask is [`Dm::probe`]'s to say.
///
/// `None` also where it cannot be asked and has no device of ours, as in a container.
///
/// Errors: it cannot be asked, and has devices of ours: nobody knows what is attached.
pub fn device_mapper() -> Result<Option<Dm>, KernelError> {
    if let Some(opened) = Dm::opened() {
        return Ok(Some(opened));
    }
    let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
    let is_there = devices.lines().any(|line| line.ends_with(" device-mapper"));
    match is_there.then(Dm::open).transpose() {
        Err(error) if !may_have_ours() => {
            tracing::debug!(%error, "no way to device-mapper, and nothing of ours in it");
            Ok(None)
        }
        other => other,
    }
}

/// Whether a device-mapper device bears a UUID of ours, of whichever store, by what everybody may read.
fn may_have_ours() -> bool {
    let Ok(devices) = fs::read_dir("/sys/block") else { return true };
    let uuid = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("dm/uuid"));
    devices
        .filter_map(Result::ok)
        .any(|entry| uuid(entry).is_ok_and(|uuid| uuid.starts_with("BLOCKBT-")))
}
