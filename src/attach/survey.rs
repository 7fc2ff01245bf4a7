//! All that is attached of a store, and what dead processes left of it.
//!
//! Refuses to attach anything. Invariant: a sweep touches only what is of its own store, and what no living verb is at work on; it looks at
//! markers and at user mode's directories, so that it costs the same with one image attached by the kernel as with a thousand.

use super::below;
use super::mapped;
use super::mode::Mode;
use super::names::{DeviceId, LoopId};
use super::place::{self, Place};
use super::seen::{LoopSeen, MappedSeen, Mounts, Seen, device_mapper};
use super::{AttachError, check_owner, take_away};
use crate::ids::{ImageId, ImageName};
use crate::kernel::dm::{Dm, SnapshotStatus};
use crate::kernel::loops::{self, LoopDevice};
use crate::store::Store;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
    /// Of the head, in a kernel mode.
    pub snapshot: Option<SnapshotStatus>,
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
    let (loops, mounts) = (loops::list()?, Mounts::default());
    let mut all = Vec::new();
    for image in known(store, &loops)? {
        all.extend(user_state(store, &Place::of(store, image), &loops, &mounts)?);
    }
    if let Some(dm) = device_mapper()? {
        let heads = loops
            .iter()
            .filter_map(|device| LoopId::head_image(device.name.as_deref()?, store.id()));
        let mut images: BTreeSet<ImageId> = heads.chain(marked(store)).collect();
        images.extend(
            dm.list()?
                .iter()
                .filter_map(|listed| match DeviceId::of_uuid(listed.uuid.as_deref()?, store.id())? {
                    DeviceId::Image(image) | DeviceId::Origin(image) => Some(image),
                    _ => None,
                }),
        );
        for image in images {
            all.extend(mapped_state(store, &dm, &Place::of(store, image), &mounts)?);
        }
    }
    Ok(all)
}

/// The same of one image, without a look at others.
pub fn state(store: &Store, image: ImageId) -> Result<Option<AttachState>, AttachError> {
    let (place, mounts) = (Place::of(store, image), Mounts::default());
    if place.dir().exists()
        && let Some(found) = user_state(store, &place, &loops::list()?, &mounts)?
    {
        return Ok(Some(found));
    }
    match device_mapper()? {
        Some(dm) => mapped_state(store, &dm, &place, &mounts),
        None => Ok(None),
    }
}

fn user_state(store: &Store, place: &Place, loops: &[LoopDevice], mounts: &Mounts) -> Result<Option<AttachState>, AttachError> {
    // A copy of this store has it.
    if check_owner(store, place).is_err() {
        return Ok(None);
    }
    let seen = Seen::of(place, loops, mounts.all()?);
    if seen.is_nothing() {
        return Ok(None);
    }
    let state = place.read_state();
    let device = seen.attached();
    Ok(Some(AttachState {
        image: place.image,
        name: state.as_ref().map(|state| state.name.clone()),
        condition: condition(place, device.is_some() && !place.is_orphan())?,
        device: device.map(LoopSeen::device),
        read_only: device.is_some_and(|device| device.read_only),
        mode: Mode::User,
        why: state.as_ref().map(|state| state.why.clone()),
        snapshot: None,
        mounts: seen.loops.iter().flat_map(|device| device.mounts.clone()).collect(),
        made_for: state.and_then(|state| state.mount),
    }))
}

fn mapped_state(store: &Store, dm: &Dm, place: &Place, mounts: &Mounts) -> Result<Option<AttachState>, AttachError> {
    if check_owner(store, place).is_err() {
        return Ok(None);
    }
    let seen = MappedSeen::look(dm, place.store, place.image, place.is_marked(), mounts)?;
    if seen.is_nothing() {
        return Ok(None);
    }
    let state = place.read_state();
    let device = seen.attached();
    let is_wanted = !place.is_temporary() || place.has_owner();
    Ok(Some(AttachState {
        image: place.image,
        name: state.as_ref().map(|state| state.name.clone()),
        condition: condition(place, device.is_some() && is_wanted)?,
        device: device.map(|device| device.device.clone()),
        read_only: device.is_some_and(|device| device.read_only),
        // An image without deltas stands on zeros in either kernel mode.
        mode: seen.mode().or(state.as_ref().map(|state| state.mode)).unwrap_or(Mode::Flat),
        why: state.as_ref().map(|state| state.why.clone()),
        snapshot: device.and_then(|device| device.snapshot),
        mounts: seen.mounts.clone(),
        made_for: state.and_then(|state| state.mount),
    }))
}

fn condition(place: &Place, is_attached: bool) -> Result<Condition, AttachError> {
    if is_attached {
        return Ok(Condition::Attached);
    }
    Ok(match try_lock(place)? {
        Some(_) => Condition::Leftover,
        None => Condition::Changing,
    })
}

fn try_lock(place: &Place) -> Result<Option<place::RunLock>, AttachError> {
    place.try_lock().map_err(|source| AttachError::Io {
        doing: "lock",
        path: place.dir(),
        source,
    })
}

/// Whether a kernel mode has the image, so that nothing else may change it: nobody holds the image's lock meanwhile. Asked by whoever has
/// just taken that lock.
pub fn is_mapped(store: &Store, image: ImageId) -> Result<bool, AttachError> {
    let Some(dm) = device_mapper()? else { return Ok(false) };
    let place = Place::of(store, image);
    let there = |device: DeviceId| Ok::<_, AttachError>(dm.info(&device.uuid(place.store))?.is_some());
    let has = place.is_marked() || there(DeviceId::Image(image))? || there(DeviceId::Origin(image))?;
    Ok(has && check_owner(store, &place).is_ok())
}

/// Takes away what dead processes left attached in this store; returns whose it was. What another verb is at work on is left to it, and what
/// resists is left to the next verb on that image, which says why: one image's trouble is not all images'.
pub fn sweep(store: &Store) -> Result<Vec<ImageId>, AttachError> {
    let mut swept = Vec::new();
    let mut note = |image: ImageId, result: Result<bool, AttachError>| match result {
        Ok(true) => swept.push(image),
        Ok(false) => {}
        Err(error) => tracing::warn!(%image, %error, "leftovers could not be taken away"),
    };
    for image in places(store)? {
        note(image, sweep_user(store, image));
    }
    let run_dir = store.run_dir();
    let marked = marked(store);
    let is_new_boot = !Place::of(store, ImageId([0; 16])).has_all_hints();
    if (is_new_boot || !marked.is_empty())
        && let Some(dm) = device_mapper()?
    {
        let mut images: BTreeSet<ImageId> = marked.iter().copied().collect();
        if is_new_boot {
            images.extend(half_made(store, &dm)?);
        }
        for image in images {
            note(image, sweep_mapped(store, &dm, image, marked.contains(&image)));
        }
        if is_new_boot {
            let place = Place::of(store, ImageId([0; 16]));
            if let Err(error) = mapped::release(&"none", &place, &dm, || below::all(&dm, store.id())) {
                tracing::warn!(%error, "shared devices that nobody uses stay");
            }
            mapped::note_loops(&place)?;
        }
    }
    forget_other_boots(&run_dir);
    Ok(swept)
}

fn sweep_user(store: &Store, image: ImageId) -> Result<bool, AttachError> {
    let place = Place::of(store, image);
    let lock = try_lock(&place)?;
    if lock.is_none() || check_owner(store, &place).is_err() {
        return Ok(false);
    }
    let seen = super::look(&place)?;
    if seen.attached().is_some() && !place.is_orphan() {
        return Ok(false);
    }
    take_away(&image, &place, &seen)?;
    Ok(true)
}

fn sweep_mapped(store: &Store, dm: &Dm, image: ImageId, marked: bool) -> Result<bool, AttachError> {
    let place = Place::of(store, image);
    let lock = try_lock(&place)?;
    // A verb that lived when the markers were listed may have come to its end since: then there is nothing to do, and to look as if there were
    // would have others refused the image.
    if lock.is_none() || (marked && !place.is_marked()) || place.has_owner() || check_owner(store, &place).is_err() {
        return Ok(false);
    }
    mapped::sweep(&place, dm)
}

/// Images that the kernel has something of, and not all: found once, where nothing says what verbs of this boot have done.
fn half_made(store: &Store, dm: &Dm) -> Result<BTreeSet<ImageId>, AttachError> {
    let heads = loops::find(|name| LoopId::head_image(name, store.id()).is_some())?;
    let mut all: BTreeSet<ImageId> = heads
        .iter()
        .filter_map(|found| LoopId::head_image(found.name.as_deref()?, store.id()))
        .collect();
    let mut whole = BTreeSet::new();
    for listed in dm.list()? {
        match listed.uuid.as_deref().and_then(|uuid| DeviceId::of_uuid(uuid, store.id())) {
            Some(DeviceId::Image(image)) => {
                let info = dm.info(&DeviceId::Image(image).uuid(store.id()))?;
                match info.is_some_and(|info| info.has_table) {
                    true => whole.insert(image),
                    false => all.insert(image),
                };
            }
            Some(DeviceId::Origin(image)) => drop(all.insert(image)),
            _ => {}
        }
    }
    Ok(all.difference(&whole).copied().collect())
}

/// What the kernel modes noted before a reboot, and an empty directory of markers.
fn forget_other_boots(run_dir: &Path) {
    let this = place::mapped_dir(run_dir);
    let Ok(entries) = fs::read_dir(run_dir) else { return };
    let stale = entries.filter_map(Result::ok).map(|entry| entry.path());
    let is_stale = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        *path != this && name.is_some_and(|name| name.starts_with(place::MAPPED))
    };
    for dir in stale.filter(is_stale) {
        // Notes of ours: nothing is ever mounted there.
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::debug!(dir = %dir.display(), cause = %error, "notes from another boot stay");
        }
    }
    let _has_markers = fs::remove_dir(place::doing_dir(run_dir));
}

/// The images with a marker.
fn marked(store: &Store) -> Vec<ImageId> {
    let Ok(entries) = fs::read_dir(place::doing_dir(&store.run_dir())) else {
        return Vec::new();
    };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The images that user mode has a directory of, or a loop device.
fn known(store: &Store, loops: &[LoopDevice]) -> Result<BTreeSet<ImageId>, AttachError> {
    let names = loops
        .iter()
        .filter_map(|device| LoopId::user_image(device.name.as_deref()?, store.id()));
    let mut all: BTreeSet<ImageId> = names.collect();
    all.extend(places(store)?);
    Ok(all)
}

/// The images that user mode has a directory of.
fn places(store: &Store) -> Result<BTreeSet<ImageId>, AttachError> {
    let run_dir = store.run_dir();
    match fs::read_dir(&run_dir) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(AttachError::Io {
            doing: "list",
            path: run_dir,
            source,
        }),
    }
}
