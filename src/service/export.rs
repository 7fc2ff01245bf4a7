//! `export`: an image as an archive or as a raw disk.
//!
//! Refuses to export what is being written to. Invariant: the target appears whole, by a rename, or not at all; and what a killed export leaves has no
//! name, or one by which the next to the same target finds it.

use super::engine::Engine;
use super::make::ms;
use super::mount::failed;
use super::own_mount::OwnMount;
use super::{ErrorKind, Export, ExportReply, Progress, ServiceError};
use crate::attach::{self, AttachOptions};
use crate::chain::{Change, Source, union};
use crate::files;
use crate::ids::ImageName;
use crate::store::ImageRecord;
use crate::units::{Bytes, DiskChunk};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Engine {
    pub(super) fn export(&self, ask: Export, progress: &dyn Progress) -> Result<ExportReply, ServiceError> {
        let start = Instant::now();
        let record = self.store.image(&ask.name)?;
        let as_tar = match ask.target.extension().and_then(|ending| ending.to_str()) {
            Some("tar") => true,
            Some("raw" | "img") => false,
            _ => {
                return Err(ServiceError::new(
                    ErrorKind::Usage,
                    format!("{}: want a name that ends in .tar or .raw", ask.target.display()),
                ));
            }
        };
        let draft = Target::new(&ask.target)?;
        let entries = match as_tar {
            true => Some(self.export_tar(&ask.name, &draft.file, progress)?),
            false => {
                self.export_raw(&record, &draft.file, progress)?;
                None
            }
        };
        progress.update("sync", 0, None);
        let written_bytes = draft.finish(&ask.target)?;
        Ok(ExportReply {
            name: ask.name,
            target: ask.target,
            written_bytes,
            entries,
            took_ms: ms(start.elapsed()),
        })
    }

    fn export_raw(&self, record: &ImageRecord, target: &File, progress: &dyn Progress) -> Result<(), ServiceError> {
        let _lock = self.store.lock_image(&record.name)?;
        let record = self.store.image(&record.name)?;
        let files = self.disk_files(&record, true);
        let disk = files.open()?;
        let ranges = self.data_ranges(&record, disk.size())?;
        let total = ranges.iter().map(|range| range.end.0 - range.start.0).sum();
        let mut tell = |done| progress.update("write", done, Some(total));
        files::raw_out::export(&*disk, ranges.into_iter(), target, &mut tell)
            .map_err(|error| ServiceError::new(ErrorKind::Failed, "writing the raw disk").because(Some(&error)))
    }

    /// What may be other than zeros.
    fn data_ranges(&self, record: &ImageRecord, size: Bytes) -> Result<Vec<Change>, ServiceError> {
        let map = self.disk_files(record, true).chain()?.into_map();
        let data = |segment: &crate::chain::Segment| !matches!(segment.source, Source::Zero);
        let sealed: Vec<Change> = map
            .segments(Bytes::ZERO..size)
            .filter(data)
            .map(|segment| segment.at..segment.end())
            .collect();
        let mut head = Vec::new();
        if record.head.is_some() {
            let file = self.open_head(&record.name)?;
            let chunk = file.chunk_size();
            let offset = |disk| chunk.disk_offset(disk).unwrap_or(size).min(size);
            head.extend(file.exceptions().iter().map(|e| offset(e.disk)..offset(DiskChunk(e.disk.0 + 1))));
        }
        Ok(union(&sealed, &head))
    }

    /// Through a read-only mount of its own.
    fn export_tar(&self, name: &ImageName, target: &File, progress: &dyn Progress) -> Result<u64, ServiceError> {
        let place = OwnMount::new(&self.store, "export", name)?;
        let dir = &place.dir;
        let options = AttachOptions {
            read_only: true,
            temporary: true,
            ..AttachOptions::default()
        };
        let mine = attach::mount(&self.store, name, dir, &options)?;
        let mut out = BufWriter::with_capacity(1 << 20, target);
        let mut tell = |bytes, _| progress.update("write", bytes, None);
        let written = files::open_root(dir)
            .map_err(|error| failed("open", dir, &error.into()))
            .and_then(|root| Ok(files::tar_out::export(&root, &mut out, &mut tell)?));
        let away = mine.umount(&self.store, name);
        let stats = written?;
        away?;
        out.flush()
            .map_err(|error| ServiceError::new(ErrorKind::Failed, "writing the archive").because(Some(&error)))?;
        Ok(stats.entries)
    }
}

/// The file that becomes the target: without a name until then, where the file system can do that; else beside it, and locked.
struct Target {
    draft: PathBuf,
    file: File,
    has_name: bool,
}

impl Target {
    fn new(target: &Path) -> Result<Target, ServiceError> {
        let draft = draft_of(target);
        let dir = target.parent().unwrap_or(Path::new("/"));
        let nameless = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
        let (file, has_name) = match nameless {
            Ok(file) => (File::from(file), false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => (named(&draft)?, true),
            Err(error) => return Err(failed("make a file in", dir, &error.into())),
        };
        Ok(Target { draft, file, has_name })
    }

    /// Durable, then in its place. Tells the size on disk.
    fn finish(mut self, target: &Path) -> Result<Bytes, ServiceError> {
        self.file.sync_all().map_err(|error| failed("sync", &self.draft, &error))?;
        let meta = self.file.metadata().map_err(|error| failed("look at", &self.draft, &error))?;
        let dir = target.parent().unwrap_or(Path::new("/"));
        let made = |error: io::Error| failed("make", target, &error);
        // Two exports to one target have one name for a draft.
        let turn = File::open(dir).map_err(|error| failed("open", dir, &error))?;
        rustix::io::retry_on_intr(|| flock(&turn, FlockOperation::LockExclusive)).map_err(|error| made(error.into()))?;
        if !self.has_name {
            remove_if_there(&self.draft).map_err(made)?;
            let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, nameless, CWD, &self.draft, AtFlags::SYMLINK_FOLLOW).map_err(|error| made(error.into()))?;
            self.has_name = true;
        }
        fs::rename(&self.draft, target).map_err(made)?;
        self.has_name = false;
        Ok(Bytes(meta.blocks() * 512))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.has_name
            && let Err(error) = fs::remove_file(&self.draft)
        {
            tracing::warn!(file = %self.draft.display(), cause = %error, "an unfinished export stays");
        }
    }
}

/// Hidden, and of a name that nobody else gives a file.
fn draft_of(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".blockbt-part");
    target.with_file_name(name)
}

/// Anew, over what a killed export left. Errors: in use by one that lives.
fn named(draft: &Path) -> Result<File, ServiceError> {
    let cannot = |error: io::Error| failed("make", draft, &error);
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW);
    loop {
        let file = options.open(draft).map_err(cannot)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let message = format!("{}: another export is at work on it", draft.display());
            return Err(ServiceError::new(ErrorKind::InUse, message));
        }
        // It may be another one's target by now.
        let ours = file.metadata().map_err(cannot)?;
        if fs::symlink_metadata(draft).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            file.set_len(0).map_err(cannot)?;
            return Ok(file);
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_there_whole_or_not_at_all_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.tar");
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(&target, "old").unwrap();
        // Of one that was killed between its last two steps, or where files have names from the start.
        fs::write(draft_of(&target), "half").unwrap();
        for has_name in [false, true] {
            let begin = || match has_name {
                false => Target::new(&target).unwrap(),
                true => Target {
                    draft: draft_of(&target),
                    file: named(&draft_of(&target)).unwrap(),
                    has_name,
                },
            };
            let given_up = begin();
            (&given_up.file).write_all(b"half").unwrap();
            if has_name {
                assert_eq!(named(&draft_of(&target)).unwrap_err().kind, ErrorKind::InUse);
            }
            drop(given_up);
            let wanted = format!("new {has_name}");
            let done = begin();
            (&done.file).write_all(wanted.as_bytes()).unwrap();
            done.finish(&target).unwrap();
            assert_eq!((fs::read_to_string(&target).unwrap(), names()), (wanted, vec!["a.tar".into()]));
        }
    }
}
