//! An image as a block device, and as a mounted file system: user mode, where a FUSE server shows the chain and a loop device sits on it.
//!
//! Refuses to know what runs above the device. Invariant: what is attached is what the kernel has, never what a file of ours says, so that
//! every verb works after anybody's `kill -9`.
//!
//! Order of locks: an image's run lock (under `/run`, waited for), then the image's own lock (in the store, never waited for), which the
//! server inherits and keeps.

mod disk;
mod error;
mod place;
mod plan;
mod run;
mod seen;
pub mod server;
mod spawn;
mod survey;

pub use disk::{DiskError, DiskFiles};
pub use error::AttachError;
pub use plan::Step;
pub use run::StepError;
pub use spawn::Program;
pub use survey::{AttachState, Condition, states, sweep};

use crate::ids::{ImageId, ImageName};
use crate::kernel::{loops, mounts};
use crate::store::{ImageLock, ImageRecord, Store, StoreError};
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
    /// The program that serves; [`Program::installed`] unless said.
    pub program: Option<Program>,
}

/// An attached image.
#[derive(Debug)]
pub struct Attached {
    pub device: PathBuf,
    pub read_only: bool,
    /// Of what is wanted for one verb only: when this is dropped and the image still attached, the next sweep takes it away.
    _owner: Option<File>,
}

/// Makes a block device of an image; gives it a head if it has none and is to be written to.
///
/// Errors: [`AttachError::AlreadyAttached`], [`AttachError::Store`] with `InUse` while another verb has the image.
pub fn attach(store: &Store, name: &ImageName, options: &AttachOptions) -> Result<Attached, AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let run_lock = place.lock(name)?;
    attach_in(store, name, &place, &run_lock, options, Where::Nowhere)
}

/// Attaches an image that is being made in `dir` and is not in the store yet. `lock` is its lock.
///
/// The image is [`detach`]ed by its name; if this process dies before, by the next [`sweep`].
pub fn attach_prepared(
    store: &Store,
    record: &ImageRecord,
    dir: &Path,
    lock: &ImageLock,
    options: &AttachOptions,
) -> Result<Attached, AttachError> {
    let place = Place::of(store, record.id());
    let _run_lock = place.lock(&record.name)?;
    check_owner(store, &place)?;
    clear(&record.name, &place)?;
    let owner = own(&place)?;
    let program = options.program.clone().unwrap_or_else(Program::installed);
    let mut target = Target {
        store,
        record: record.clone(),
        dir: dir.into(),
        lock,
        prepared: true,
        program,
    };
    let wanted = plan::Wanted {
        read_only: options.read_only,
        has_head: record.head.is_some(),
        mount: None,
    };
    let device = go(&plan::attach(&wanted), &place, &mut target)?;
    Ok(Attached {
        device,
        read_only: options.read_only,
        _owner: Some(owner),
    })
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
    attach_in(store, name, &place, &run_lock, options, Where::At(&resolved))
}

/// Mounts an image read-only where only this process looks, until it is [`umount`]ed; if this process dies before, the next [`sweep`] does that.
/// Returns the directory as well.
///
/// Errors: as [`mount`], and [`AttachError::AlreadyAttached`]: what may be written to is not read.
pub fn mount_for_now(store: &Store, name: &ImageName) -> Result<(Attached, PathBuf), AttachError> {
    let place = Place::of(store, ImageId::of(name));
    let run_lock = place.lock(name)?;
    let options = AttachOptions {
        read_only: true,
        program: None,
    };
    let attached = attach_in(store, name, &place, &run_lock, &options, Where::InItsPlace)?;
    Ok((attached, place.mount_dir()))
}

/// Where an image that is attached is to be mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where<'a> {
    Nowhere,
    At(&'a Path),
    /// As long as this process wants it.
    InItsPlace,
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
    mount: Where,
) -> Result<Attached, AttachError> {
    check_owner(store, place)?;
    let record = store.image(name)?;
    let file_system = record.file_system.clone();
    if mount != Where::Nowhere && !matches!(file_system.as_str(), "ext4" | "xfs") {
        return Err(AttachError::NoFileSystem {
            name: name.clone(),
            found: file_system,
        });
    }
    let program = options.program.clone().unwrap_or_else(Program::installed);
    let mut read_only = options.read_only;
    let there = match clear(name, place) {
        Ok(()) => None,
        Err(AttachError::AlreadyAttached { .. }) if matches!(mount, Where::At(_)) => look(place)?.attached().cloned(),
        Err(error) => return Err(error),
    };
    if let (Some(device), Where::At(dir)) = (&there, mount) {
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
        let dir = dir.to_path_buf();
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
            _owner: None,
        });
    }
    let lock = lock_image(store, name)?;
    // Under the lock it cannot change any more.
    let record = store.image(name)?;
    if !record.frozen.is_empty() {
        return Err(AttachError::Frozen {
            name: name.clone(),
            count: record.frozen.len(),
        });
    }
    let own_dir = place.mount_dir();
    let mount_dir = match mount {
        Where::Nowhere => None,
        Where::At(dir) => Some(dir),
        Where::InItsPlace => Some(own_dir.as_path()),
    };
    let wanted = plan::Wanted {
        read_only,
        has_head: record.head.is_some(),
        mount: mount_dir.map(|dir| (dir, file_system.as_str())),
    };
    let steps = plan::attach(&wanted);
    let owner = match mount {
        Where::InItsPlace => Some(own(place)?),
        _ => None,
    };
    let dir = store.image_dir(place.image);
    let device = go(
        &steps,
        place,
        &mut Target {
            store,
            record,
            dir,
            lock: &lock,
            prepared: false,
            program,
        },
    )?;
    Ok(Attached {
        device,
        read_only,
        _owner: owner,
    })
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

/// Makes an image's place one that goes with this process.
fn own(place: &Place) -> Result<File, AttachError> {
    let made = place.make().and_then(|()| place.own());
    made.map_err(|source| AttachError::Io {
        doing: "take",
        path: place.dir(),
        source,
    })
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
