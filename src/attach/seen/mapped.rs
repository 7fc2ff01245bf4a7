//! What device-mapper has of one image now.
//!
//! Refuses to change anything. Invariant: asking for one image costs the same with one attached as with a thousand: a walk over all loop
//! devices is made only where something was left half done.

use crate::attach::AttachError;
use crate::attach::below::{self, Slave};
use crate::attach::mode::Mode;
use crate::attach::names::{DeviceId, LoopId};
use crate::ids::{ImageId, StoreId};
use crate::kernel::dm::{DevNo, Dm, Info, SnapshotStatus};
use crate::kernel::mounts::{self, Mount};
use crate::kernel::{KernelError, loops};
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
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSeen {
    pub device: PathBuf,
    pub number: (u32, u32),
    pub read_only: bool,
    pub open_count: u32,
    /// Its maker came to the end.
    pub is_whole: bool,
    /// Of its head.
    pub snapshot: Option<SnapshotStatus>,
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
        }
    }

    /// `half_done`: a verb on the image died, so that there may be loops on which nothing stands.
    pub fn look(dm: &Dm, store: StoreId, id: ImageId, half_done: bool, mounts: &Mounts) -> Result<MappedSeen, AttachError> {
        let mut seen = MappedSeen::of(id);
        let (image, origin) = (DeviceId::Image(id), DeviceId::Origin(id));
        let top = dm.info(&image.uuid(store))?;
        let below = dm.info(&origin.uuid(store))?;
        seen.has_origin = below.is_some();
        if let Some(info) = &top {
            let snapshot = below.is_some().then(|| dm.snapshot_status(&image.uuid(store))).and_then(Result::ok);
            seen.image = Some(ImageSeen::of(info, snapshot));
            seen.mounts = mounts_of(info, mounts)?;
        }
        let all: Vec<Slave> = [&top, &below]
            .into_iter()
            .flatten()
            .flat_map(|info| below::slaves(info.device))
            .collect();
        let is_base = |found: &DeviceId| found.is_shared();
        seen.base = all.iter().find_map(|slave| match slave {
            Slave::Mapped(name) => below::device_id(name, store).filter(is_base),
            _ => None,
        });
        let head = LoopId::Head(id).name(store);
        seen.heads = match half_done || (top.is_none() && below.is_some()) {
            true => loops::find(|name| name == head)?
                .into_iter()
                .map(|found| (found.number, head.clone()))
                .collect(),
            false => {
                let numbers = all.iter().filter_map(|slave| match slave {
                    Slave::Loop(number) => Some(*number),
                    _ => None,
                });
                let ours = |number: &u32| loops::name_of(*number).as_ref() == Some(&head);
                numbers.filter(ours).map(|number| (number, head.clone())).collect()
            }
        };
        Ok(seen)
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
    fn of(info: &Info, snapshot: Option<SnapshotStatus>) -> ImageSeen {
        ImageSeen {
            device: device_path(&info.name),
            number: (info.device.major, info.device.minor),
            read_only: info.read_only,
            open_count: info.open_count,
            is_whole: info.has_table,
            snapshot,
        }
    }
}

/// What is mounted, read once and only if somebody asks.
#[derive(Debug, Default)]
pub struct Mounts(OnceCell<Vec<Mount>>);

impl Mounts {
    pub fn all(&self) -> Result<&[Mount], KernelError> {
        if let Some(known) = self.0.get() {
            return Ok(known);
        }
        let found = mounts::list()?;
        Ok(self.0.get_or_init(|| found))
    }
}

/// Where the node of a device is.
pub fn device_path(name: &str) -> PathBuf {
    PathBuf::from("/dev/mapper").join(name)
}

fn mounts_of(info: &Info, mounts: &Mounts) -> Result<Vec<PathBuf>, KernelError> {
    // Nobody has it open: it is not mounted.
    if info.open_count == 0 {
        return Ok(Vec::new());
    }
    let DevNo { major, minor } = info.device;
    let here = mounts.all()?.iter().filter(|m| (m.major, m.minor) == (major, minor));
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
