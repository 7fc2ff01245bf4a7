//! Locks between processes: one per image, one for the store.
//!
//! Refuses to know what is done under them. Invariant: all are `flock`s on files of the store, so that a killed process holds none.

use super::error::{At, StoreError};
use super::{Store, fs};
use crate::ids::{ImageId, ImageName};
use rustix::fs::FlockOperation;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An image is ours as long as this, or a copy of its descriptor in any process, lives.
#[derive(Debug)]
pub struct ImageLock {
    file: File,
    handed_on: AtomicBool,
}

/// Whether somebody uses an image who holds no lock on it: the kernel does, when it has the image attached and no process of ours lives.
#[derive(Clone)]
pub struct Guard(Arc<Asked>);

type Asked = dyn Fn(&Store, ImageId) -> io::Result<bool> + Send + Sync;

impl Guard {
    pub fn new(is_used: impl Fn(&Store, ImageId) -> io::Result<bool> + Send + Sync + 'static) -> Guard {
        Guard(Arc::new(is_used))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// The store's lock, shared: nothing is collected meanwhile.
#[derive(Debug)]
pub(super) struct Shared {
    _file: Moment,
}

/// The store's lock, alone.
#[derive(Debug)]
pub(super) struct Exclusive {
    _file: Moment,
}

/// A lock that ends with this value. Closing alone would leave it to a child that another thread has forked and that has not yet reached its
/// `exec`, where the copies of our descriptors close.
#[derive(Debug)]
pub(super) struct Moment(pub(super) File);

impl Drop for Moment {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

fn unlock(file: &File) {
    if let Err(errno) = rustix::fs::flock(file, FlockOperation::Unlock) {
        tracing::warn!(cause = %errno, "a lock goes only with its descriptor");
    }
}

impl ImageLock {
    /// Whether it is the lock of the image whose directory is at `dir` now.
    pub(super) fn is_of(&self, dir: &Path) -> Result<bool, StoreError> {
        fs::is_at(&self.file, &dir.join("lock"))
    }

    /// A copy for a child process: the image stays locked until the child is gone as well.
    ///
    /// Hand it on as one of the child's standard streams (`Command::stdin`). It closes on `exec` like any other, so that no child that some
    /// other thread starts at the same time takes the lock with it.
    pub fn inheritable(&self) -> io::Result<OwnedFd> {
        let copy = self.file.try_clone()?;
        self.handed_on.store(true, Ordering::Relaxed);
        Ok(copy.into())
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        if !self.handed_on.load(Ordering::Relaxed) {
            unlock(&self.file);
        }
    }
}

impl AsFd for ImageLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Store {
    /// Takes an image for itself: to attach, change or remove it. What a dead process left half done in the store is settled: nobody who dies
    /// later can have been at work on this image.
    ///
    /// Errors: [`StoreError::InUse`], [`StoreError::NotFound`]; never waits.
    pub fn lock_image(&self, name: &ImageName) -> Result<ImageLock, StoreError> {
        let lock = self.lock_unused(name)?;
        self.recover_again(Some(&lock))?;
        Ok(lock)
    }

    /// The same, without a look at the rest of the store.
    pub(super) fn lock_unused(&self, name: &ImageName) -> Result<ImageLock, StoreError> {
        let lock = self.lock_image_raw(name)?;
        // Under the lock: whoever attaches takes it first.
        let id = ImageId::of(name);
        match &self.guard {
            Some(Guard(is_used)) if is_used(self, id).at("ask who uses", &self.image_dir(id))? => {
                Err(StoreError::InUse { name: name.clone() })
            }
            _ => Ok(lock),
        }
    }

    /// The same without asking the guard, for whoever has its answer.
    pub fn lock_image_unasked(&self, name: &ImageName) -> Result<ImageLock, StoreError> {
        let lock = self.lock_image_raw(name)?;
        self.recover_again(Some(&lock))?;
        Ok(lock)
    }

    pub(super) fn lock_image_raw(&self, name: &ImageName) -> Result<ImageLock, StoreError> {
        let dir = self.image_dir(ImageId::of(name));
        loop {
            match lock_dir(&dir) {
                Err(error) if error.is_missing() => return Err(StoreError::NotFound { name: name.clone() }),
                Err(error) => return Err(error),
                Ok(None) => return Err(StoreError::InUse { name: name.clone() }),
                Ok(Some(lock)) if lock.is_of(&dir)? => return Ok(lock),
                // Renamed or removed, and perhaps made again, between open and lock: it is some other image's.
                Ok(Some(_)) => {}
            }
        }
    }

    /// Waits, for moments, until nobody collects or sweeps.
    pub(super) fn share(&self) -> Result<Shared, StoreError> {
        let path = self.root.join("gc.lock");
        let file = fs::open_lock(&path)?;
        fs::wait_lock(&file, FlockOperation::LockShared, &path)?;
        Ok(Shared { _file: Moment(file) })
    }

    /// Tries for `patience` to be alone in the store. Never queues, so that it holds up nobody.
    pub(super) fn exclude(&self, patience: Duration) -> Result<Exclusive, StoreError> {
        let path = self.root.join("gc.lock");
        let file = fs::open_lock(&path)?;
        let start = Instant::now();
        while !fs::try_lock(&file, &path)? {
            if start.elapsed() >= patience {
                return Err(StoreError::Busy {
                    path,
                    seconds: patience.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Exclusive { _file: Moment(file) })
    }
}

/// Locks an image's directory, also one that is still in `tmp/`; `None` when somebody else has it.
pub(super) fn lock_dir(dir: &Path) -> Result<Option<ImageLock>, StoreError> {
    let path = dir.join("lock");
    let file = fs::open_lock(&path)?;
    Ok(fs::try_lock(&file, &path)?.then(|| ImageLock {
        file,
        handed_on: AtomicBool::new(false),
    }))
}
