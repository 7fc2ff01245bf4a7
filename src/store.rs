//! Objects and images on disk: what is there, who may touch it, and how a change becomes whole or never was.
//!
//! Refuses to know devices, torrents and the catalogue; the file system is the only truth it has. Invariant: every change is prepared in `tmp/`,
//! synced, and enters its place by one rename or link, so that a reader sees all of it or nothing.
//!
//! Order of locks: an image's lock, then the store's (`gc.lock`), then an image directory's record lock. The first is never waited for, the
//! other two are held for moments.

mod commit;
mod error;
mod flatten;
mod fs;
mod gc;
mod image;
mod lock;
mod make;
mod objects;
mod parts;
mod problems;
mod recover;
mod resize;
pub mod stop;
mod txn;
mod untold;

pub use crate::format::head::HeadBounds;
pub use error::StoreError;
pub use gc::{GcReport, Removed};
pub use image::{HeadRecord, HistoryEntry, ImageListing, ImageRecord, Published};
pub use lock::{Guard, ImageLock};
pub use make::{Cloned, make_head};
pub use objects::{Description, ObjectInfo, ObjectKind, ObjectPaths};
pub use parts::{GIVEN_UP_AFTER, Part};
pub use problems::Problem;
pub use txn::{Intent, Txn};
pub use untold::Untold;

use crate::ids::{ImageId, StoreId};
use error::At;
use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The layout that this code reads and writes.
const LAYOUT: u64 = 1;

/// The folders of a store; `VERSION` is written after them, and makes a store of them.
const FOLDERS: [&str; 6] = ["objects", "images", "incoming", "trust", "tmp", "journal"];

/// A store: one directory tree on one file system.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    id: StoreId,
    guard: Option<Guard>,
}

impl Store {
    /// Opens a store, and finishes or undoes what dead processes left in it; makes one where `root` is missing or empty.
    ///
    /// Errors: [`StoreError::NotAStore`], [`StoreError::Newer`] for a layout that we do not know.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        let store = Store::make(root)?;
        store.recover()?;
        Ok(store)
    }

    /// The same where somebody may use images who holds no lock on them: `guard` is asked of every image that is locked, from the first one on.
    pub fn open_guarded(root: &Path, guard: Guard) -> Result<Store, StoreError> {
        let mut store = Store::make(root)?;
        store.guard = Some(guard);
        store.recover()?;
        Ok(store)
    }

    /// The same for who only wants to know where it is: no dead process's work is touched.
    pub fn make(root: &Path) -> Result<Store, StoreError> {
        let version = root.join("VERSION");
        if !version.try_exists().at("look for", &version)? {
            create(root)?;
        }
        let id = parse_version(&version, &fs::read_bounded(&version, 4096)?)?;
        let root = std::path::absolute(root).at("resolve", root)?;
        Ok(Store { root, id, guard: None })
    }

    /// As [`Store::make`], and `None` where that would make one.
    pub fn find(root: &Path) -> Result<Option<Store>, StoreError> {
        let version = root.join("VERSION");
        if version.try_exists().at("look for", &version)? {
            return Store::make(root).map(Some);
        }
        match fs::list(root) {
            Err(error) if error.is_missing() => Ok(None),
            Ok(entries) if !entries.iter().all(|entry| may_be_in_a_new_store(entry)) => Err(StoreError::NotAStore { path: root.into() }),
            other => other.map(|_| None),
        }
    }

    pub fn id(&self) -> StoreId {
        self.id
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sockets, FUSE files and mounts of this store.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/blockbt").join(self.id.to_string())
    }

    /// The directory of an image that is, or could be, in the store.
    pub fn image_dir(&self, id: ImageId) -> PathBuf {
        self.images_dir().join(id.to_string())
    }

    /// Where deltas arrive.
    pub fn incoming_dir(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Says that the catalogue no longer shows what the files are: its next opener indexes again.
    pub fn mark_index_stale(&self) -> Result<(), StoreError> {
        let marker = self.index_marker();
        std::fs::File::create(&marker).map(drop).at("write", &marker)
    }

    /// The marker of [`Store::mark_index_stale`].
    pub fn index_marker(&self) -> PathBuf {
        self.root.join("catalog.dirty")
    }

    fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn journal_dir(&self) -> PathBuf {
        self.root.join("journal")
    }
}

/// Makes an empty store. Two processes may do so at once: the first `VERSION` stays.
fn create(root: &Path) -> Result<(), StoreError> {
    let mut folder = DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(root).at("make", root)?;
    for entry in fs::list(root)? {
        if !may_be_in_a_new_store(&entry) {
            return Err(StoreError::NotAStore { path: root.into() });
        }
    }
    for name in FOLDERS {
        let path = root.join(name);
        folder.create(&path).at("make", &path)?;
    }
    let id = StoreId(fs::random());
    let text = format!("blockbt store {LAYOUT}\nid {id}\n");
    let version = root.join("VERSION");
    let draft = root.join(format!("VERSION.{id}"));
    let claimed = fs::write_synced(&draft, text.as_bytes(), 0o644).and_then(|()| fs::rename_new(&draft, &version));
    if let Err(error) = claimed {
        fs::unlink_if_there(&draft)?;
        if !error.is_exists() {
            return Err(error);
        }
    }
    fs::sync_dir(root)
}

/// What a process that makes the same store, or died while it did, may have put there; and what mkfs puts everywhere.
fn may_be_in_a_new_store(name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    FOLDERS.contains(&&*text) || text.starts_with("VERSION") || text == "lost+found"
}

fn parse_version(path: &Path, bytes: &[u8]) -> Result<StoreId, StoreError> {
    let not_ours = || StoreError::NotAStore {
        path: path.parent().unwrap_or(path).into(),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| not_ours())?;
    let mut lines = text.lines();
    let layout = lines
        .next()
        .and_then(|line| line.strip_prefix("blockbt store "))
        .ok_or_else(not_ours)?;
    let layout: u64 = layout.parse().map_err(|_| not_ours())?;
    if layout != LAYOUT {
        return Err(StoreError::Newer {
            path: path.into(),
            found: layout,
            known: LAYOUT,
        });
    }
    let id = lines
        .next()
        .and_then(|line| line.strip_prefix("id "))
        .and_then(|id| id.parse().ok());
    id.ok_or_else(|| StoreError::Damaged {
        path: path.into(),
        why: "want a second line \"id\" with 16 hexadecimal digits".into(),
    })
}

#[cfg(test)]
mod tests;
