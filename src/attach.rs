//! An image as a block device, and as a mounted file system: by device-mapper, or in user mode, where a FUSE server shows the chain and a loop
//! device sits on it.
//!
//! Refuses to know what runs above the device. Invariant: what is attached is what the kernel has, never what a file of ours says, so that
//! every verb works after anybody's `kill -9`. Devices, names and rules: `kernel-notes/attach.md`.
//!
//! Order of locks: an image's run lock (under `/run`, waited for), then the image's own lock (in the store, never waited for), which user
//! mode's server inherits and keeps, then the store's devices lock (under `/run`, waited for).

mod below;
mod disk;
mod error;
mod grow;
mod held;
mod mapped;
mod mode;
mod names;
mod place;
mod plan;
mod recipe;
mod run;
mod seen;
pub mod server;
mod spawn;
pub mod stop;
mod survey;
pub mod table;
mod tables;

pub use disk::{DiskError, DiskFiles};
pub use error::AttachError;
pub use grow::grow_head;
pub use held::attach_held;
pub use mode::Mode;
pub use plan::Step;
pub use run::StepError;
pub use spawn::Program;
pub use survey::{AttachState, Condition, is_mapped, state, states, sweep};
pub use tables::{DeviceTable, tables};

use crate::ids::{ImageId, ImageName};
use crate::kernel::dm::{Dm, Support};
use crate::kernel::{loops, mounts};
use crate::store::{HeadBounds, ImageLock, ImageRecord, Store, StoreError};
use mode::Choice;
use place::{Place, RootIdentity, RunLock};
use run::Target;
use seen::{MappedSeen, Mounts, Seen, device_mapper};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For a lock that nobody holds any more, see `lock_image`.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// How to attach.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    pub read_only: bool,
    /// [`Mode::Flat`] where the kernel can, else [`Mode::User`], unless said.
    pub mode: Option<Mode>,
    /// Of a head that is made now: an error where there is one.
    pub bounds: HeadBounds,
    /// For this process alone: when it dies, or drops the [`Attached`], the next sweep takes the device away. So it must be its own: what is
    /// attached already is in use.
    pub temporary: bool,
    /// The program that serves; [`Program::installed`] unless said.
    pub program: Option<Program>,
}

/// An attached image.
#[derive(Debug)]
pub struct Attached {
    pub device: PathBuf,
    pub read_only: bool,
    pub mode: Mode,
    /// Of a temporary one.
    _owner: Option<File>,
}

/// Makes a block device of an image; gives it a head if it has none and is to be written to.
///
/// Errors: [`AttachError::AlreadyAttached`], [`AttachError::Store`] with `InUse` while another verb has the image.
pub fn attach(store: &Store, name: &ImageName, options: &AttachOptions) -> Result<Attached, AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let run_lock = place.lock(name)?;
    attach_in(store, name, &place, &run_lock, options, None)
}

/// Attaches an image and mounts its file system at `dir`; an image that is attached and not mounted is just mounted.
///
/// Errors: [`AttachError::AlreadyMounted`], [`AttachError::NoFileSystem`].
pub fn mount(store: &Store, name: &ImageName, dir: &Path, options: &AttachOptions) -> Result<Attached, AttachError> {
    let resolved = fs::canonicalize(dir).and_then(|path| match path.is_dir() {
        true => Ok(path),
        false => Err(std::io::ErrorKind::NotADirectory.into()),
    });
    let resolved = resolved.map_err(|source| AttachError::Io {
        doing: "mount at",
        path: dir.into(),
        source,
    })?;
    let place = Place::of(store, ImageId::of(name));
    let run_lock = place.lock(name)?;
    attach_in(store, name, &place, &run_lock, options, Some(&resolved))
}

/// Takes the device away; all that was written is in the head, durably, when this returns.
///
/// Errors: [`AttachError::Lost`] where it is not, and the device is gone; [`AttachError::InUse`] while it is mounted, or used otherwise; [`AttachError::NotAttached`].
pub fn detach(store: &Store, name: &ImageName) -> Result<(), AttachError> {
    away(store, name, None, false)
}

/// Unmounts all that is mounted of the image's device, and detaches it.
///
/// Errors: as [`detach`]; what is busy stays mounted.
pub fn umount(store: &Store, name: &ImageName) -> Result<(), AttachError> {
    away(store, name, None, true)
}

impl Attached {
    /// Takes a temporary device away: as [`detach`], which others cannot.
    pub fn detach(self, store: &Store, name: &ImageName) -> Result<(), AttachError> {
        away(store, name, Some(&self), false)
    }

    /// As [`umount`], which others cannot.
    pub fn umount(self, store: &Store, name: &ImageName) -> Result<(), AttachError> {
        away(store, name, Some(&self), true)
    }
}

fn away(store: &Store, name: &ImageName, own: Option<&Attached>, with_mounts: bool) -> Result<(), AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let _run_lock = place.lock(name)?;
    check_owner(store, &place)?;
    let there = There::look(&place)?;
    if there.is_nothing() {
        return Err(AttachError::NotAttached { name: name.clone() });
    }
    if own.is_none() && place.is_owned() {
        return Err(AttachError::Owned { name: name.clone() });
    }
    if let Some(device) = there.attached().filter(|device| !with_mounts && !device.mounts.is_empty()) {
        return Err(AttachError::in_use(name, &device.path, &device.mounts));
    }
    there.take_away(name, &place)
}

/// What the kernel has of an image, in whichever mode.
struct There {
    user: Seen,
    dm: Option<Dm>,
    mapped: MappedSeen,
}

/// An image's device that is there and works.
struct Device {
    path: PathBuf,
    read_only: bool,
    mode: Mode,
    mounts: Vec<PathBuf>,
}

impl There {
    fn look(place: &Place) -> Result<There, AttachError> {
        let user = match place.dir().exists() {
            true => Seen::asked(place, &loops::list()?, &mounts::list()?),
            false => Seen::default(),
        };
        let dm = device_mapper()?;
        let mapped = match &dm {
            Some(dm) => MappedSeen::look(dm, place.store, place.image, place.is_marked(), &Mounts::default())?,
            None => MappedSeen::of(place.image),
        };
        Ok(There { user, dm, mapped })
    }

    fn is_nothing(&self) -> bool {
        self.user.is_nothing() && self.mapped.is_nothing()
    }

    fn attached(&self) -> Option<Device> {
        let user = self.user.attached().map(|device| Device {
            path: device.device(),
            read_only: device.read_only,
            mode: Mode::User,
            mounts: device.mounts.clone(),
        });
        let mapped = || {
            self.mapped.attached().map(|device| Device {
                path: device.device.clone(),
                read_only: device.read_only,
                mode: self.mapped.mode().unwrap_or(Mode::Flat),
                mounts: self.mapped.mounts.clone(),
            })
        };
        user.or_else(mapped)
    }

    fn take_away(&self, name: &dyn std::fmt::Display, place: &Place) -> Result<(), AttachError> {
        if let Some(dm) = self.dm.as_ref().filter(|_| !self.mapped.is_nothing() || place.is_marked()) {
            mapped::take_away(name, place, dm, &self.mapped, place.is_marked())?;
        }
        if !self.user.is_nothing() || place.dir().exists() {
            take_away(name, place, &self.user)?;
        }
        Ok(())
    }
}

fn attach_in(
    store: &Store,
    name: &ImageName,
    place: &Place,
    _held: &RunLock,
    options: &AttachOptions,
    mount: Option<&Path>,
) -> Result<Attached, AttachError> {
    check_owner(store, place)?;
    let record = store.image(name)?;
    refuse_bounds(&record, options)?;
    let file_system = record.file_system.clone();
    if mount.is_some() && !matches!(file_system.as_str(), "ext4" | "xfs") {
        return Err(AttachError::NoFileSystem {
            name: name.clone(),
            found: file_system,
        });
    }
    if let Some(device) = clear(name, place)? {
        // Its disk may be a draft of the image's.
        if place.is_owned() {
            return Err(AttachError::Owned { name: name.clone() });
        }
        let already = || AttachError::AlreadyAttached {
            name: name.clone(),
            device: device.path.clone(),
        };
        let dir = mount.filter(|_| !options.temporary).ok_or_else(already)?;
        return mount_attached(name, &device, options, dir, &file_system).unwrap_or_else(|| Err(already()));
    }
    let choice = mode::choose(options.mode, || match Dm::probe() {
        Support::Yes => Ok(()),
        Support::No { why } => Err(why),
    })?;
    match choice.mode.is_kernel() {
        true => mapped::attach(store, name, place, &Dm::open()?, options, choice, mount),
        false => attach_user(store, name, place, options, choice, mount),
    }
}

/// Mounts what is attached and not mounted; `None` when it is not attached as it is wanted now.
fn mount_attached(
    name: &ImageName,
    device: &Device,
    options: &AttachOptions,
    dir: &Path,
    file_system: &str,
) -> Option<Result<Attached, AttachError>> {
    if !device.mounts.is_empty() {
        return Some(Err(AttachError::AlreadyMounted {
            name: name.clone(),
            at: device.mounts.clone(),
        }));
    }
    if (device.read_only && !options.read_only) || options.mode.is_some_and(|mode| mode != device.mode) {
        return None;
    }
    let read_only = options.read_only || device.read_only;
    let mounted = run::mount(&device.path, dir, file_system, read_only).map_err(|cause| AttachError::Step {
        image: name.to_string(),
        step: Step::Mount {
            dir: dir.into(),
            file_system: file_system.into(),
            read_only,
        },
        cause: Box::new(cause),
        left: Vec::new(),
    });
    Some(mounted.map(|()| Attached {
        device: device.path.clone(),
        read_only,
        mode: device.mode,
        _owner: None,
    }))
}

fn attach_user(
    store: &Store,
    name: &ImageName,
    place: &Place,
    options: &AttachOptions,
    choice: Choice,
    mount: Option<&Path>,
) -> Result<Attached, AttachError> {
    let program = options.program.clone().unwrap_or_else(Program::installed);
    let read_only = options.read_only;
    let lock = lock_image(store, name)?;
    // Under the lock it cannot change any more.
    let mut record = store.image(name)?;
    refuse_bounds(&record, options)?;
    record.next_head = options.bounds.over(record.next_head);
    if !record.frozen.is_empty() {
        return Err(AttachError::Frozen {
            name: name.clone(),
            count: record.frozen.len(),
        });
    }
    let wanted = plan::Wanted {
        read_only,
        has_head: record.head.is_some(),
        mount: mount.map(|dir| (dir, record.file_system.as_str())),
    };
    let owner = match options.temporary {
        true => Some(place.make().and_then(|()| place.own()).map_err(|source| AttachError::Io {
            doing: "take",
            path: place.dir(),
            source,
        })?),
        false => None,
    };
    let steps = plan::attach(&wanted);
    let (dir, mode) = (store.image_dir(place.image), choice.mode);
    let device = go(
        &steps,
        place,
        &mut Target {
            store,
            record,
            dir,
            lock: &lock,
            program,
            choice,
        },
    )?;
    Ok(Attached {
        device,
        read_only,
        mode,
        _owner: owner,
    })
}

fn refuse_bounds(record: &ImageRecord, options: &AttachOptions) -> Result<(), AttachError> {
    match options.bounds != HeadBounds::default() && record.head.is_some() {
        true => Err(AttachError::HasHead { name: record.name.clone() }),
        false => Ok(()),
    }
}

/// A child that another thread of ours, or of a daemon, is just starting has a copy of every descriptor until it becomes its program. So a lock
/// that was let go can be held for moments longer.
fn lock_image(store: &Store, name: &ImageName) -> Result<ImageLock, StoreError> {
    let start = Instant::now();
    loop {
        match store.lock_image(name) {
            Err(StoreError::InUse { .. }) if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
}

fn go(steps: &[Step], place: &Place, target: &mut Target) -> Result<PathBuf, AttachError> {
    let name = target.record.name.clone();
    let made = run::attach(steps, place, target).map_err(|failed| AttachError::from_failed(&name, failed))?;
    let number = made.expect("a plan to attach makes a device");
    tracing::info!(image = %name, device = number, "attached");
    Ok(run::loop_path(number))
}

/// Leaves nothing of the image in the kernel, unless it is attached.
fn clear(name: &ImageName, place: &Place) -> Result<Option<Device>, AttachError> {
    let there = There::look(place)?;
    let is_orphan = place.is_orphan() || (place.is_temporary() && !place.has_owner());
    match there.attached() {
        Some(device) if !is_orphan => {
            if let Some(dm) = there.dm.as_ref().filter(|_| device.mode.is_kernel()) {
                mapped::make_node(place, dm)?;
            }
            Ok(Some(device))
        }
        None if there.is_nothing() && !place.is_marked() => Ok(None),
        _ => there.take_away(name, place).map(|()| None),
    }
}

fn look(place: &Place) -> Result<Seen, AttachError> {
    Ok(Seen::of(place, &loops::list()?, &mounts::list()?))
}

fn take_away(name: &dyn std::fmt::Display, place: &Place, seen: &Seen) -> Result<(), AttachError> {
    let steps = plan::take_away(seen);
    let mut lost = None;
    for (done, step) in steps.iter().enumerate() {
        tracing::debug!(image = %name, %step, "take away");
        match run::take_away(step, place) {
            // What could not be written is gone from the kernel's memory, too: another try would find nothing to complain of.
            Err(cause) if matches!(step, Step::Flush { .. }) => lost = Some(Box::new(cause)),
            Err(cause) => return Err(AttachError::from_taking(name, step, cause, &steps[done..])),
            Ok(()) => {}
        }
        stop::step("detach", step);
    }
    tracing::info!(image = %name, "detached");
    lost.map_or(Ok(()), |cause| {
        Err(AttachError::Lost {
            name: name.to_string(),
            cause,
        })
    })
}

/// A store that was copied has the id of the original, and so the same places; whose the things there are, `state.json` says.
fn check_owner(store: &Store, place: &Place) -> Result<(), AttachError> {
    let mine = RootIdentity::of(store.root()).map_err(|source| AttachError::Io {
        doing: "look at",
        path: store.root().into(),
        source,
    })?;
    match place.read_state() {
        Some(state) if state.root.is_other_than(&mine) => Err(AttachError::OtherStore {
            id: store.id(),
            mine: mine.path,
            other: state.root.path,
        }),
        _ => Ok(()),
    }
}
