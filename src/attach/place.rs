//! Where an attached image's files are under `/run`, the lock that makes its verbs take turns, and its `state.json`.
//!
//! Refuses to know devices. Invariant: `state.json` is a hint for people and for finding names; what is attached is the kernel's to say.

mod listing;
mod state;

pub use listing::{Listing, list};
pub use state::{RootIdentity, State, boot_id};

use super::AttachError;
use super::disk::DiskFiles;
use super::names::LoopId;
use super::server::{DISK_FILE, LOCK_FILE};
use crate::ids::{ImageId, StoreId};
use crate::store::Store;
use rustix::fs::FlockOperation;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long a verb waits for another one on the same image.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);
const LOG_FILE: &str = "server.log";
const OWNER_FILE: &str = "owner.lock";
/// What the directory of the kernel modes is called, before the boot's id: one from another boot is of no use.
const MAPPED: &str = "mapped-";
/// What a marker is called, before the image's id.
const DOING: &str = "doing-";
/// How long a verb waits for those that change what images share: a crowd of hundreds takes seconds.
const DEVICES_PATIENCE: Duration = Duration::from_secs(60);
/// There when all shared loops have a hint.
const SCANNED: &str = "scanned";
/// In the marker of a temporary device.
const TEMPORARY: &[u8] = b"temporary\n";
/// At the end of the marker of an image whose leftovers could not be taken away, and for how long others believe it.
const RESISTED: &[u8] = b"resisted\n";
const RESISTANCE: Duration = Duration::from_secs(60);

/// One image's places.
#[derive(Debug, Clone)]
pub struct Place {
    pub store: StoreId,
    pub image: ImageId,
    /// `/run/blockbt/<store id>`
    run_dir: PathBuf,
}

impl Place {
    pub fn of(store: &Store, image: ImageId) -> Place {
        Place {
            store: store.id(),
            image,
            run_dir: store.run_dir(),
        }
    }

    pub fn dir(&self) -> PathBuf {
        self.run_dir.join(self.image.to_string())
    }

    pub fn fuse_dir(&self) -> PathBuf {
        self.dir().join("fuse")
    }

    pub fn disk(&self) -> PathBuf {
        self.fuse_dir().join(crate::fuse::FILE)
    }

    pub fn log(&self) -> PathBuf {
        self.dir().join(LOG_FILE)
    }

    fn state(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// Where the kernel modes of this boot have their files: not one directory an image, so that a look at the run directory costs the same
    /// with a thousand of them.
    pub fn mapped_dir(&self) -> PathBuf {
        mapped_dir(&self.run_dir)
    }

    /// The kernel modes' `state.json`.
    pub fn mapped_state(&self) -> PathBuf {
        self.mapped_dir().join(format!("{}.json", self.image))
    }

    pub fn remove_mapped(&self) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.mapped_state()))
    }

    fn hint(&self, loop_name: &str) -> PathBuf {
        self.mapped_dir().join("loops").join(loop_name)
    }

    /// Where a loop that images share was last; its name says whether it still is. Under the devices lock.
    pub fn hinted(&self, loop_name: &str) -> Option<u32> {
        fs::read_link(self.hint(loop_name)).ok()?.to_str()?.parse().ok()
    }

    /// A link, as that is one call to make and one to read.
    pub fn set_hint(&self, loop_name: &str, number: u32) -> io::Result<()> {
        let (hint, number) = (self.hint(loop_name), number.to_string());
        match in_dir(&self.mapped_dir().join("loops"), || symlink(&number, &hint)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                missing_is_fine(fs::remove_file(&hint))?;
                symlink(&number, &hint)
            }
            other => other,
        }
    }

    pub fn forget_hint(&self, loop_name: &str) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.hint(loop_name)))
    }

    /// Whether each loop that images share has its hint: those that were there before this boot's first verb, and all that were made since.
    pub fn has_all_hints(&self) -> bool {
        self.mapped_dir().join(SCANNED).exists()
    }

    pub fn set_all_hints(&self) -> io::Result<()> {
        let dir = self.mapped_dir();
        in_dir(&dir, || File::create(dir.join(SCANNED)).map(drop))
    }

    fn marker(&self) -> PathBuf {
        self.run_dir.join(format!("{DOING}{}", self.image))
    }

    /// Says that a verb changes what the kernel modes have of the image. `temporary`: until this process is gone.
    pub fn mark(&self, temporary: bool) -> io::Result<Marker> {
        let path = self.marker();
        let mut file = in_dir(&self.run_dir, || open_lock(&path))?;
        if temporary {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            file.write_all(TEMPORARY)?;
        }
        Ok(Marker {
            path,
            lock: Some(Held(file)),
        })
    }

    /// Whether a verb is at work on the image, or died while it was.
    pub fn is_marked(&self) -> bool {
        self.marker().exists()
    }

    /// Whether a process that lives wants the image attached for itself.
    pub fn has_owner(&self) -> bool {
        let opened = OpenOptions::new().read(true).open(self.marker());
        opened.and_then(|file| is_free(&file)).is_ok_and(|free| !free)
    }

    /// Whether a process that lives has a device of the image for itself, in any mode. It takes that away itself.
    pub fn is_owned(&self) -> bool {
        let is_held = |path: PathBuf| {
            let opened = File::open(path).map(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared));
            matches!(opened, Ok(Err(rustix::io::Errno::WOULDBLOCK)))
        };
        is_held(self.dir().join(OWNER_FILE)) || (self.is_temporary() && is_held(self.marker()))
    }

    /// Whether it was attached for one process alone.
    pub fn is_temporary(&self) -> bool {
        fs::read(self.marker()).is_ok_and(|text| text.starts_with(TEMPORARY))
    }

    /// Says that what a dead verb left could not be taken away just now.
    pub fn note_resisted(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.marker())?;
        match fs::read(self.marker())?.ends_with(RESISTED) {
            true => file.set_modified(SystemTime::now()),
            false => file.write_all(RESISTED),
        }
    }

    /// Whether that was a moment ago, so that verbs on other images need not lose their time with it again.
    pub fn has_resisted(&self) -> bool {
        let noted = fs::read(self.marker()).is_ok_and(|text| text.ends_with(RESISTED));
        let since = || fs::metadata(self.marker())?.modified()?.elapsed().map_err(io::Error::other);
        noted && since().is_ok_and(|since| since < RESISTANCE)
    }

    /// Waits until no other verb makes or removes devices that images share. Errors: `ResourceBusy` after a minute of that.
    pub fn lock_devices(&self) -> io::Result<Held> {
        let path = self.run_dir.join("devices.lock");
        let file = in_dir(&self.run_dir, || open_lock(&path))?;
        let (mut until, mut pause) = (None, Duration::from_millis(1));
        while !try_lock(&file)? {
            if Instant::now() > *until.get_or_insert_with(|| Instant::now() + DEVICES_PATIENCE) {
                let message = format!("other verbs have held {} for {} s", path.display(), DEVICES_PATIENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(16));
        }
        Ok(Held(file))
    }

    /// The name that the loop device of user mode bears.
    pub fn loop_name(&self) -> String {
        LoopId::User(self.image).name(self.store)
    }

    /// Makes the directories. Nobody but root looks into them.
    pub fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.fuse_dir())
    }

    /// Removes them. Errors: also if something is mounted there: nothing is ever removed recursively.
    pub fn remove(&self) -> io::Result<()> {
        missing_is_fine(fs::remove_dir(self.fuse_dir()))?;
        for file in ["state.json", "state.json.new", DISK_FILE, LOCK_FILE, OWNER_FILE, LOG_FILE] {
            missing_is_fine(fs::remove_file(self.dir().join(file)))?;
        }
        missing_is_fine(fs::remove_dir(self.dir()))
    }

    /// Waits for its turn.
    pub fn lock(&self, name: &dyn std::fmt::Display) -> Result<RunLock, AttachError> {
        let io = |source| AttachError::Io {
            doing: "lock",
            path: self.run_dir.clone(),
            source,
        };
        // Counted in pauses, not by the clock: while the machine stands still, the other verb does not get on either.
        let mut left = PATIENCE;
        loop {
            if let Some(lock) = self.try_lock().map_err(io)? {
                return Ok(lock);
            }
            if left.is_zero() {
                return Err(AttachError::Busy {
                    image: name.to_string(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            std::thread::sleep(PAUSE);
            left = left.saturating_sub(PAUSE);
        }
    }

    /// `None` while another verb works on the image.
    pub fn try_lock(&self) -> io::Result<Option<RunLock>> {
        let path = self.run_dir.join(format!("{}.lock", self.image));
        let file = in_dir(&self.run_dir, || open_lock(&path))?;
        if !try_lock(&file)? {
            return Ok(None);
        }
        // Its last owner may have removed it: then the lock is nobody's.
        Ok((file.metadata()?.nlink() > 0).then(|| RunLock {
            _lock: Held(file),
            path,
            place: self.dir(),
        }))
    }

    /// Says that this process is the only one that wants the image attached.
    pub fn own(&self) -> io::Result<Held> {
        let file = open_lock(&self.dir().join(OWNER_FILE))?;
        // Who asks whether there is an owner takes the lock for a moment, and nobody else does.
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(Held(file))
    }

    /// Whether the one who wanted it attached is dead, so that nobody will ever take it away.
    pub fn is_orphan(&self) -> bool {
        OpenOptions::new()
            .read(true)
            .open(self.dir().join(OWNER_FILE))
            .and_then(|file| is_free(&file))
            .unwrap_or(false)
    }

    /// Whether a server of this image lives, mounted or not; `None` where its lock's file is not there.
    pub fn has_server(&self) -> io::Result<Option<bool>> {
        match OpenOptions::new().read(true).open(self.dir().join(LOCK_FILE)) {
            Ok(file) => Ok(Some(!is_free(&file)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn write_disk(&self, disk: &DiskFiles) -> io::Result<()> {
        fs::write(self.dir().join(DISK_FILE), serde_json::to_vec_pretty(disk)?)
    }

    pub fn write_state(&self, state: &State) -> io::Result<()> {
        let path = match state.mode.is_kernel() {
            true => self.mapped_state(),
            false => self.state(),
        };
        let (draft, text) = (path.with_extension("json.new"), serde_json::to_vec_pretty(state)?);
        let dir = path.parent().expect("it is in a run directory");
        in_dir(dir, || fs::write(&draft, &text))?;
        fs::rename(draft, path)
    }

    /// `None` if there is none, if it makes no sense, or if it is from before a reboot.
    pub fn read_state(&self) -> Option<State> {
        State::read(&self.mapped_state()).or_else(|| State::read(&self.state()))
    }
}

/// Of a run directory: the kernel modes' files of this boot.
fn mapped_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(format!("{MAPPED}{}", boot_id().unwrap_or_default()))
}

/// Makes `dir` where it turns out not to be there.
fn in_dir<T>(dir: &Path, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match work() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            work()
        }
        other => other,
    }
}

/// A verb is at work. Dropped without [`Marker::done`] it stays: then the next verb looks what there is.
#[derive(Debug)]
pub struct Marker {
    path: PathBuf,
    lock: Option<Held>,
}

impl Marker {
    /// The one that is there.
    pub fn of(place: &Place) -> Marker {
        Marker {
            path: place.marker(),
            lock: None,
        }
    }

    pub fn done(self) -> io::Result<()> {
        missing_is_fine(fs::remove_file(&self.path))
    }

    /// Whoever has it is the owner of a temporary device.
    pub fn into_owner(self) -> Option<Held> {
        self.lock
    }
}

/// A lock that ends with this value. Closing alone would leave it to a child that another thread has just forked, until that one's `exec`.
#[derive(Debug)]
pub struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        let _goes_with_its_descriptor = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Held while a verb changes what is attached. Its file goes with it when nothing stays attached; who waited for that file sees that it is gone.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    place: PathBuf,
    _lock: Held,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if !self.place.exists() {
            let _still_there = fs::remove_file(&self.path);
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    try_flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether nobody has the lock, whose owner has it for itself. Shared, so that two who ask do not take each other for the owner.
fn is_free(file: &File) -> io::Result<bool> {
    try_flock(file, FlockOperation::NonBlockingLockShared)
}

fn try_flock(file: &File, how: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resisted_rests_for_a_while_and_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            store: StoreId([1; 8]),
            image: ImageId([2; 16]),
            run_dir: dir.path().join("store"),
        };
        assert!(!place.has_resisted() && place.note_resisted().is_err());
        for temporary in [false, true] {
            let marker = place.mark(temporary).unwrap();
            assert!(!place.has_resisted());
            for _ in 0..2 {
                place.note_resisted().unwrap();
                assert!(place.has_resisted() && place.is_marked() && place.is_temporary() == temporary);
            }
            assert_eq!(list(&place.run_dir).unwrap().marked, [place.image].into());
            let long_ago = SystemTime::now() - 2 * RESISTANCE;
            File::options()
                .append(true)
                .open(place.marker())
                .unwrap()
                .set_modified(long_ago)
                .unwrap();
            assert!(!place.has_resisted());
            marker.done().unwrap();
        }
        assert!(!place.is_marked() && list(&place.run_dir).unwrap().marked.is_empty());
    }
}
