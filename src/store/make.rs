//! Images that begin, are cloned, change their name, or go.
//!
//! Refuses to know what is in a delta. Invariant: an image appears and disappears by one rename of its directory, whose name follows from the
//! image's; of two who want the same name at once, one gets it.

use super::error::{At, StoreError};
use super::image::{HeadRecord, HistoryEntry, ImageRecord, Published, delta_name, record_bytes};
use super::lock::{self, ImageLock, Shared};
use super::objects::{no_object, object_name};
use super::txn::{Intent, Txn};
use super::{Store, fs, stop};
use crate::blockio::FileIo;
use crate::format::head::{Head, HeadBounds, HeadError};
use crate::ids::{Digest, ImageId, ImageName};
use crate::units::{ChunkSize, UnitError};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

impl Txn {
    /// Where a new image is prepared, until [`Txn::publish_image`].
    pub fn image_dir(&self) -> PathBuf {
        self.dir().join("image")
    }

    /// Makes that folder, and locks the image to be, so that it can be attached before it has a name, and stays ours when it gets it.
    pub fn new_image(&self) -> Result<ImageLock, StoreError> {
        let dir = self.image_dir();
        fs::make_dir(&dir)?;
        lock::lock_dir(&dir)?.ok_or_else(|| StoreError::Damaged {
            path: dir,
            why: "a new image is locked by somebody else".into(),
        })
    }

    /// Gives the prepared image its place and name. Its head, if any, is there and synced; its chain is linked here, from objects that this
    /// transaction holds or another image has.
    ///
    /// Errors: [`StoreError::Exists`], [`StoreError::NoObject`].
    pub fn publish_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let head = match record.head {
            Some(_) => Some(fs::open_read(&self.image_dir().join("head.delta"))?),
            None => None,
        };
        self.publish_shared(&self.store().share()?, record, head)
    }

    fn publish_shared(&self, shared: &Shared, record: &ImageRecord, head: Option<File>) -> Result<(), StoreError> {
        self.complete_image(shared, record, head)?;
        stop::step(self.verb(), "prepared");
        claim(self.store(), &self.image_dir(), &record.name)?;
        stop::step(self.verb(), "renamed");
        Ok(())
    }

    /// Gives the prepared image the deltas of its chain and its record: all is on disk, with its open head, when it returns.
    pub(super) fn complete_image(&self, _shared: &Shared, record: &ImageRecord, head: Option<File>) -> Result<(), StoreError> {
        let path = self.image_dir();
        let dir = fs::open_dir(&path)?;
        let objects = self.store().objects_dir();
        let shelves = File::open(&objects).at("open", &objects)?;
        for (index, digest) in record.chain.iter().enumerate() {
            let (object, name) = (object_name(digest, "delta"), delta_name(index));
            // Says what is wrong, or copies.
            let by_path = || fs::link_or_copy(&objects.join(&object), &path.join(&name));
            fs::link(&shelves, &object, &dir, &name)
                .or_else(|_| by_path())
                .map_err(|error| no_object(error, digest))?;
        }
        let path = path.join("image.json");
        let record = fs::write_new(&path, &record_bytes(&path, record)?, 0o600)?;
        let files: Vec<&File> = [&record].into_iter().chain(&head).collect();
        fs::sync_all(&files, &dir, &path)
    }

    /// Writes down what was published, the deltas of `chain`, after the manifest that this transaction put into the store. The image may be attached.
    ///
    /// Errors: [`StoreError::InUse`] when the image has another chain by now, which a commit does not make of it and a flatten does.
    pub fn finish_publish(&self, name: &ImageName, chain: &[Digest], published: Published) -> Result<ImageRecord, StoreError> {
        let mut has_it = false;
        let record = self.store().update_image(name, |record| {
            has_it = record.chain.starts_with(chain);
            if has_it && record.published != Some(published) {
                record.published = Some(published);
                record.add_history(HistoryEntry::now("publish", &published.info_hash.to_string()));
            }
        })?;
        if !has_it {
            return Err(StoreError::InUse { name: name.clone() });
        }
        stop::point("publish.recorded");
        Ok(record)
    }
}

/// A new image, a clone.
#[must_use]
pub struct Cloned {
    pub record: ImageRecord,
    /// The source's head, which the clone does not have.
    pub left_out: Option<HeadRecord>,
    pub txn: Txn,
}

impl Store {
    /// A second image with the same sealed deltas, and an empty head within `bounds`: also while the source is attached, and as fast for any size.
    ///
    /// The transaction is to be [`Txn::done`] when the catalogue knows. Errors: [`StoreError::NotFound`], [`StoreError::Exists`].
    pub fn clone_image(&self, from: &ImageName, name: &ImageName, bounds: HeadBounds) -> Result<Cloned, StoreError> {
        self.must_be_free(name)?;
        // Shared, from reading the chain until it is linked: should the source go meanwhile, its objects do not.
        let shared = self.share()?;
        let source = self.image(from)?;
        // What the source's head has is not in the clone; nor is a size that only it has.
        let size = match source.head {
            Some(_) => self.sealed_size(&source)?,
            None => source.virtual_size,
        };
        let mut record = ImageRecord::new(name.clone(), size, &source.file_system);
        record.chain = source.chain;
        record.next_head = bounds;
        let head = record.new_head(ChunkSize::HEAD);
        record.head = Some(head);
        record.add_history(HistoryEntry::now("clone", from.as_str()));
        let intent = Intent::Clone {
            from: from.clone(),
            name: name.clone(),
        };
        let txn = self.begin_shared(&shared, intent, None)?;
        fs::make_dir(&txn.image_dir())?;
        let file = make_head(&txn.image_dir().join("head.delta"), &head)?;
        txn.publish_shared(&shared, &record, Some(file))?;
        Ok(Cloned {
            record,
            left_out: source.head,
            txn,
        })
    }

    /// Errors: [`StoreError::NotFound`], [`StoreError::Exists`], [`StoreError::InUse`].
    pub fn rename_image(&self, from: &ImageName, to: &ImageName) -> Result<(ImageRecord, Txn), StoreError> {
        let lock = self.lock_image(from)?;
        self.must_be_free(to)?;
        let txn = self.begin_with(
            Intent::Rename {
                from: from.clone(),
                to: to.clone(),
            },
            Some(lock),
        )?;
        let _shared = self.share()?;
        // After a rename that died, only its entry in the journal tells the name that the record is to have.
        if self.recorded_name(ImageId::of(from))? != *from {
            self.update_record(from, |record| record.name = from.clone())?;
        }
        claim(self, &self.image_dir(ImageId::of(from)), to)?;
        stop::point("rename.renamed");
        let record = self.update_record(to, |record| {
            record.name = to.clone();
            record.add_history(HistoryEntry::now("rename", from.as_str()));
        })?;
        stop::point("rename.recorded");
        Ok((record, txn))
    }

    /// Takes an image out of the store; what only it had goes when the transaction is done, its objects when they are collected.
    ///
    /// Errors: [`StoreError::NotFound`], [`StoreError::InUse`].
    pub fn remove_image(&self, name: &ImageName) -> Result<Txn, StoreError> {
        let lock = self.lock_image(name)?;
        let shared = self.share()?;
        let txn = self.begin_shared(&shared, Intent::Rm { name: name.clone() }, Some(lock))?;
        fs::rename(&self.image_dir(ImageId::of(name)), &txn.image_dir())?;
        fs::sync_dir(&self.images_dir())?;
        stop::point("rm.renamed");
        Ok(txn)
    }

    /// Says early what the claiming rename would say after the work.
    fn must_be_free(&self, name: &ImageName) -> Result<(), StoreError> {
        let dir = self.image_dir(ImageId::of(name));
        if dir.try_exists().at("look for", &dir)? {
            Err(StoreError::Exists { name: name.clone() })
        } else {
            Ok(())
        }
    }
}

/// Makes the empty head that `record` describes, in a new file; [`Txn::publish_image`] makes it durable.
pub fn make_head(path: &Path, record: &HeadRecord) -> Result<File, StoreError> {
    let damaged = |error: UnitError| StoreError::Damaged {
        path: path.into(),
        why: error.to_string(),
    };
    let chunk = ChunkSize::new(record.chunk_size).map_err(damaged)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .at("make", path)?;
    // A head is made at the size that the image has: that is its smallest yet.
    let file = FileIo(file);
    match Head::create_within(&file, chunk, record.smallest_size, record.bounds()) {
        Ok(_) => Ok(file.0),
        Err(HeadError::Io { work, source }) => Err(StoreError::Io {
            doing: match work {
                "making" => "format",
                other => other,
            },
            path: path.into(),
            source,
        }),
        Err(source) => Err(StoreError::Head { path: path.into(), source }),
    }
}

/// Moves an image's directory to where its name says; nobody else can have the name afterwards.
fn claim(store: &Store, dir: &Path, name: &ImageName) -> Result<(), StoreError> {
    let exists = |error: StoreError| {
        if error.is_exists() {
            StoreError::Exists { name: name.clone() }
        } else {
            error
        }
    };
    fs::rename_new(dir, &store.image_dir(ImageId::of(name))).map_err(exists)?;
    fs::sync_dir(&store.images_dir())
}
