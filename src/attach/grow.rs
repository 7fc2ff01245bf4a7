//! More room for the head of an image while the kernel has it.
//!
//! Refuses a head that is full or given up, and one that a process of ours writes: those begin anew with the next attach. Invariant: the file is
//! longer before its loop is, and the loop before anybody writes the limit down; a limit is never lowered here.

use super::AttachError;
use super::owner::{check_head, check_owner};
use super::place::Place;
use super::seen::{Around, MappedSeen, device_mapper};
use crate::blockio::{FileIo, ReadAt, WriteAt};
use crate::format::head::{full_len, usable_len};
use crate::kernel::dm::SnapshotStatus;
use crate::kernel::loops;
use crate::store::{HeadRecord, ImageRecord, Store};
use crate::units::{Bytes, ChunkSize};
use std::fs::File;
use std::io;
use std::path::Path;

/// Lets the head of an attached image become as long as `limit`, or, without one, as its disk needs; the file system above notices nothing.
///
/// Returns whether it could: `false` where the image is not written to by the kernel, or its head takes no more writes.
pub fn grow_head(store: &Store, record: &ImageRecord, head: &HeadRecord, limit: Option<Bytes>) -> Result<bool, AttachError> {
    let place = Place::of(store, record.id());
    let _run_lock = place.lock(&record.name)?;
    let state = check_owner(store, &place)?;
    let Some(dm) = device_mapper()? else { return Ok(false) };
    let seen = MappedSeen::look(&dm, store.id(), record.id(), false, &Around::default())?;
    check_head(store, &place, state.as_ref(), &seen)?;
    let is_writable = seen.attached().is_some_and(|image| !image.read_only);
    let takes_writes = is_writable && matches!(seen.snapshot(&dm, store.id()), Some(SnapshotStatus::Used { .. }));
    let ours = |(number, name): &&(u32, String)| loops::name_of(*number).as_ref() == Some(name);
    let Some((number, _)) = seen.heads.iter().find(|head| takes_writes && ours(head)) else {
        return Ok(false);
    };
    let path = store.head_path(&record.name);
    lengthen(&path, record.virtual_size, head, limit).map_err(|source| AttachError::Io {
        doing: "lengthen",
        path,
        source,
    })?;
    loops::set_capacity(*number)?;
    Ok(true)
}

fn lengthen(path: &Path, disk: Bytes, head: &HeadRecord, limit: Option<Bytes>) -> io::Result<()> {
    let file = FileIo(File::options().read(true).write(true).open(path)?);
    let chunk = ChunkSize::new(head.chunk_size).map_err(io::Error::other)?;
    let there = file.size()?;
    let wanted = match (full_len(disk, chunk), limit) {
        (None, _) => there,
        (Some(full), Some(limit)) => full.min(usable_len(limit, chunk)),
        // What nobody names in it, after an unclean stop, is at most all of it.
        (Some(full), None) => usable_len(Bytes(full.0.saturating_add(there.0)), chunk),
    };
    if wanted <= there {
        return Ok(());
    }
    match head.reserve {
        true => file.reserve(wanted)?,
        false => file.set_len(wanted)?,
    }
    file.sync()
}
