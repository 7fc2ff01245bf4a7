//! Objects: immutable files under the name of their digest, with what is known of them beside.
//!
//! Refuses to know what is in them; who puts one vouches that its name is right. Invariant: a `.delta` in `objects/` is whole, durable and
//! read-only, and its `.meta` and description were there before it.

use super::error::{At, StoreError};
use super::txn::Txn;
use super::{Store, fs, stop};
use crate::ids::{Digest, InfoHash, Sha256};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const DESCRIPTION_VERSION: u64 = 1;
const MAX_DESCRIPTION: u64 = 1 << 20;
const MAX_META: u64 = 256 << 20;
const MAX_MANIFEST: u64 = 1 << 20;
/// Room for the pieces of the largest torrent: 16,384 of 20 bytes, and what is around them.
const MAX_TORRENT: u64 = 1 << 20;

/// Where the files of a delta are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPaths {
    pub delta: PathBuf,
    pub meta: PathBuf,
    pub description: PathBuf,
    pub torrent: PathBuf,
    pub meta_torrent: PathBuf,
}

/// `<digest>.json`: what was known when the object was made, and what does not fit into the object because it must be the same on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub version: u64,
    pub digest: Digest,
    pub len_bytes: Bytes,
    pub virtual_size_bytes: Bytes,
    pub chunk_size_bytes: Bytes,
    pub parent: Digest,
    pub stands_for: Digest,
    pub file_system: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub info_hash: Option<InfoHash>,
    #[serde(default)]
    pub meta_sha256: Option<Sha256>,
    #[serde(default)]
    pub meta_len_bytes: Bytes,
    #[serde(default)]
    pub meta_info_hash: Option<InfoHash>,
    /// Made here (`import`, `commit`), or `pull`ed.
    pub made_by: String,
    pub created_unix_seconds: u64,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    Delta(Digest),
    Manifest(Sha256),
}

/// One file of `objects/` that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub kind: ObjectKind,
    pub path: PathBuf,
    pub len: Bytes,
    /// What it takes on disk.
    pub allocated: Bytes,
    /// Its own name included: one means that nobody refers to it.
    pub names: u64,
}

impl Description {
    pub const VERSION: u64 = DESCRIPTION_VERSION;
}

impl Store {
    pub fn object_paths(&self, digest: &Digest) -> ObjectPaths {
        let objects = self.objects_dir();
        let file = |suffix| objects.join(object_name(digest, suffix));
        ObjectPaths {
            delta: file("delta"),
            meta: file("meta"),
            description: file("json"),
            torrent: file("torrent"),
            meta_torrent: file("meta.torrent"),
        }
    }

    pub fn manifest_path(&self, manifest: &Sha256) -> PathBuf {
        self.objects_dir().join(object_name(manifest, "manifest"))
    }

    pub fn manifest_torrent_path(&self, manifest: &Sha256) -> PathBuf {
        self.objects_dir().join(object_name(manifest, "torrent"))
    }

    /// Whether a delta is here, whole.
    pub fn has_object(&self, digest: &Digest) -> bool {
        self.object_paths(digest).delta.is_file()
    }

    /// Opens a delta for reading; nothing ever opens one for writing.
    pub fn open_object(&self, digest: &Digest) -> Result<File, StoreError> {
        fs::open_read(&self.object_paths(digest).delta).map_err(|error| no_object(error, digest))
    }

    /// The bytes of an object's `.meta`, as they are on disk: to be checked by who parses them.
    pub fn meta(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        fs::read_bounded(&self.object_paths(digest).meta, MAX_META).map_err(|error| no_object(error, digest))
    }

    pub fn manifest(&self, manifest: &Sha256) -> Result<Vec<u8>, StoreError> {
        fs::read_bounded(&self.manifest_path(manifest), MAX_MANIFEST)
    }

    pub fn description(&self, digest: &Digest) -> Result<Description, StoreError> {
        let path = self.object_paths(digest).description;
        let bytes = fs::read_bounded(&path, MAX_DESCRIPTION).map_err(|error| no_object(error, digest))?;
        let json = |source| StoreError::Json {
            path: path.clone(),
            source,
        };
        let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(json)?;
        if version != DESCRIPTION_VERSION {
            return Err(StoreError::Newer {
                path,
                found: version,
                known: DESCRIPTION_VERSION,
            });
        }
        let description: Description = serde_json::from_slice(&bytes).map_err(json)?;
        if description.digest != *digest {
            return Err(StoreError::Damaged {
                path,
                why: format!("it describes {}", description.digest),
            });
        }
        Ok(description)
    }

    /// Replaces an object's description: all of it or nothing.
    pub fn write_description(&self, description: &Description) -> Result<(), StoreError> {
        let path = self.object_paths(&description.digest).description;
        self.replace_beside(&path, &description_bytes(description))
    }

    /// A cached torrent, of those that [`Store::object_paths`] and [`Store::manifest_torrent_path`] name.
    pub fn read_torrent(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        fs::read_bounded(path, MAX_TORRENT)
    }

    pub fn write_torrent(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace_beside(path, bytes)
    }

    fn replace_beside(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        // A draft outside of a transaction is safe from the sweep for as long as the lock is held.
        let _shared = self.share()?;
        let draft = self.tmp_dir().join(format!("draft-{}", hex::encode(fs::random::<8>())));
        fs::replace(path, &draft, bytes, 0o400)
    }

    /// Removes what is left in `incoming/` of deltas that are objects: a part that is another name of one would keep it from being collected.
    pub(super) fn sweep_arrived(&self) -> Result<(), StoreError> {
        let incoming = self.incoming_dir();
        for name in fs::list(&incoming)? {
            let digest = name
                .to_str()
                .and_then(|name| name.split_once('.'))
                .and_then(|(digest, _)| digest.parse().ok());
            if digest.is_some_and(|digest| self.has_object(&digest)) {
                fs::unlink_if_there(&incoming.join(name))?;
            }
        }
        Ok(())
    }

    /// Every delta and manifest; other files are left out.
    pub fn objects(&self) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut all = Vec::new();
        for path in self.object_files()? {
            let Some(kind) = kind_of(&path) else { continue };
            let meta = match std::fs::symlink_metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.at("look at", &path)?,
            };
            let allocated = Bytes(meta.blocks() * 512);
            all.push(ObjectInfo {
                kind,
                path,
                len: Bytes(meta.len()),
                allocated,
                names: meta.nlink(),
            });
        }
        all.sort_by_key(|object| object.kind);
        Ok(all)
    }

    /// All files below `objects/`.
    pub(super) fn object_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let root = self.objects_dir();
        let mut files = Vec::new();
        for shelf in fs::list(&root)? {
            let shelf = root.join(shelf);
            if shelf.is_dir() {
                files.extend(fs::list(&shelf)?.into_iter().map(|name| shelf.join(name)));
            }
        }
        Ok(files)
    }

    pub(super) fn objects_dir(&self) -> PathBuf {
        self.root.join("objects")
    }
}

impl Txn {
    /// Makes an object of a finished delta on the store's file system, whose bytes nobody writes any more. Afterwards the transaction
    /// holds it, until it is done. One that is there already stays as it is.
    ///
    /// Errors: [`StoreError::ObjectDiffers`] when the one that is there has another length.
    pub fn commit_object(&self, file: &Path, digest: &Digest, meta: &[u8], description: &Description) -> Result<(), StoreError> {
        let paths = self.store().object_paths(digest);
        let shelf = paths.delta.parent().expect("an object has a shelf");
        // Read-only before it gets its second name, and whole on disk before it gets the one that counts.
        std::fs::set_permissions(file, Permissions::from_mode(0o400)).at("make read-only", file)?;
        File::open(file).and_then(|file| file.sync_all()).at("sync", file)?;
        let _shared = self.store().share()?;
        fs::ensure_dir(shelf)?;
        self.put_beside(&paths.meta, meta)?;
        self.put_beside(&paths.description, &description_bytes(description))?;
        fs::sync_dir(shelf)?;
        stop::step(self.verb(), "sidecars");
        match std::fs::hard_link(file, &paths.delta) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => same_length(file, &paths.delta, digest)?,
            other => other.at("link", &paths.delta)?,
        }
        fs::sync_dir(shelf)?;
        self.hold_locked(&paths.delta)?;
        stop::step(self.verb(), "object");
        Ok(())
    }

    /// The same for a delta that arrived in `incoming/` as `<digest>.part`; what else is there of it goes too.
    pub fn commit_arrived(&self, digest: &Digest, meta: &[u8], description: &Description) -> Result<(), StoreError> {
        let part = self.store().incoming_dir().join(format!("{digest}.part"));
        self.commit_object(&part, digest, meta, description)?;
        self.store().sweep_arrived()
    }

    /// Puts a manifest into the store, and holds it.
    pub fn commit_manifest(&self, bytes: &[u8]) -> Result<Sha256, StoreError> {
        let manifest = Sha256::of(bytes);
        let path = self.store().manifest_path(&manifest);
        let _shared = self.store().share()?;
        fs::ensure_dir(path.parent().expect("an object has a shelf"))?;
        self.put_beside(&path, bytes)?;
        self.hold_locked(&path)?;
        stop::step(self.verb(), "manifest");
        Ok(manifest)
    }

    /// Keeps a delta from being collected until the transaction is done. Errors: [`StoreError::NoObject`].
    pub fn hold(&self, digest: &Digest) -> Result<(), StoreError> {
        let _shared = self.store().share()?;
        self.hold_locked(&self.store().object_paths(digest).delta)
            .map_err(|error| no_object(error, digest))
    }

    fn hold_locked(&self, object: &Path) -> Result<(), StoreError> {
        let mut name = std::ffi::OsString::from("hold-");
        name.push(object.file_name().expect("an object has a name"));
        match std::fs::hard_link(object, self.dir().join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.at("link", object),
        }
    }

    /// Writes a file that belongs to an object, unless it is there.
    fn put_beside(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        if path.try_exists().at("look for", path)? {
            return Ok(());
        }
        fs::replace(path, &self.dir().join("beside"), bytes, 0o400)
    }
}

/// Of a file, below `objects/`.
pub(super) fn object_name(digest: &impl ToString, suffix: &str) -> String {
    let name = digest.to_string();
    format!("{}/{name}.{suffix}", &name[..2])
}

fn description_bytes(description: &Description) -> Vec<u8> {
    serde_json::to_vec_pretty(description).expect("a description has only JSON's own types")
}

fn same_length(new: &Path, there: &Path, digest: &Digest) -> Result<(), StoreError> {
    let len = |path: &Path| path.metadata().at("look at", path).map(|meta| Bytes(meta.len()));
    let (new, there) = (len(new)?, len(there)?);
    if new != there {
        return Err(StoreError::ObjectDiffers {
            digest: *digest,
            there,
            new,
        });
    }
    Ok(())
}

/// What a file of `objects/` is, by its name.
pub(super) fn kind_of(path: &Path) -> Option<ObjectKind> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once('.')?;
    match suffix {
        "delta" => name.parse().ok().map(ObjectKind::Delta),
        "manifest" => name.parse().ok().map(ObjectKind::Manifest),
        _ => None,
    }
}

pub(super) fn no_object(error: StoreError, digest: &Digest) -> StoreError {
    if error.is_missing() {
        StoreError::NoObject { digest: *digest }
    } else {
        error
    }
}
