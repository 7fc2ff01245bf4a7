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
mod owner;
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
use crate::store::{HeadBounds, ImageLock, ImageRecord, Store, StoreError};
use mode::Choice;
use owner::{check_head, check_owner};
use place::{Held, Place, RunLock, State};
use run::Target;
use seen::{Around, MappedSeen, Seen, device_mapper};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a lock that nobody holds any more, see `lock_image`: so many tries, a pause after each.
const LOCK_TRIES: u32 = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

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
    /// What `image.json` says since a head was made for this.
    pub new_head: Option<ImageRecord>,
    /// Of a temporary one.
    _owner: Option<Held>,
}

/// What was attached before it was taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone {
    /// `None` if it was half made, or half gone.
    pub device: Option<PathBuf>,
    /// Where it was mounted last, or was to be.
    pub dir: Option<PathBuf>,
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
pub fn detach(store: &Store, name: &ImageName) -> Result<Gone, AttachError> {
    away(store, name, None, Kind::Detach)
}

/// Unmounts all that is mounted of the image's device, and detaches it.
///
/// Errors: as [`detach`], and [`AttachError::NotMounted`] for one that is attached for something else; what is busy stays mounted.
pub fn umount(store: &Store, name: &ImageName) -> Result<Gone, AttachError> {
    away(store, name, None, Kind::Umount)
}

impl Attached {
    /// Takes a temporary device away: as [`detach`], which others cannot.
    pub fn detach(self, store: &Store, name: &ImageName) -> Result<(), AttachError> {
        away(store, name, Some(&self), Kind::Detach).map(drop)
    }

    /// As [`umount`], which others cannot.
    pub fn umount(self, store: &Store, name: &ImageName) -> Result<(), AttachError> {
        away(store, name, Some(&self), Kind::Umount).map(drop)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Detach,
    Umount,
}

fn away(store: &Store, name: &ImageName, own: Option<&Attached>, kind: Kind) -> Result<Gone, AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let _run_lock = place.lock(name)?;
    let there = There::look(store, &place)?;
    if there.is_nothing() {
        return Err(AttachError::NotAttached { name: name.clone() });
    }
    if own.is_none() && (there.is_marked || there.has_place) && place.is_owned() {
        return Err(AttachError::Owned { name: name.clone() });
    }
    let device = there.attached();
    if let Some(device) = device.as_ref().filter(|device| kind == Kind::Detach && !device.mounts.is_empty()) {
        return Err(AttachError::in_use(name, &device.path, &device.mounts));
    }
    let dir = there.mounted_at();
    if kind == Kind::Umount && own.is_none() && dir.is_none() {
        return Err(AttachError::NotMounted { name: name.clone() });
    }
    there.take_away(name, &place)?;
    Ok(Gone {
        device: device.map(|device| device.path),
        dir,
    })
}

/// What the kernel has of an image, in whichever mode, and what is remembered of it.
struct There {
    state: Option<State>,
    is_marked: bool,
    /// User mode has a directory of it.
    has_place: bool,
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
    /// Asked once by each verb, under the image's run lock.
    fn look(store: &Store, place: &Place) -> Result<There, AttachError> {
        let state = check_owner(store, place)?;
        let (is_marked, has_place) = (place.is_marked(), place.dir().exists());
        let around = Around::default();
        let user = match has_place {
            true => Seen::asked(place, around.loops()?, around.mounts()?),
            false => Seen::default(),
        };
        let dm = device_mapper()?;
        let mapped = match &dm {
            Some(dm) => MappedSeen::look(dm, place.store, place.image, is_marked, &around)?,
            None => MappedSeen::of(place.image),
        };
        check_head(store, place, state.as_ref(), &mapped)?;
        Ok(There {
            state,
            is_marked,
            has_place,
            user,
            dm,
            mapped,
        })
    }

    fn is_nothing(&self) -> bool {
        self.user.is_nothing() && self.mapped.is_nothing()
    }

    /// Also of a device that is dead. One that was made for a mount, and is not mounted, is what a killed mount or umount left.
    fn mounted_at(&self) -> Option<PathBuf> {
        let user = self.user.loops.iter().flat_map(|device| &device.mounts);
        let made_for = self.state.as_ref().and_then(|state| state.mount.as_ref());
        self.mapped.mounts.iter().chain(user).last().or(made_for).cloned()
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
        if let Some(dm) = self.dm.as_ref().filter(|_| !self.mapped.is_nothing() || self.is_marked) {
            mapped::take_away(name, place, dm, &self.mapped, self.is_marked)?;
        }
        if self.has_place {
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
    if let Some(device) = clear(store, name, place)? {
        // Its disk may be a draft of the image's.
        if place.is_owned() {
            return Err(AttachError::Owned { name: name.clone() });
        }
        let record = store.image(name)?;
        refuse(&record, options, mount)?;
        let already = || AttachError::AlreadyAttached {
            name: name.clone(),
            device: device.path.clone(),
        };
        let dir = mount.filter(|_| !options.temporary).ok_or_else(already)?;
        return mount_attached(name, &device, options, dir, &record.file_system).unwrap_or_else(|| Err(already()));
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
        new_head: None,
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
    let record = fresh_record(store, name, options, mount)?;
    let had_head = record.head.is_some();
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
    let mut target = Target {
        store,
        record,
        dir,
        lock: &lock,
        program,
        choice,
    };
    let device = go(&steps, place, &mut target)?;
    Ok(Attached {
        device,
        read_only,
        mode,
        new_head: (target.record.head.is_some() && !had_head).then_some(target.record),
        _owner: owner,
    })
}

/// The record of an image that is to be attached now; under its lock, so that it cannot change any more.
fn fresh_record(store: &Store, name: &ImageName, options: &AttachOptions, mount: Option<&Path>) -> Result<ImageRecord, AttachError> {
    let mut record = store.image(name)?;
    refuse(&record, options, mount)?;
    record.next_head = options.bounds.over(record.next_head);
    match record.frozen.len() {
        0 => Ok(record),
        count => Err(AttachError::Frozen { name: record.name, count }),
    }
}

/// What is wanted of an image, and cannot be.
fn refuse(record: &ImageRecord, options: &AttachOptions, mount: Option<&Path>) -> Result<(), AttachError> {
    if options.bounds != HeadBounds::default() && record.head.is_some() {
        return Err(AttachError::HasHead { name: record.name.clone() });
    }
    match mount.is_none() || matches!(record.file_system.as_str(), "ext4" | "xfs") {
        true => Ok(()),
        false => Err(AttachError::NoFileSystem {
            name: record.name.clone(),
            found: record.file_system.clone(),
        }),
    }
}

/// A child that another thread of ours, or of a daemon, is just starting has a copy of every descriptor until it becomes its program. So a lock
/// that was let go can be held for moments longer.
fn lock_image(store: &Store, name: &ImageName) -> Result<ImageLock, StoreError> {
    for _ in 0..LOCK_TRIES {
        // Who has the run lock, and looked, need not be told that the kernel has it.
        match store.lock_image_unasked(name) {
            Err(StoreError::InUse { .. }) => std::thread::sleep(LOCK_PAUSE),
            other => return other,
        }
    }
    store.lock_image_unasked(name)
}

fn go(steps: &[Step], place: &Place, target: &mut Target) -> Result<PathBuf, AttachError> {
    let name = target.record.name.clone();
    let made = run::attach(steps, place, target).map_err(|failed| AttachError::from_failed(&name, failed))?;
    let number = made.expect("a plan to attach makes a device");
    tracing::info!(image = %name, device = number, "attached");
    Ok(run::loop_path(number))
}

/// Leaves nothing of the image in the kernel, unless it is attached.
fn clear(store: &Store, name: &ImageName, place: &Place) -> Result<Option<Device>, AttachError> {
    let there = There::look(store, place)?;
    if there.is_nothing() && !there.is_marked {
        return Ok(None);
    }
    let is_orphan = place.is_orphan() || (place.is_temporary() && !place.has_owner());
    match there.attached() {
        Some(device) if !is_orphan => {
            if let Some(dm) = there.dm.as_ref().filter(|_| device.mode.is_kernel()) {
                mapped::make_node(place, dm)?;
            }
            Ok(Some(device))
        }
        _ => there.take_away(name, place).map(|()| None),
    }
}

fn take_away(name: &dyn std::fmt::Display, place: &Place, seen: &Seen) -> Result<(), AttachError> {
    if let Some(dir) = &seen.covered {
        return Err(AttachError::covered(name, dir));
    }
    let steps = plan::take_away(seen);
    if !seen.served && seen.loops.iter().any(|device| !device.read_only) {
        tracing::warn!(image = %name, "its server is gone: what was written since the last sync is lost");
    }
    let mut lost = None;
    for (done, step) in steps.iter().enumerate() {
        tracing::debug!(image = %name, %step, "take away");
        match run::take_away(step, place) {
            // What could not be written is gone from the kernel's memory, too: another try would find nothing to complain of.
            Err(cause) if matches!(step, Step::Flush { .. }) => lost = Some(Box::new(cause)),
            Err(cause) => return Err(AttachError::from_taking(name, step, cause, &steps[done..]).and_lost(name, lost)),
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
