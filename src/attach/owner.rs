//! Whose an attached image is: a copy of a store has the same id, and so the same names in the kernel.
//!
//! Refuses to change anything. Invariant: what another store has attached, and still has, is nobody else's to take away.

use super::AttachError;
use super::place::{Place, RootIdentity, State};
use super::seen::MappedSeen;
use crate::kernel::loops::{self, LoopDevice};
use crate::store::Store;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A store that was copied has the id of the original, and so the same places; whose the things there are, `state.json` says.
pub fn check_owner(store: &Store, place: &Place) -> Result<Option<State>, AttachError> {
    let Some(state) = place.read_state() else { return Ok(None) };
    let mine = RootIdentity::of(store.root()).map_err(|source| AttachError::Io {
        doing: "look at",
        path: store.root().into(),
        source,
    })?;
    match state.root.is_other_than(&mine) {
        true => Err(AttachError::OtherStore {
            id: store.id(),
            mine: mine.path,
            other: state.root.path,
        }),
        false => Ok(Some(state)),
    }
}

/// The same where no state says whose it is: then the file beneath its head does.
pub fn check_head(store: &Store, place: &Place, state: Option<&State>, seen: &MappedSeen) -> Result<(), AttachError> {
    if state.is_some() {
        return Ok(());
    }
    let is_at = |found: &LoopDevice, path: &Path| {
        let file = fs::metadata(path).map(|file| (Some(file.dev()), Some(file.ino())));
        file.is_ok_and(|file| file == (found.file_device, found.file_inode))
    };
    let mine = store.image_dir(place.image).join("head.delta");
    let named = |(number, name): &(u32, String)| loops::get(*number).filter(|found| found.name.as_ref() == Some(name));
    let mut heads = seen.heads.iter().filter_map(named);
    match heads.find(|found| is_at(found, &found.backing) && !is_at(found, &mine)) {
        Some(other) => Err(AttachError::OtherStore {
            id: store.id(),
            mine: store.root().into(),
            other: other.backing.ancestors().nth(3).unwrap_or(&other.backing).into(),
        }),
        None => Ok(()),
    }
}
