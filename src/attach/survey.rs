//! All that is attached of a store, and what dead processes left of it.
//!
//! Refuses to attach anything. Invariant: a sweep touches only what is of its own store, and what no living verb is at work on; it looks at
//! markers and at user mode's directories, so that it costs the same with one image attached by the kernel as with a thousand.

use super::below;
use super::error::whole;
use super::mapped;
use super::mode::Mode;
use super::names::{DeviceId, LoopId};
use super::owner::{check_head, check_owner};
use super::place::{self, Listing, Place, State};
use super::seen::{Around, LoopSeen, MappedSeen, Seen, device_mapper};
use super::{AttachError, take_away};
use crate::ids::{ImageId, ImageName};
use crate::kernel::dm::{Dm, SnapshotStatus};
use crate::kernel::loops;
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
    let (around, listing) = (Around::default(), listed(store)?);
    let mut all = Vec::new();
    let loops = around.loops()?.iter().filter_map(|device| device.name.as_deref());
    let mut users = listing.places;
    users.extend(loops.clone().filter_map(|name| LoopId::user_image(name, store.id())));
    for image in users {
        all.extend(user_state(store, &Place::of(store, image), &around)?);
    }
    if let Some(dm) = device_mapper()? {
        let mut images = listing.marked;
        images.extend(loops.filter_map(|name| LoopId::head_image(name, store.id())));
        images.extend(
            dm.list()?
                .iter()
                .filter_map(|listed| match DeviceId::of_uuid(listed.uuid.as_deref()?, store.id())? {
                    DeviceId::Image(image) | DeviceId::Origin(image) => Some(image),
                    _ => None,
                }),
        );
        for image in images {
            all.extend(mapped_state(store, &dm, &Place::of(store, image), &around)?);
        }
    }
    Ok(all)
}

/// The same of one image, without a look at others.
pub fn state(store: &Store, image: ImageId) -> Result<Option<AttachState>, AttachError> {
    let (place, around) = (Place::of(store, image), Around::default());
    if place.dir().exists()
        && let Some(found) = user_state(store, &place, &around)?
    {
        return Ok(Some(found));
    }
    match device_mapper()? {
        Some(dm) => mapped_state(store, &dm, &place, &around),
        None => Ok(None),
    }
}

fn user_state(store: &Store, place: &Place, around: &Around) -> Result<Option<AttachState>, AttachError> {
    // A copy of this store has it.
    let Ok(state) = check_owner(store, place) else { return Ok(None) };
    let seen = Seen::of(place, around.loops()?, around.mounts()?);
    if seen.is_nothing() {
        return Ok(None);
    }
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

fn mapped_state(store: &Store, dm: &Dm, place: &Place, around: &Around) -> Result<Option<AttachState>, AttachError> {
    let Ok(state) = check_owner(store, place) else { return Ok(None) };
    let is_marked = place.is_marked();
    let seen = MappedSeen::look(dm, place.store, place.image, is_marked, around)?;
    if seen.is_nothing() || check_head(store, place, state.as_ref(), &seen).is_err() {
        return Ok(None);
    }
    let device = seen.attached();
    let is_wanted = !is_marked || !place.is_temporary() || place.has_owner();
    Ok(Some(AttachState {
        image: place.image,
        name: state.as_ref().map(|state| state.name.clone()),
        condition: condition(place, device.is_some() && is_wanted)?,
        device: device.map(|device| device.device.clone()),
        read_only: device.is_some_and(|device| device.read_only),
        // An image without deltas stands on zeros in either kernel mode.
        mode: seen.mode().or(state.as_ref().map(|state| state.mode)).unwrap_or(Mode::Flat),
        why: state.as_ref().map(|state| state.why.clone()),
        snapshot: seen.snapshot(dm, place.store),
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
/// resists is left to the next verb on that image, which says why: one image's trouble is not all images'. `own`: the one that is to be changed,
/// by a verb which does not look what is there itself.
pub fn sweep(store: &Store, own: Option<ImageId>) -> Result<Vec<ImageId>, AttachError> {
    let mut swept = Vec::new();
    let mut note = |image: ImageId, result: Result<bool, AttachError>| match result {
        Ok(true) => swept.push(image),
        Ok(false) => {}
        Err(error) if error.is_gone() => {
            tracing::warn!(%image, error = whole(&error), "leftovers are taken away");
            swept.push(image);
        }
        Err(error) => tracing::warn!(%image, error = whole(&error), "leftovers could not be taken away"),
    };
    let Listing {
        places,
        marked,
        other_boots,
    } = listed(store)?;
    for image in places {
        note(image, sweep_user(store, image));
    }
    let is_new_boot = !Place::of(store, ImageId([0; 16])).has_all_hints();
    if (is_new_boot || !marked.is_empty())
        && let Some(dm) = device_mapper()?
    {
        let mut images = marked.clone();
        if is_new_boot {
            images.extend(half_made(store, &dm)?);
        }
        for image in images {
            note(image, sweep_mapped(store, &dm, image, marked.contains(&image), own));
        }
        if is_new_boot {
            let place = Place::of(store, ImageId([0; 16]));
            if let Err(error) = mapped::release(&"none", &place, &dm, || below::all(&dm, store.id())) {
                tracing::warn!(error = whole(&error), "shared devices that nobody uses stay");
            }
            if let Err(error) = note_loops(&place) {
                tracing::warn!(error = whole(&error), "loops that images share are not noted: all are asked");
            }
        }
    }
    for dir in other_boots {
        // Notes of ours: nothing is ever mounted there.
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::debug!(dir = %dir.display(), cause = %error, "notes from another boot stay");
        }
    }
    Ok(swept)
}

/// Gives each loop that images share its hint.
fn note_loops(place: &Place) -> Result<(), AttachError> {
    let _devices = place.lock_devices().map_err(mapped::at_work(place))?;
    for found in loops::find(|name| LoopId::is_shared(name, place.store))? {
        if let Some(name) = found.name {
            place.set_hint(&name, found.number).map_err(mapped::at_work(place))?;
        }
    }
    place.set_all_hints().map_err(mapped::at_work(place))
}

fn sweep_user(store: &Store, image: ImageId) -> Result<bool, AttachError> {
    let place = Place::of(store, image);
    let (Some(_lock), Ok(state)) = (try_lock(&place)?, check_owner(store, &place)) else {
        return Ok(false);
    };
    let around = Around::default();
    let seen = Seen::of(&place, around.loops()?, around.mounts()?);
    if seen.attached().is_some() && !place.is_orphan() {
        return Ok(false);
    }
    take_away(&known_as(image, state), &place, &seen)?;
    Ok(true)
}

/// For people; the image's id where nothing remembers its name.
fn known_as(image: ImageId, state: Option<State>) -> String {
    state.map_or_else(|| image.to_string(), |state| state.name.to_string())
}

fn sweep_mapped(store: &Store, dm: &Dm, image: ImageId, marked: bool, own: Option<ImageId>) -> Result<bool, AttachError> {
    let place = Place::of(store, image);
    let lock = try_lock(&place)?;
    // A verb that lived when the markers were listed may have come to its end since: then there is nothing to do, and to look as if there were
    // would have others refused the image.
    let rests = || own != Some(image) && place.has_resisted();
    if lock.is_none() || (marked && !place.is_marked()) || place.has_owner() || rests() || check_owner(store, &place).is_err() {
        return Ok(false);
    }
    mapped::sweep(&known_as(image, place.read_state()), &place, dm).inspect_err(|_| {
        if let Err(error) = place.note_resisted() {
            tracing::debug!(%image, cause = %error, "the next verb tries again");
        }
    })
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

fn listed(store: &Store) -> Result<Listing, AttachError> {
    let run_dir = store.run_dir();
    place::list(&run_dir).map_err(|source| AttachError::Io {
        doing: "list",
        path: run_dir,
        source,
    })
}
