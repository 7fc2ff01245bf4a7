//! `export`: an image as an archive or as a raw disk.
//!
//! Refuses to export what is being written to, and to wait for anybody who has the target's directory. Invariant: the target appears whole, by a
//! rename, or not at all; and what a killed export leaves has no name, or one by which the next to the same target finds it: only one of several
//! at once, or one whose name somebody else has, has a name of its own.

use super::engine::Engine;
use super::make::ms;
use super::mount::failed;
use super::own_mount::OwnMount;
use super::{ErrorKind, Export, ExportReply, Progress, ServiceError};
use crate::attach::{self, AttachOptions};
use crate::chain::{Change, Source, union};
use crate::files;
use crate::ids::{ImageName, Sha256};
use crate::store::ImageRecord;
use crate::units::{Bytes, DiskChunk};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
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

/// The file that becomes the target: without a name until then, where the file system can do that; else beside it. Locked while it lives.
struct Target {
    draft: PathBuf,
    file: File,
    has_name: bool,
}

impl Target {
    fn new(target: &Path) -> Result<Target, ServiceError> {
        let dir = target.parent().unwrap_or(Path::new("/"));
        // Such as a name that is too long.
        if let Err(error) = fs::symlink_metadata(target)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed("make", target, &error));
        }
        let nameless = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
        match nameless {
            Ok(file) => Ok(Target {
                draft: draft_of(target),
                file: File::from(file),
                has_name: false,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Target::named(target),
            Err(error) => Err(failed("make a file in", dir, &error.into())),
        }
    }

    fn named(target: &Path) -> Result<Target, ServiceError> {
        let (draft, file) = with_a_name(target, |draft| {
            let file = File::options().read(true).write(true).create_new(true).open(draft)?;
            // Until it is locked, another export takes it for one that was left.
            match try_lock(&file) && is_at(&file, draft) {
                true => Ok(file),
                false => Err(io::ErrorKind::AlreadyExists.into()),
            }
        })?;
        Ok(Target {
            draft,
            file,
            has_name: true,
        })
    }

    /// Durable, then in its place. Tells the size on disk.
    fn finish(mut self, target: &Path) -> Result<Bytes, ServiceError> {
        self.file.sync_all().map_err(|error| failed("sync", &self.draft, &error))?;
        let meta = self.file.metadata().map_err(|error| failed("look at", &self.draft, &error))?;
        if !self.has_name {
            try_lock(&self.file);
            let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |draft: &Path| Ok(linkat(CWD, &nameless, CWD, draft, AtFlags::SYMLINK_FOLLOW)?);
            (self.draft, ()) = with_a_name(target, link)?;
            self.has_name = true;
        }
        fs::rename(&self.draft, target).map_err(|error| failed("make", target, &error))?;
        self.has_name = false;
        let dir = target.parent().unwrap_or(Path::new("/"));
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            // Not every file system can.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(failed("sync", dir, &error)),
            _ => Ok(Bytes(meta.blocks() * 512)),
        }
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

/// Hidden, and short, however long the target's name is.
fn draft_of(target: &Path) -> PathBuf {
    let name = Sha256::of(target.file_name().unwrap_or_default().as_bytes());
    draft_named(target, &name.0[..16])
}

fn draft_named(target: &Path, name: &[u8]) -> PathBuf {
    target.with_file_name(format!(".{}.blockbt-part", hex::encode(name)))
}

/// Makes something under the target's name for a draft, in the place of what a killed export left; else, where that is somebody's, under another.
fn with_a_name<T>(target: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T), ServiceError> {
    let mut draft = draft_of(target);
    remove_left(&draft);
    let mut made = make(&draft);
    if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| failed("make", target, &io::Error::other(error)))?;
        draft = draft_named(target, &random);
        made = make(&draft);
    }
    match made {
        Ok(made) => Ok((draft, made)),
        Err(error) => Err(failed("make", &draft, &error)),
    }
}

/// Removes the draft of an export that is dead: nobody has it locked.
fn remove_left(draft: &Path) {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    if let Ok(left) = options.open(draft)
        && try_lock(&left)
        && is_at(&left, draft)
        && let Err(error) = fs::remove_file(draft)
    {
        tracing::debug!(file = %draft.display(), cause = %error, "what has the name of a draft stays");
    }
}

fn try_lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let (open, there) = (file.metadata().map(identity), fs::symlink_metadata(path).map(identity));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    type Make = fn(&Path) -> Result<Target, ServiceError>;
    const MAKE: [Make; 2] = [Target::new, Target::named];

    #[test]
    fn a_target_is_there_whole_or_not_at_all_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        for target in [dir.path().join("a.tar"), dir.path().join(format!("{}.tar", "n".repeat(251)))] {
            fs::write(&target, "old").unwrap();
            // With a name from the start, or not.
            for (n, make) in MAKE.into_iter().enumerate() {
                // Of one that was killed.
                fs::write(draft_of(&target), "half").unwrap();
                let given_up = make(&target).unwrap();
                (&given_up.file).write_all(b"half").unwrap();
                drop(given_up);
                assert_eq!(fs::read_to_string(&target).unwrap(), if n == 0 { "old" } else { "second 0" });
                let (first, second) = (make(&target).unwrap(), make(&target).unwrap());
                (&first.file).write_all(b"first").unwrap();
                (&second.file).write_all(format!("second {n}").as_bytes()).unwrap();
                first.finish(&target).unwrap();
                assert_eq!(fs::read_to_string(&target).unwrap(), "first");
                second.finish(&target).unwrap();
                assert_eq!(fs::read_to_string(&target).unwrap(), format!("second {n}"));
                assert_eq!(names(dir.path()), [target.file_name().unwrap().to_str().unwrap()]);
            }
            fs::remove_file(&target).unwrap();
        }
        let too_long = dir.path().join(format!("{}.tar", "n".repeat(252)));
        assert!(Target::new(&too_long).is_err());
    }

    #[test]
    fn nobody_who_has_the_directory_or_the_name_of_a_draft_is_waited_for_or_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (target, theirs) = (dir.path().join("a.raw"), dir.path().join("theirs"));
        let _directory = File::open(dir.path()).inspect(|dir| assert!(try_lock(dir))).unwrap();
        fs::write(&theirs, "theirs").unwrap();
        let _file = File::open(&theirs).inspect(|file| assert!(try_lock(file))).unwrap();
        for make in MAKE {
            for symlink in [false, true] {
                let link = match symlink {
                    true => std::os::unix::fs::symlink(&theirs, draft_of(&target)),
                    false => fs::hard_link(&theirs, draft_of(&target)),
                };
                link.unwrap();
                let done = make(&target).unwrap();
                (&done.file).write_all(b"ours").unwrap();
                done.finish(&target).unwrap();
                assert_eq!(fs::read_to_string(&target).unwrap(), "ours");
                assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
                fs::remove_file(draft_of(&target)).unwrap();
                assert_eq!(names(dir.path()), ["a.raw", "theirs"]);
            }
        }
    }
}
