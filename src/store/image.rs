//! What an image's directory says of itself: `image.json`.
//!
//! Refuses to know how an image is changed. Invariant: an [`ImageRecord`] that was read has sizes in range and a name that belongs to its directory.

use super::error::{At, StoreError};
use super::txn::Intent;
use super::{Store, fs};
use crate::format::head::{HeadBounds, check_limit};
use crate::ids::{Digest, ImageId, ImageName, InfoHash, Sha256};
use crate::units::{Bytes, ChunkSize};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

const RECORD_VERSION: u64 = 1;
const MAX_RECORD: u64 = 1 << 20;
/// The longest chain: a manifest's own limit.
pub const MAX_CHAIN: usize = 4096;
/// History beyond this forgets its oldest lines.
const MAX_HISTORY: usize = 1000;

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub version: u64,
    pub name: ImageName,
    /// Oldest first.
    pub chain: Vec<Digest>,
    #[serde(rename = "virtual_size_bytes")]
    pub virtual_size: Bytes,
    /// `ext4`, `xfs`, `none`.
    pub file_system: String,
    /// The writable top, `head.delta`.
    #[serde(default)]
    pub head: Option<HeadRecord>,
    /// What the next head gets, while there is none.
    #[serde(default)]
    pub next_head: HeadBounds,
    /// Numbers of former heads, `frozen-<seq>.delta`, that lie between the chain and the head, oldest first.
    #[serde(default)]
    pub frozen: Vec<u64>,
    #[serde(default)]
    pub history: Vec<HistoryEntry>,
    #[serde(default)]
    pub published: Option<Published>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// The smallest size that the image has had since the head was made: below it, the parent shows through.
    #[serde(rename = "smallest_size_bytes")]
    pub smallest_size: Bytes,
    #[serde(rename = "chunk_size_bytes")]
    pub chunk_size: Bytes,
    /// See [`HeadBounds`].
    #[serde(default)]
    pub limit_bytes: Option<Bytes>,
    #[serde(default)]
    pub reserve: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub time_unix_seconds: u64,
    pub verb: String,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub manifest: Sha256,
    pub info_hash: InfoHash,
}

/// All images, and the directories that could not be read as one.
#[derive(Debug, Default)]
pub struct ImageListing {
    pub images: Vec<ImageRecord>,
    pub unreadable: Vec<(PathBuf, StoreError)>,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

impl HistoryEntry {
    /// A line of history that happens now.
    pub fn now(verb: &str, detail: &str) -> HistoryEntry {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        HistoryEntry {
            time_unix_seconds: time.map_or(0, |t| t.as_secs()),
            verb: verb.into(),
            detail: detail.into(),
        }
    }
}

impl HeadRecord {
    pub fn bounds(&self) -> HeadBounds {
        HeadBounds {
            limit_bytes: self.limit_bytes,
            reserve: self.reserve,
        }
    }
}

impl ImageRecord {
    pub fn new(name: ImageName, virtual_size: Bytes, file_system: &str) -> ImageRecord {
        ImageRecord {
            version: RECORD_VERSION,
            name,
            chain: Vec::new(),
            virtual_size,
            file_system: file_system.into(),
            head: None,
            next_head: HeadBounds::default(),
            frozen: Vec::new(),
            history: Vec::new(),
            published: None,
        }
    }

    /// The record of a head that is made now.
    pub fn new_head(&self, chunk: ChunkSize) -> HeadRecord {
        HeadRecord {
            smallest_size: self.virtual_size,
            chunk_size: chunk.bytes(),
            limit_bytes: self.next_head.limit_bytes,
            reserve: self.next_head.reserve,
        }
    }

    /// The bounds of the head, or of the next one.
    pub fn bounds(&self) -> HeadBounds {
        self.head.map_or(self.next_head, |head| head.bounds())
    }

    /// Gives the head, and the next one, other bounds.
    pub fn set_bounds(&mut self, bounds: HeadBounds) {
        self.next_head = bounds;
        if let Some(head) = &mut self.head {
            (head.limit_bytes, head.reserve) = (bounds.limit_bytes, bounds.reserve);
        }
    }

    pub fn id(&self) -> ImageId {
        ImageId::of(&self.name)
    }

    /// Reads the bytes of an `image.json`.
    ///
    /// Errors: [`StoreError::Newer`] for a version that we do not know, [`StoreError::Json`], [`StoreError::Damaged`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<ImageRecord, StoreError> {
        let json = |source| StoreError::Json { path: path.into(), source };
        let VersionOnly { version } = serde_json::from_slice(bytes).map_err(json)?;
        if version != RECORD_VERSION {
            return Err(StoreError::Newer {
                path: path.into(),
                found: version,
                known: RECORD_VERSION,
            });
        }
        let record: ImageRecord = serde_json::from_slice(bytes).map_err(json)?;
        record.checked().map_err(|why| StoreError::Damaged { path: path.into(), why })
    }

    fn checked(self) -> Result<ImageRecord, String> {
        self.virtual_size.as_disk_size().map_err(|e| e.to_string())?;
        if self.chain.len() > MAX_CHAIN {
            return Err(format!("a chain of {} deltas, want at most {MAX_CHAIN}", self.chain.len()));
        }
        if let Some(head) = self.head {
            let chunk = ChunkSize::new(head.chunk_size).map_err(|e| e.to_string())?;
            if let Some(limit) = head.limit_bytes {
                check_limit(limit, chunk).map_err(|e| e.to_string())?;
            }
            if head.smallest_size > self.virtual_size {
                return Err(format!(
                    "a head's smallest size {} over the image's {}",
                    head.smallest_size.0, self.virtual_size.0
                ));
            }
        }
        Ok(self)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a record has only JSON's own types");
        bytes.push(b'\n');
        bytes
    }

    pub fn add_history(&mut self, entry: HistoryEntry) {
        self.history.push(entry);
        let surplus = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..surplus);
    }
}

/// The file of the `index`-th delta of a chain, in its image's directory.
pub fn delta_name(index: usize) -> String {
    format!("{index:04}.delta")
}

impl Store {
    /// Errors: [`StoreError::NotFound`], or what is wrong with its `image.json`.
    pub fn image(&self, name: &ImageName) -> Result<ImageRecord, StoreError> {
        match self.read_record(ImageId::of(name)) {
            Err(error) if error.is_missing() => Err(StoreError::NotFound { name: name.clone() }),
            other => other,
        }
    }

    /// All images by name; a directory that cannot be read is told apart and hides no other.
    pub fn images(&self) -> Result<ImageListing, StoreError> {
        let mut all = ImageListing::default();
        let images = self.images_dir();
        for name in fs::list(&images)? {
            let dir = images.join(&name);
            let Some(id) = name.to_str().and_then(|text| text.parse::<ImageId>().ok()) else {
                let error = StoreError::Damaged {
                    path: dir.clone(),
                    why: "not an image's directory".into(),
                };
                all.unreadable.push((dir, error));
                continue;
            };
            match self.read_record(id) {
                Ok(record) => all.images.push(record),
                // Removed or renamed while we looked.
                Err(error) if error.is_missing() && !dir.exists() => {}
                Err(error) => all.unreadable.push((dir, error)),
            }
        }
        all.images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The `index`-th sealed delta of an image, as its own directory has it.
    pub fn delta_path(&self, name: &ImageName, index: usize) -> PathBuf {
        self.image_dir(ImageId::of(name)).join(delta_name(index))
    }

    pub fn head_path(&self, name: &ImageName) -> PathBuf {
        self.image_dir(ImageId::of(name)).join("head.delta")
    }

    /// Reads, changes and replaces an image's record: durable when it returns, and alone with it while it works. For what may
    /// change while the image is attached.
    pub fn update_image(&self, name: &ImageName, change: impl FnOnce(&mut ImageRecord)) -> Result<ImageRecord, StoreError> {
        let _store = self.share()?;
        self.update_record(name, change)
    }

    /// The same for a caller that has the store's lock.
    pub(super) fn update_record(&self, name: &ImageName, change: impl FnOnce(&mut ImageRecord)) -> Result<ImageRecord, StoreError> {
        let dir = self.image_dir(ImageId::of(name));
        let missing = |error: StoreError| {
            if error.is_missing() {
                StoreError::NotFound { name: name.clone() }
            } else {
                error
            }
        };
        // Removed, or exchanged for a prepared one, while we waited.
        let _folder = loop {
            let folder = File::open(&dir).at("open", &dir).map_err(missing)?;
            fs::wait_lock(&folder, FlockOperation::LockExclusive, &dir)?;
            if fs::is_at(&folder, &dir)? {
                break folder;
            }
        };
        let mut record = self.image(name)?;
        change(&mut record);
        write_record(&dir, &record)?;
        Ok(record)
    }

    /// The name in an image's record as it is on disk, which a rename that died left as it was.
    pub(super) fn recorded_name(&self, id: ImageId) -> Result<ImageName, StoreError> {
        let path = self.image_dir(id).join("image.json");
        Ok(ImageRecord::parse(&path, &fs::read_bounded(&path, MAX_RECORD)?)?.name)
    }

    pub(super) fn read_record(&self, id: ImageId) -> Result<ImageRecord, StoreError> {
        let path = self.image_dir(id).join("image.json");
        // A rename may end between our look at the record and at the journal: then the record is right when it is read again.
        for _ in 0..4 {
            let mut record = ImageRecord::parse(&path, &fs::read_bounded(&path, MAX_RECORD)?)?;
            if record.id() == id {
                return Ok(record);
            }
            if let Some(name) = self.name_on_its_way(&record.name, id) {
                record.name = name;
                return Ok(record);
            }
        }
        Err(StoreError::Damaged {
            path,
            why: "the name in it belongs to another directory".into(),
        })
    }

    /// The new name of an image whose directory has been renamed, and its record not yet.
    fn name_on_its_way(&self, old: &ImageName, dir: ImageId) -> Option<ImageName> {
        let intents = self.journal_intents().ok()?;
        intents.into_iter().find_map(|intent| match intent {
            Intent::Rename { from, to } if from == *old && ImageId::of(&to) == dir => Some(to),
            _ => None,
        })
    }
}

/// Replaces the record in an image's directory.
fn write_record(dir: &Path, record: &ImageRecord) -> Result<(), StoreError> {
    let path = dir.join("image.json");
    let bytes = record_bytes(&path, record)?;
    fs::replace(&path, &dir.join(".image.json.new"), &bytes, 0o600)
}

/// What is written to `path`: nothing that [`ImageRecord::parse`] would not take.
pub(super) fn record_bytes(path: &Path, record: &ImageRecord) -> Result<Vec<u8>, StoreError> {
    let damaged = |why| StoreError::Damaged { path: path.into(), why };
    let bytes = record.clone().checked().map_err(damaged)?.to_bytes();
    if bytes.len() as u64 > MAX_RECORD {
        return Err(StoreError::TooLarge {
            path: path.into(),
            len: Bytes(bytes.len() as u64),
            max: Bytes(MAX_RECORD),
        });
    }
    Ok(bytes)
}
