//! The device of a verb that works on the disk of an image which it has locked itself: resize.
//!
//! Refuses to know what the verb does. Invariant: it is temporary, and in user mode, so that a killed verb leaves nothing in the kernel that the
//! next sweep does not take away.

use super::mode::{Choice, Mode};
use super::place::Place;
use super::run::Target;
use super::{AttachError, Attached, Device, clear, go, plan, spawn::Program};
use crate::store::{ImageLock, ImageRecord, Store};
use std::path::PathBuf;

/// Makes a block device of what `record` says, with the head that is in `dir`: the image's own directory, or one where a draft of its head is.
///
/// Shape: goes away by [`Attached::detach`] or [`Attached::umount`]. Locks: the image's is the caller's, so that here it comes before the run lock, which
/// harms nobody: who has a run lock never waits for an image's.
pub fn attach_held(store: &Store, record: ImageRecord, dir: PathBuf, lock: &ImageLock) -> Result<Attached, AttachError> {
    let place = Place::of(store, record.id());
    let name = record.name.clone();
    let _run_lock = place.lock(&name)?;
    if let Some(Device { path: device, .. }) = clear(store, &name, &place)? {
        return Err(AttachError::AlreadyAttached { name, device });
    }
    let owner = place.make().and_then(|()| place.own()).map_err(|source| AttachError::Io {
        doing: "take",
        path: place.dir(),
        source,
    })?;
    let wanted = plan::Wanted {
        read_only: false,
        has_head: record.head.is_some(),
        mount: None,
    };
    let mut target = Target {
        store,
        record,
        dir,
        lock,
        program: Program::installed(),
        choice: Choice {
            mode: Mode::User,
            why: "a verb is at work on it".into(),
        },
    };
    Ok(Attached {
        device: go(&plan::attach(&wanted), &place, &mut target)?,
        read_only: false,
        mode: Mode::User,
        new_head: None,
        _owner: Some(owner),
    })
}
