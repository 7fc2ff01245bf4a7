//! An image as a block device, and as a mounted file system: user mode, where a FUSE server shows the chain and a loop device sits on it.
//!
//! Refuses to know what runs above the device. Invariant: what is attached is what the kernel has, never what a file of ours says, so that
//! every verb works after anybody's `kill -9`.
//!
//! Order of locks: an image's run lock (under `/run`, waited for), then the image's own lock (in the store, never waited for), which the
//! server inherits and keeps.

mod disk;
mod error;
mod mode;
#[allow(dead_code)]
mod names;
mod place;
mod plan;
mod run;
mod seen;
pub mod server;
mod spawn;
mod survey;
pub mod table;

pub use disk::{DiskError, DiskFiles};
pub use error::AttachError;
pub use mode::Mode;
pub use plan::Step;
pub use run::StepError;
pub use spawn::Program;
pub use survey::{AttachState, Condition, states, sweep};

use crate::ids::{ImageId, ImageName};
use crate::kernel::{loops, mounts};
use crate::store::{HeadBounds, ImageLock, ImageRecord, Store, StoreError};
use mode::Choice;
use place::{Place, RootIdentity, RunLock};
use run::Target;
use seen::{LoopSeen, Seen};
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
/// Errors: [`AttachError::InUse`] while it is mounted, or used otherwise; [`AttachError::NotAttached`].
pub fn detach(store: &Store, name: &ImageName) -> Result<(), AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let _run_lock = place.lock(name)?;
    check_owner(store, &place)?;
    let seen = look(&place)?;
    if seen.is_nothing() {
        return Err(AttachError::NotAttached { name: name.clone() });
    }
    if let Some(LoopSeen { number, mounts, .. }) = seen.attached().filter(|device| !device.mounts.is_empty()) {
        return Err(AttachError::in_use(name, *number, mounts));
    }
    take_away(name, &place, &seen)
}

/// Unmounts all that is mounted of the image's device, and detaches it.
///
/// Errors: as [`detach`]; what is busy stays mounted.
pub fn umount(store: &Store, name: &ImageName) -> Result<(), AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let _run_lock = place.lock(name)?;
    check_owner(store, &place)?;
    let seen = look(&place)?;
    if seen.is_nothing() {
        return Err(AttachError::NotAttached { name: name.clone() });
    }
    take_away(name, &place, &seen)
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
    let Choice { mode, why } = mode::choose(options.mode, || Err("not supported yet".into()))?;
    let program = options.program.clone().unwrap_or_else(Program::installed);
    let mut read_only = options.read_only;
    let there = match clear(name, place) {
        Ok(()) => None,
        Err(AttachError::AlreadyAttached { .. }) if mount.is_some() && !options.temporary => look(place)?.attached().cloned(),
        Err(error) => return Err(error),
    };
    if let Some(device) = &there {
        if !device.mounts.is_empty() {
            return Err(AttachError::AlreadyMounted {
                name: name.clone(),
                at: device.mounts.clone(),
            });
        }
        if device.read_only && !options.read_only {
            return Err(AttachError::AlreadyAttached {
                name: name.clone(),
                device: device.device(),
            });
        }
        read_only |= device.read_only;
        let dir = mount.expect("only a mount goes on with a device that is there").to_path_buf();
        if let Err(cause) = run::mount(device.number, &dir, &file_system, read_only) {
            let step = Step::Mount {
                dir,
                file_system,
                read_only,
            };
            return Err(AttachError::Step {
                image: name.to_string(),
                step,
                cause: Box::new(cause),
                left: Vec::new(),
            });
        }
        return Ok(Attached {
            device: device.device(),
            read_only,
            mode: Mode::User,
            _owner: None,
        });
    }
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
        mount: mount.map(|dir| (dir, file_system.as_str())),
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
    let dir = store.image_dir(place.image);
    let device = go(
        &steps,
        place,
        &mut Target {
            store,
            record,
            dir,
            lock: &lock,
            program,
            choice: Choice { mode, why },
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
    Ok(PathBuf::from(format!("/dev/loop{number}")))
}

/// Leaves nothing of the image in the kernel, unless it is attached.
fn clear(name: &ImageName, place: &Place) -> Result<(), AttachError> {
    let seen = look(place)?;
    match seen.attached() {
        Some(device) if !place.is_orphan() => Err(AttachError::AlreadyAttached {
            name: name.clone(),
            device: device.device(),
        }),
        None if seen.is_nothing() => Ok(()),
        _ => take_away(name, place, &seen),
    }
}

fn look(place: &Place) -> Result<Seen, AttachError> {
    Ok(Seen::of(place, &loops::list()?, &mounts::list()?))
}

fn take_away(name: &dyn std::fmt::Display, place: &Place, seen: &Seen) -> Result<(), AttachError> {
    let steps = plan::take_away(seen);
    for (done, step) in steps.iter().enumerate() {
        tracing::debug!(image = %name, %step, "take away");
        if let Err(cause) = run::take_away(step, place) {
            return Err(AttachError::from_taking(name, step, cause, &steps[done..]));
        }
    }
    tracing::info!(image = %name, "detached");
    Ok(())
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
