//! Images from nothing, a tree, an archive or a disk: `create` and `import`.
//!
//! Refuses to know archives and file systems from within. Invariant: what is made enters the store as a sealed base and then as an image, or leaves
//! nothing behind.

use super::draft::{Draft, DraftError};
use super::engine::Engine;
use super::mount::failed;
use super::{Create, CreateReply, ErrorKind, Import, ImportParts, ImportReply, MakeFs, Progress, ServiceError};
use crate::blockio::{FileIo, ReadAt};
use crate::chain;
use crate::files::source::{RawDisk, Source, TarStream};
use crate::files::{self, FilesError, Stats};
use crate::format::head::HeadBounds;
use crate::format::seal::{SealedDelta, Sealer};
use crate::format::trailer::{Facts, FileSystem};
use crate::ids::{Digest, ImageName, Sha256};
use crate::store::{self, Description, HistoryEntry, ImageRecord, Intent, StoreError, Txn, stop};
use crate::units::{Bytes, ChunkSize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Of a new file system, unless said.
const DEFAULT_SIZE: Bytes = Bytes(10 << 30);

impl Engine {
    pub(super) fn create(&self, ask: Create, progress: &dyn Progress) -> Result<CreateReply, ServiceError> {
        let start = Instant::now();
        let size = ask.size_bytes.as_disk_size()?;
        self.must_be_free(&ask.name)?;
        let file_system = match ask.fs {
            MakeFs::Ext4 => "ext4",
            MakeFs::Xfs => "xfs",
            MakeFs::None => "none",
        };
        if !ask.reserve {
            self.must_have_room()?;
        }
        let txn = self.store.begin(Intent::Create { name: ask.name.clone() })?;
        let _lock = txn.new_image()?;
        let mut record = ImageRecord::new(ask.name.clone(), size, file_system);
        record.history.push(HistoryEntry::now("create", file_system));
        record.next_head = bounds(ask.limit_bytes, ask.reserve);
        // Without a file system there is nothing to seal: its first commit makes the base.
        if ask.fs != MakeFs::None {
            let draft = Draft::new(&txn, size)?;
            draft.format(file_system)?;
            let (sealed, _) = self.seal_base(&txn, &draft.open()?, size, known(file_system), progress)?;
            record.chain.push(sealed.digest);
        }
        // Else the first attach makes one; but space is reserved now.
        if ask.fs == MakeFs::None || ask.reserve {
            let head = record.new_head(ChunkSize::HEAD);
            store::make_head(&txn.image_dir().join("head.delta"), &head)?;
            record.head = Some(head);
        }
        self.enter(&record, txn)?;
        Ok(CreateReply {
            name: ask.name,
            virtual_size_bytes: size,
            file_system: file_system.into(),
            took_ms: ms(start.elapsed()),
        })
    }

    pub(super) fn import(&self, ask: Import, progress: &dyn Progress) -> Result<ImportReply, ServiceError> {
        self.must_be_free(&ask.name)?;
        let source = files::source::open(&ask.source)?;
        let txn = self.store.begin(Intent::Import { name: ask.name.clone() })?;
        let _lock = txn.new_image()?;
        let start = Instant::now();
        let filled = match source {
            Source::Raw(disk) => Filled::raw(disk, ask.size_bytes)?,
            tree => self.fill(&txn, tree, ask.size_bytes.unwrap_or(DEFAULT_SIZE), progress)?,
        };
        let write = start.elapsed();
        let start = Instant::now();
        let (sealed, times) = self.seal_base(&txn, &filled.file, filled.size, filled.file_system, progress)?;
        let seal = start.elapsed().saturating_sub(times.sync + times.hash);
        let file_system = filled.file_system.name();
        let mut record = ImageRecord::new(ask.name.clone(), filled.size, file_system);
        record.chain.push(sealed.digest);
        let detail = ask.source.display().to_string();
        record.history.push(HistoryEntry::now("import", &detail));
        let start = Instant::now();
        self.enter(&record, txn)?;
        Ok(ImportReply {
            name: ask.name,
            digest: sealed.digest,
            virtual_size_bytes: filled.size,
            stored_bytes: sealed.len,
            file_system: file_system.into(),
            entries: filled.stats.map(|stats| stats.entries),
            parts: ImportParts {
                write_ms: ms(write),
                seal_ms: ms(seal),
                hash_ms: ms(times.hash),
                sync_ms: ms(times.sync + start.elapsed()),
            },
        })
    }

    /// A new file system with a tree on it, in a raw file.
    fn fill(&self, txn: &Txn, source: Source, size: Bytes, progress: &dyn Progress) -> Result<Filled, ServiceError> {
        let size = size.as_disk_size()?;
        let draft = Draft::new(txn, size)?;
        draft.format("ext4")?;
        let mounted = draft.mount(&self.store, txn, "ext4")?;
        stop::point("import.mounted");
        let root = files::open_root(&mounted.dir).map_err(|error| failed("open", &mounted.dir, &error.into()))?;
        let filled = fill_tree(root, source, progress);
        progress.update("unmount", 0, None);
        let stats = match (filled, mounted.finish()) {
            // Where the raw file could not be written, all else follows from that.
            (_, Err(lost @ DraftError::Lost { .. })) => return Err(lost.into()),
            (Err(error), _) => return Err(unfilled(error, size)),
            (Ok(stats), finished) => finished.map(|()| stats)?,
        };
        stop::point("import.filled");
        Ok(Filled {
            file: draft.open()?,
            size,
            file_system: FileSystem::Ext4,
            stats: Some(stats),
        })
    }

    /// Seals a raw disk as a base and puts it into the store. Also tells how long that took.
    pub(super) fn seal_base(
        &self,
        txn: &Txn,
        raw: &FileIo,
        size: Bytes,
        file_system: FileSystem,
        progress: &dyn Progress,
    ) -> Result<(SealedDelta, Times), ServiceError> {
        let facts = Facts {
            parent: Digest::NONE,
            stands_for: Digest::NONE,
            virtual_size: size,
            chunk_size: ChunkSize::BASE,
            seal_rules: 1,
            file_system,
        };
        let path = txn.dir().join("base.delta");
        let mut sealer = Sealer::new(new_delta(&path)?, facts)?;
        let ranges = raw.data_ranges().map_err(|error| failed("look for data in", &path, &error))?;
        chain::seal::from_raw(raw, ranges, &facts, &mut sealer, &mut |done: Bytes, total: Bytes| {
            progress.update("seal", done.0, Some(total.0));
        })?;
        let hash = sealer.hashing();
        let sealed = sealer.finish()?;
        stop::step(txn.intent().verb(), "sealed");
        progress.update("sync", 0, None);
        let start = Instant::now();
        self.keep(txn, &path, &sealed, &facts)?;
        Ok((
            sealed,
            Times {
                hash,
                sync: start.elapsed(),
            },
        ))
    }

    /// Puts a delta that was sealed here into the store.
    pub(super) fn keep(&self, txn: &Txn, path: &Path, sealed: &SealedDelta, facts: &Facts) -> Result<(), ServiceError> {
        let description = Description {
            version: Description::VERSION,
            digest: sealed.digest,
            len_bytes: sealed.len,
            virtual_size_bytes: facts.virtual_size,
            chunk_size_bytes: facts.chunk_size.bytes(),
            parent: facts.parent,
            stands_for: facts.stands_for,
            file_system: facts.file_system.name().into(),
            labels: BTreeMap::new(),
            info_hash: None,
            meta_sha256: Some(Sha256::of(&sealed.meta)),
            meta_len_bytes: Bytes(sealed.meta.len() as u64),
            meta_info_hash: None,
            made_by: txn.intent().verb().into(),
            created_unix_seconds: HistoryEntry::now("", "").time_unix_seconds,
        };
        enable_verity(path);
        txn.commit_object(path, &sealed.digest, &sealed.meta, &description)?;
        self.index(|catalog| catalog.put_object(&description))
    }

    /// Gives a prepared image its name, and tells the catalogue.
    pub(super) fn enter(&self, record: &ImageRecord, txn: Txn) -> Result<(), ServiceError> {
        txn.publish_image(record)?;
        self.index(|catalog| catalog.put_image(record))?;
        Ok(txn.done()?)
    }

    /// Says before the work what the claiming rename would say after it.
    pub(super) fn must_be_free(&self, name: &ImageName) -> Result<(), ServiceError> {
        match self.store.image(name) {
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(other) => Err(other.into()),
            Ok(_) => Err(StoreError::Exists { name: name.clone() }.into()),
        }
    }
}

/// What of a seal's time went where.
pub(super) struct Times {
    hash: Duration,
    sync: Duration,
}

/// A disk that waits to be sealed.
struct Filled {
    file: FileIo,
    size: Bytes,
    file_system: FileSystem,
    stats: Option<Stats>,
}

impl Filled {
    fn raw(disk: RawDisk, wanted: Option<Bytes>) -> Result<Filled, ServiceError> {
        let size = wanted.unwrap_or(disk.size).as_disk_size()?;
        if size < disk.size {
            let message = format!("a size of {} bytes is less than the disk's {}", size.0, disk.size.0);
            return Err(ServiceError::new(ErrorKind::Usage, message));
        }
        let file = FileIo(disk.file);
        Ok(Filled {
            file_system: detect(&file),
            file,
            size,
            stats: None,
        })
    }
}

fn fill_tree(root: OwnedFd, source: Source, progress: &dyn Progress) -> Result<Stats, FilesError> {
    match source {
        Source::Dir(path) => files::tree_in::import(&path, &root, &mut |bytes, _| progress.update("copy", bytes, None)),
        Source::Tar(TarStream { reader, len, consumed }) => {
            let total = len.map(|len| len.0);
            files::tar_in::import(reader, &root, &mut |_, _| {
                progress.update("unpack", consumed.load(Ordering::Relaxed), total)
            })
        }
        Source::Raw(_) => unreachable!("a raw disk is sealed as it is"),
    }
}

fn unfilled(error: FilesError, size: Bytes) -> ServiceError {
    let is_full = matches!(&error, FilesError::Step { source, .. } if source.kind() == io::ErrorKind::StorageFull);
    let error = ServiceError::from(error);
    if is_full {
        error.of(format!("a disk of {size} is too small"))
    } else {
        error
    }
}

/// The file system of a record's name.
pub(super) fn known(name: &str) -> FileSystem {
    FileSystem::from_name(name).unwrap_or(FileSystem::Other)
}

/// What is on a raw disk, by its magic number; a partition table is something else.
fn detect(disk: &FileIo) -> FileSystem {
    let magic = |at, want: &[u8]| {
        let mut found = vec![0; want.len()];
        disk.read_at(&mut found, Bytes(at)).is_ok() && found == want
    };
    if magic(1080, &[0x53, 0xef]) {
        FileSystem::Ext4
    } else if magic(0, b"XFSB") {
        FileSystem::Xfs
    } else {
        FileSystem::Other
    }
}

/// A new file for a delta.
pub(super) fn new_delta(path: &Path) -> Result<FileIo, ServiceError> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map(FileIo).map_err(|error| failed("make", path, &error))
}

/// Where the host's file system can, the kernel itself checks the delta from now on.
fn enable_verity(path: &Path) {
    match File::open(path).and_then(|file| crate::sys::verity::enable(&file)) {
        Ok(enabled) => tracing::debug!(path = %path.display(), ?enabled, "fs-verity"),
        Err(error) => tracing::debug!(path = %path.display(), cause = %error, "no fs-verity"),
    }
}

pub(super) fn bounds(limit_bytes: Option<Bytes>, reserve: bool) -> HeadBounds {
    HeadBounds { limit_bytes, reserve }
}

pub(super) fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}
