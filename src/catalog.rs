//! An index of the store, in sled: which images there are, and what is known of objects.
//!
//! Refuses to know anything that the store's files do not say: they are the truth, and this can be deleted at any time. Invariant: whoever opens it
//! sees an index that was whole when it was last closed, or one made from the files just now.

mod rows;

pub use rows::{ImageRow, ObjectRow};

use crate::ids::{Digest, ImageId};
use crate::store::{Description, ImageRecord, ObjectKind, Store, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a process waits for another one's transaction.
const PATIENCE: Duration = Duration::from_secs(5);

/// The key, in sled's default tree, that says that the index is whole; its number is the rows' own version. Its value is the boot of the machine
/// that it holds for: what of the last changes a power cut took, here or from what we were to be told, is not asked but indexed again.
const FINISHED: &[u8] = b"whole-1";

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the catalogue {} is in use by another process", path.display())]
    Busy { path: PathBuf },
    #[error("the new catalogue {} is damaged as well: {cause}", path.display())]
    Broken { path: PathBuf, cause: String },
    #[error("{doing} the catalogue {}", path.display())]
    Index {
        doing: &'static str,
        path: PathBuf,
        source: sled::Error,
    },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the catalogue cannot be made from the store")]
    Store(#[from] StoreError),
}

/// The open index: of a daemon for as long as it lives, of a command for one transaction.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    // Dropped in this order: the index is closed before the next process is let in.
    db: sled::Db,
    images: sled::Tree,
    objects: sled::Tree,
    _lock: Lock,
}

/// Unlocked before it is closed: a child that another thread has just forked may have a copy for a moment.
#[derive(Debug)]
struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(cause = %errno, "the catalogue's lock goes only with its descriptor");
        }
    }
}

impl Catalog {
    /// Opens the index, waiting up to 5 s; makes it again where it is missing, damaged, or marked as stale.
    pub fn open(store: &Store) -> Result<Catalog, CatalogError> {
        Self::open_within(store, PATIENCE)
    }

    fn open_within(store: &Store, patience: Duration) -> Result<Catalog, CatalogError> {
        let start = Instant::now();
        let path = store.root().join("catalog.sled");
        let lock = lock(&store.root().join("catalog.lock"), patience)?;
        if store.index_marker().exists() {
            remove_index(&path)?;
        }
        let mut made_again = false;
        let (db, [images, objects]) = loop {
            match catch_unwind(AssertUnwindSafe(|| open_trees(&path))) {
                Ok(Ok(opened)) => break opened,
                // A thread of the last owner's sled is still on its way out.
                Ok(Err(sled::Error::Io(error))) if is_locked(&error) => {
                    if start.elapsed() >= patience {
                        return Err(CatalogError::Busy { path });
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(Err(source @ sled::Error::Io(_))) if !path.is_file() => {
                    return Err(CatalogError::Index {
                        doing: "open",
                        path,
                        source,
                    });
                }
                // sled panics on some damage instead of saying so.
                broken => {
                    let cause = broken
                        .ok()
                        .and_then(Result::err)
                        .map_or("a panic in sled".into(), |error| error.to_string());
                    if std::mem::replace(&mut made_again, true) {
                        return Err(CatalogError::Broken { path, cause });
                    }
                    tracing::warn!(path = %path.display(), cause, "the catalogue is damaged and is made again");
                    remove_index(&path)?;
                }
            }
        };
        let catalog = Catalog {
            path,
            db,
            images,
            objects,
            _lock: lock,
        };
        if !catalog.is_finished()? {
            catalog.rebuild(store)?;
        }
        catalog.catch_up(store)?;
        Ok(catalog)
    }

    /// One transaction of a command: opens, works, makes it durable, closes. Never held while somebody copies, hashes or mounts.
    ///
    /// Where the index cannot be had in time, the store is marked, and the next opener indexes again: for `work` that only writes,
    /// [`CatalogError::Busy`] is then no loss.
    pub fn with<T>(store: &Store, work: impl FnOnce(&Catalog) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        Self::with_within(store, PATIENCE, work)
    }

    fn with_within<T>(
        store: &Store,
        patience: Duration,
        work: impl FnOnce(&Catalog) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let result = Self::open_within(store, patience).and_then(|catalog| {
            let result = work(&catalog)?;
            catalog.flush()?;
            Ok(result)
        });
        if result.is_err() {
            store.mark_index_stale()?;
        }
        result
    }

    /// Learns what others changed and could not, or did not, tell: for who keeps it open.
    pub fn refresh(&self, store: &Store) -> Result<(), CatalogError> {
        match store.index_marker().exists() {
            true => self.rebuild(store),
            false => self.catch_up(store),
        }
    }

    /// Learns of the images that were cloned, renamed or removed since it was last open.
    fn catch_up(&self, store: &Store) -> Result<(), CatalogError> {
        let untold = store.untold()?;
        if untold.is_empty() {
            return Ok(());
        }
        for change in &untold {
            let Some(names) = &change.names else { return self.rebuild(store) };
            for name in names {
                match store.image(name) {
                    Ok(record) => self.put_image(&record)?,
                    Err(StoreError::NotFound { .. }) => self.remove_image(&ImageId::of(name))?,
                    Err(error) => tracing::warn!(%name, cause = %error, "an unreadable image is in the catalogue as it was"),
                }
            }
        }
        self.flush()?;
        Ok(store.told(untold)?)
    }

    /// Makes the index from the files.
    pub fn rebuild(&self, store: &Store) -> Result<(), CatalogError> {
        self.at("mark", self.db.remove(FINISHED))?;
        self.flush()?;
        // Removed before the files are read: what changes from now on and cannot be told to us marks the store anew.
        remove_marker(&store.index_marker())?;
        let untold = store.untold()?;
        for tree in [&self.images, &self.objects] {
            self.at("empty", tree.clear())?;
        }
        for image in store.images()?.images {
            self.put_image(&image)?;
        }
        for object in store.objects()? {
            let ObjectKind::Delta(digest) = object.kind else { continue };
            match store.description(&digest) {
                Ok(description) => self.put_object(&description)?,
                Err(error) => tracing::warn!(%digest, cause = %error, "an object without a description is not in the catalogue"),
            }
        }
        self.at("mark", self.db.insert(FINISHED, boot()))?;
        self.flush()?;
        Ok(store.told(untold)?)
    }

    /// What was put is on disk when this returns.
    pub fn flush(&self) -> Result<(), CatalogError> {
        self.at("flush", self.db.flush()).map(drop)
    }

    pub fn put_image(&self, image: &ImageRecord) -> Result<(), CatalogError> {
        let row = rows::encode(&ImageRow::of(image));
        self.at("write", self.images.insert(image.id().0, row)).map(drop)
    }

    pub fn remove_image(&self, id: &ImageId) -> Result<(), CatalogError> {
        self.at("write", self.images.remove(id.0)).map(drop)
    }

    pub fn image(&self, id: &ImageId) -> Result<Option<ImageRow>, CatalogError> {
        let row = self.at("read", self.images.get(id.0))?;
        Ok(row.and_then(|row| rows::decode(&row)))
    }

    /// All images, in no order that means anything.
    pub fn images(&self) -> Result<Vec<ImageRow>, CatalogError> {
        self.all(&self.images)
    }

    pub fn put_object(&self, object: &Description) -> Result<(), CatalogError> {
        let row = rows::encode(&ObjectRow::of(object));
        self.at("write", self.objects.insert(object.digest.0, row)).map(drop)
    }

    pub fn remove_object(&self, digest: &Digest) -> Result<(), CatalogError> {
        self.at("write", self.objects.remove(digest.0)).map(drop)
    }

    pub fn object(&self, digest: &Digest) -> Result<Option<ObjectRow>, CatalogError> {
        let row = self.at("read", self.objects.get(digest.0))?;
        Ok(row.and_then(|row| rows::decode(&row)))
    }

    pub fn objects(&self) -> Result<Vec<ObjectRow>, CatalogError> {
        self.all(&self.objects)
    }

    fn all<T: serde::de::DeserializeOwned>(&self, tree: &sled::Tree) -> Result<Vec<T>, CatalogError> {
        let mut all = Vec::new();
        for row in tree.iter() {
            all.extend(rows::decode::<T>(&self.at("read", row)?.1));
        }
        Ok(all)
    }

    fn is_finished(&self) -> Result<bool, CatalogError> {
        let boot = boot();
        let of = self.at("read", self.db.get(FINISHED))?;
        Ok(!boot.is_empty() && of.is_some_and(|of| of == boot))
    }

    fn at<T>(&self, doing: &'static str, result: sled::Result<T>) -> Result<T, CatalogError> {
        result.map_err(|source| CatalogError::Index {
            doing,
            path: self.path.clone(),
            source,
        })
    }
}

fn open_trees(path: &Path) -> sled::Result<(sled::Db, [sled::Tree; 2])> {
    let db = sled::Config::new()
        .path(path)
        .flush_every_ms(None)
        .cache_capacity(16 << 20)
        .open()?;
    let trees = [db.open_tree("images")?, db.open_tree("objects")?];
    Ok((db, trees))
}

/// Another one each time that the machine starts; empty where the kernel does not tell.
fn boot() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// sled gives no kind to this error, only words.
fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().starts_with("could not acquire lock")
}

/// Waits for the lock that goes with the index: sled's own admits one process, and fails at once.
fn lock(path: &Path, patience: Duration) -> Result<Lock, CatalogError> {
    let io = |doing, source: rustix::io::Errno| CatalogError::Io {
        doing,
        path: path.into(),
        source: source.into(),
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| io("open", e))?;
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(CatalogError::Busy { path: path.into() }),
            Err(errno) => return Err(io("lock", errno)),
        }
    }
}

fn remove_index(path: &Path) -> Result<(), CatalogError> {
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    gone(removed, path)
}

fn remove_marker(path: &Path) -> Result<(), CatalogError> {
    gone(std::fs::remove_file(path), path)
}

fn gone(removed: io::Result<()>, path: &Path) -> Result<(), CatalogError> {
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CatalogError::Io {
            doing: "remove",
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
