//! A tar archive into a mounted, new file system.
//!
//! Refuses what would reach outside or cannot be kept; the caller throws the file system away after an error.
//! Invariant: a name is checked here as text, and once more by the kernel in `beneath`.

use super::beneath::{Beneath, finish_file};
use super::meta::Kind;
use super::tar_read::{Archive, Entry};
use super::{FilesError, Stats};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Linux's limit on a path, with its final NUL.
const MAX_PATH: usize = 4095;

/// Unpacks `reader`, an uncompressed tar stream, beneath `root`.
///
/// Shape: `progress` is told the bytes read and the entries made so far, at least once per entry and MiB.
/// Errors: [`FilesError`], naming the entry; what was made before it stays.
pub fn import(reader: impl Read, root: &OwnedFd, progress: &mut dyn FnMut(u64, u64)) -> Result<Stats, FilesError> {
    let mut archive = Archive::new(reader);
    let mut to = Beneath::new(root);
    let mut stats = Stats::default();
    while let Some(mut entry) = archive.next_entry()? {
        let path = inner_path(&entry.path, &entry.path)?;
        refuse_whiteout(&path)?;
        if let Kind::Hardlink(target) = &mut entry.kind {
            *target = inner_path(target, &entry.path)?;
        }
        if path.is_empty() && entry.kind != Kind::Directory {
            return Err(FilesError::refused(&entry.path, "only a directory can be the root"));
        }
        match entry.kind {
            Kind::File => stats.bytes += import_file(&mut archive, &mut to, &path, &entry, stats.entries, progress)?,
            Kind::Hardlink(ref target) if target.is_empty() => {
                return Err(FilesError::refused(&entry.path, "a hard link to the root"));
            }
            _ => to
                .node(&path, &entry.kind, &entry.meta)
                .map_err(FilesError::step(&entry.path, step_of(&entry.kind)))?,
        }
        stats.entries += 1;
        stats.attributes_skipped += entry.skipped;
        progress(archive.offset(), stats.entries);
    }
    to.finish()
        .map_err(|(path, error)| FilesError::step(&path, "its mode and times cannot be set")(error))?;
    Ok(stats)
}

fn import_file<R: Read>(
    archive: &mut Archive<R>,
    to: &mut Beneath,
    path: &[u8],
    entry: &Entry,
    entries: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, FilesError> {
    let file = to.create(path).map_err(FilesError::step(&entry.path, "it cannot be made"))?;
    let mut end = 0;
    // A part of no length, as GNU tar puts one at the end, would not make the file longer.
    for &(offset, length) in entry.map.parts.iter().filter(|part| part.1 > 0) {
        end = offset;
        let stop = offset + length;
        while end < stop {
            let data = archive.data(stop - end)?;
            file.write_all_at(data, end)
                .map_err(FilesError::step(&entry.path, "it cannot be written"))?;
            let count = data.len();
            archive.consume(count);
            end += count as u64;
            progress(archive.offset(), entries);
        }
    }
    if end < entry.map.size {
        file.set_len(entry.map.size)
            .map_err(FilesError::step(&entry.path, "it cannot be given its size"))?;
    }
    finish_file(&file, &entry.meta).map_err(FilesError::step(&entry.path, "its owner, mode, attributes or times cannot be set"))?;
    Ok(entry.map.stored())
}

fn step_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Directory | Kind::File => "the directory cannot be made",
        Kind::Hardlink(_) => "the hard link cannot be made",
        Kind::Symlink(_) => "the symbolic link cannot be made",
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => "the special file cannot be made",
    }
}

/// A path as `beneath` takes it: parts without "." and doubled slashes, relative, never upwards. Empty for the root itself.
fn inner_path(path: &[u8], entry: &[u8]) -> Result<Vec<u8>, FilesError> {
    let what = if std::ptr::eq(path, entry) {
        "its name"
    } else {
        "the name it links to"
    };
    let refused = |why: &str| Err(FilesError::refused(entry, format!("{what} {why}")));
    if path.is_empty() {
        return refused("is empty");
    }
    if path[0] == b'/' {
        return refused("is absolute");
    }
    if path.contains(&0) {
        return refused("has a NUL byte");
    }
    if path.len() > MAX_PATH {
        return refused("is longer than 4095 bytes");
    }
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return refused("has a \"..\" in it");
    }
    Ok(parts.join(&b'/'))
}

fn refuse_whiteout(path: &[u8]) -> Result<(), FilesError> {
    if path.split(|&b| b == b'/').any(|part| part.starts_with(b".wh.")) {
        return Err(FilesError::refused(
            path,
            "a whiteout: this is one layer of a container image, import takes a whole, flattened tree",
        ));
    }
    Ok(())
}
