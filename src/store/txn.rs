//! Work in progress: a folder of its own, a line in the journal, and a lock that dies with the process.
//!
//! Refuses to know how work is finished; see `recover`. Invariant: from before its first change until after its last, a transaction has an entry, in
//! `journal/` and on disk if there may be something to settle, and else in `tmp/<id>/owner`, and holds the lock of that file; where it is free, its
//! process is dead.

use super::error::{At, StoreError};
use super::lock::{ImageLock, Moment, Shared};
use super::{Store, fs, stop};
use crate::ids::ImageName;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

const ENTRY_VERSION: u64 = 1;
const MAX_ENTRY: u64 = 1 << 20;

/// What a transaction is about to do, with all that its recovery needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Intent {
    Create {
        name: ImageName,
    },
    Import {
        name: ImageName,
    },
    Clone {
        from: ImageName,
        name: ImageName,
    },
    Pull {
        name: ImageName,
    },
    Publish {
        name: ImageName,
    },
    /// Made by [`Store::begin_commit`]: the chain's length before, and the head that is being sealed.
    Commit {
        name: ImageName,
        depth: usize,
        head: FileIdentity,
    },
    /// Made by [`Store::begin_flatten`].
    Flatten {
        name: ImageName,
    },
    /// Made by [`Store::begin_resize`], as is the next.
    Grow {
        name: ImageName,
    },
    Shrink {
        name: ImageName,
    },
    Rename {
        from: ImageName,
        to: ImageName,
    },
    Rm {
        name: ImageName,
    },
}

/// Tells whether a file is still the one it was: nobody has written to it or replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    inode: u64,
    len_bytes: u64,
    mtime_seconds: i64,
    mtime_nanoseconds: i64,
}

/// What is in a file of `journal/`, or in an owner's.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u64,
    /// For people only: a process number says nothing after a restart.
    pid: u32,
    intent: Intent,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

/// A transaction. Dropped without [`Txn::done`] it is settled at once as a dead process's would be: undone, or completed where it was past its
/// one decisive rename, and the catalogue is marked as stale.
#[derive(Debug)]
#[must_use]
pub struct Txn {
    store: Store,
    id: String,
    intent: Intent,
    owner: Moment,
    _live: Live,
    pub(super) lock: Option<ImageLock>,
    finished: bool,
}

/// A transaction of this process, which nobody has to ask the file system about.
#[derive(Debug)]
pub(super) struct Live(String);

static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Live {
    fn new(id: &str) -> Live {
        Live::all().insert(id.into());
        Live(id.into())
    }

    pub fn all() -> MutexGuard<'static, BTreeSet<String>> {
        LIVE.lock().expect("no thread panics while it holds this lock")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        Live::all().remove(&self.0);
    }
}

impl Intent {
    pub fn verb(&self) -> &'static str {
        match self {
            Intent::Create { .. } => "create",
            Intent::Import { .. } => "import",
            Intent::Clone { .. } => "clone",
            Intent::Pull { .. } => "pull",
            Intent::Publish { .. } => "publish",
            Intent::Commit { .. } => "commit",
            Intent::Flatten { .. } => "flatten",
            Intent::Grow { .. } => "grow",
            Intent::Shrink { .. } => "shrink",
            Intent::Rename { .. } => "rename",
            Intent::Rm { .. } => "rm",
        }
    }

    /// Whether one rename, into its own folder or out of it, is all that it does elsewhere. Then nothing is ever undone or completed, and its
    /// entry only says what the catalogue has to learn: it need not survive a power cut, after which the catalogue is made again.
    pub(super) fn is_one_rename(&self) -> bool {
        matches!(self, Intent::Clone { .. } | Intent::Rm { .. })
    }

    /// The images that are there, or not there, because of it.
    pub(super) fn names(self) -> Vec<ImageName> {
        match self {
            Intent::Rename { from, to } => vec![from, to],
            Intent::Create { name }
            | Intent::Import { name }
            | Intent::Clone { name, .. }
            | Intent::Pull { name }
            | Intent::Publish { name }
            | Intent::Commit { name, .. }
            | Intent::Flatten { name }
            | Intent::Grow { name }
            | Intent::Shrink { name }
            | Intent::Rm { name } => vec![name],
        }
    }
}

impl FileIdentity {
    pub(super) fn of(meta: &std::fs::Metadata) -> FileIdentity {
        FileIdentity {
            inode: meta.ino(),
            len_bytes: meta.len(),
            mtime_seconds: meta.mtime(),
            mtime_nanoseconds: meta.mtime_nsec(),
        }
    }
}

impl Store {
    /// Starts work: after this a crash leaves nothing that the next start does not tidy up.
    pub fn begin(&self, intent: Intent) -> Result<Txn, StoreError> {
        self.begin_with(intent, None)
    }

    pub(super) fn begin_with(&self, intent: Intent, lock: Option<ImageLock>) -> Result<Txn, StoreError> {
        self.begin_shared(&self.share()?, intent, lock)
    }

    /// A sweep sees a folder without a locked owner as a dead one's: none can run while the caller has the store's lock.
    pub(super) fn begin_shared(&self, _shared: &Shared, intent: Intent, lock: Option<ImageLock>) -> Result<Txn, StoreError> {
        let id = hex::encode(fs::random::<8>());
        let live = Live::new(&id);
        let dir = self.txn_dir(&id);
        fs::make_dir(&dir)?;
        let path = dir.join("owner");
        let locked = fs::open_lock(&path).and_then(|owner| fs::wait_lock(&owner, FlockOperation::LockExclusive, &path).map(|()| owner));
        let owner = match locked {
            Ok(owner) => owner,
            Err(error) => {
                fs::remove_tree(&dir, "owner")?;
                return Err(error);
            }
        };
        let txn = Txn {
            store: self.clone(),
            id,
            intent,
            owner: Moment(owner),
            _live: live,
            lock,
            finished: false,
        };
        let entry = Entry {
            version: ENTRY_VERSION,
            pid: std::process::id(),
            intent: txn.intent.clone(),
        };
        let bytes = serde_json::to_vec(&entry).expect("an entry has only JSON's own types");
        let written = match txn.intent.is_one_rename() {
            true => txn.owner.0.write_all_at(&bytes, 0).at("write", &path),
            false => fs::replace(&self.entry_path(&txn.id), &dir.join("entry"), &bytes, 0o600),
        };
        match written {
            // Who makes room must not need any. A folder without an entry is swept, which is all that this entry would ask for.
            Err(error) if error.is_full() && matches!(txn.intent, Intent::Rm { .. }) => {
                tracing::warn!(cause = %error, "no journal entry on a full disk");
                self.mark_index_stale()?;
            }
            other => other?,
        }
        stop::step(txn.verb(), "journal");
        Ok(txn)
    }

    pub(super) fn txn_dir(&self, id: &str) -> PathBuf {
        self.tmp_dir().join(id)
    }

    pub(super) fn entry_path(&self, id: &str) -> PathBuf {
        self.journal_dir().join(format!("{id}.json"))
    }

    /// The intent of an entry in `journal/`; `None` when it has none, or no longer.
    pub(super) fn read_entry(&self, id: &str) -> Result<Option<Intent>, StoreError> {
        read_entry_at(&self.entry_path(id))
    }
}

pub(super) fn read_entry_at(path: &Path) -> Result<Option<Intent>, StoreError> {
    let bytes = match fs::read_bounded(path, MAX_ENTRY) {
        Err(error) if error.is_missing() => return Ok(None),
        other => other?,
    };
    // One that was not synced, and that a power cut took the bytes of: its work needs none to be tidied up.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let json = |source| StoreError::Json { path: path.into(), source };
    let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(json)?;
    if version != ENTRY_VERSION {
        return Err(StoreError::Newer {
            path: path.into(),
            found: version,
            known: ENTRY_VERSION,
        });
    }
    let entry: Entry = serde_json::from_slice(&bytes).map_err(json)?;
    Ok(Some(entry.intent))
}

impl Store {
    /// The transactions that have an entry in `journal/`. What else lies there is nothing of ours.
    pub(super) fn journal_ids(&self) -> Result<Vec<String>, StoreError> {
        let is_id = |name: &&str| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let names = fs::list(&self.journal_dir())?;
        let ids = names.iter().filter_map(|name| name.to_str()?.strip_suffix(".json").filter(is_id));
        Ok(ids.map(String::from).collect())
    }

    /// All intents in the journal, of the living and the dead.
    pub(super) fn journal_intents(&self) -> Result<Vec<Intent>, StoreError> {
        let ids = self.journal_ids()?;
        Ok(ids.iter().filter_map(|id| self.read_entry(id).ok().flatten()).collect())
    }
}

impl Txn {
    /// A folder on the store's file system for what is not ready yet; it goes with the transaction.
    pub fn dir(&self) -> PathBuf {
        self.store.txn_dir(&self.id)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn intent(&self) -> &Intent {
        &self.intent
    }

    pub(super) fn verb(&self) -> &'static str {
        self.intent.verb()
    }

    /// True of one in sixteen, by chance: for what need not be done each time.
    pub fn is_one_of_sixteen(&self) -> bool {
        self.id.ends_with('0')
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn entry_path(&self) -> PathBuf {
        match self.intent.is_one_rename() {
            true => self.dir().join("owner"),
            false => self.store.entry_path(&self.id),
        }
    }

    /// The work is whole, and the catalogue knows: forgets it. A crash between the two is why the catalogue comes first.
    pub fn done(self) -> Result<(), StoreError> {
        stop::step(self.verb(), "done");
        self.done_quietly()
    }

    pub(super) fn done_quietly(mut self) -> Result<(), StoreError> {
        if !self.intent.is_one_rename() {
            fs::unlink_if_there(&self.entry_path())?;
        }
        let dir = self.dir();
        if !fs::remove_dir(&dir)? {
            fs::remove_tree(&dir, "owner")?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.store.settle(&self.id, self.lock.as_ref())
        {
            let left: &Path = &self.dir();
            tracing::warn!(left = %left.display(), cause = %error, "unfinished work is left to the next start");
        }
    }
}
