//! All that is attached of a store, and what dead processes left of it.
//!
//! Refuses to attach anything. Invariant: a sweep touches only what is of its own store, and what no living verb is at work on.

use super::mode::Mode;
use super::names::LoopId;
use super::place::Place;
use super::seen::{LoopSeen, Seen};
use super::{AttachError, check_owner, look, take_away};
use crate::ids::{ImageId, ImageName};
use crate::kernel::{loops, mounts};
use crate::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// What is known of an image that has, or had, a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachState {
    pub image: ImageId,
    /// `None` if nothing remembers it.
    pub name: Option<ImageName>,
    pub condition: Condition,
    pub device: Option<PathBuf>,
    pub read_only: bool,
    pub mode: Mode,
    /// Why in this mode; `None` if nothing remembers it.
    pub why: Option<String>,
    /// Oldest first.
    pub mounts: Vec<PathBuf>,
    /// Where it was to be mounted, if the device was made for that: a mount, or an umount, may have been cut short.
    pub made_for: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Attached,
    /// Its server is dead, or who started it died half way: the next verb on the image takes it away.
    Leftover,
    /// A verb is at work on it.
    Changing,
}

/// What is attached of this store, and what is left over, by the kernel's account.
pub fn states(store: &Store) -> Result<Vec<AttachState>, AttachError> {
    let (loops, mounts) = (loops::list()?, mounts::list()?);
    let mut all = Vec::new();
    for image in known(store, &loops)? {
        let place = Place::of(store, image);
        // A copy of this store has it.
        if check_owner(store, &place).is_err() {
            continue;
        }
        let seen = Seen::of(&place, &loops, &mounts);
        if seen.is_nothing() {
            continue;
        }
        let state = place.read_state();
        let device = seen.attached();
        let at_rest = || place.try_lock().map(|lock| lock.is_some());
        let condition = match device {
            Some(_) if !place.is_orphan() => Condition::Attached,
            _ if at_rest().map_err(|source| AttachError::Io {
                doing: "lock",
                path: place.dir(),
                source,
            })? =>
            {
                Condition::Leftover
            }
            _ => Condition::Changing,
        };
        all.push(AttachState {
            image,
            name: state.as_ref().map(|state| state.name.clone()),
            mode: Mode::User,
            why: state.as_ref().map(|state| state.why.clone()),
            made_for: state.and_then(|state| state.mount),
            condition,
            device: device.map(LoopSeen::device),
            read_only: device.is_some_and(|device| device.read_only),
            mounts: seen.loops.iter().flat_map(|device| device.mounts.clone()).collect(),
        });
    }
    Ok(all)
}

/// Takes away what dead processes left attached in this store; returns whose it was. What another verb is at work on is left to it, and what
/// resists is left to the next verb on that image, which says why: one image's trouble is not all images'.
pub fn sweep(store: &Store) -> Result<Vec<ImageId>, AttachError> {
    let mut swept = Vec::new();
    for image in known(store, &loops::list()?)? {
        match sweep_image(store, image) {
            Ok(true) => swept.push(image),
            Ok(false) => {}
            Err(error) => tracing::warn!(%image, %error, "leftovers could not be taken away"),
        }
    }
    Ok(swept)
}

fn sweep_image(store: &Store, image: ImageId) -> Result<bool, AttachError> {
    let place = Place::of(store, image);
    let lock = place.try_lock().map_err(|source| AttachError::Io {
        doing: "lock",
        path: place.dir(),
        source,
    })?;
    if lock.is_none() || check_owner(store, &place).is_err() {
        return Ok(false);
    }
    let seen = look(&place)?;
    if seen.attached().is_some() && !place.is_orphan() {
        return Ok(false);
    }
    take_away(&image, &place, &seen)?;
    Ok(true)
}

/// The images that have a directory under `/run`, or a loop device.
fn known(store: &Store, loops: &[loops::LoopDevice]) -> Result<BTreeSet<ImageId>, AttachError> {
    let names = loops
        .iter()
        .filter_map(|device| LoopId::user_image(device.name.as_deref()?, store.id()));
    let mut all: BTreeSet<ImageId> = names.collect();
    let run_dir = store.run_dir();
    match fs::read_dir(&run_dir) {
        Ok(entries) => all.extend(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<ImageId>().ok())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(AttachError::Io {
                doing: "list",
                path: run_dir,
                source,
            });
        }
    }
    Ok(all)
}
