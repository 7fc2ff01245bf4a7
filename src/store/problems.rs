//! What is wrong with the store's own bookkeeping: files that are missing, strange, or not what they should be.
//!
//! Refuses to look into deltas; `format` does that. Invariant: only reads, and goes on after whatever it finds.

use super::error::StoreError;
use super::image::{ImageRecord, delta_name};
use super::objects::{ObjectKind, kind_of};
use super::txn::Intent;
use super::{Store, fs};
use crate::ids::{Digest, ImageId, ImageName};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One finding.
#[derive(Debug)]
pub enum Problem {
    ImageUnreadable {
        dir: PathBuf,
        cause: StoreError,
    },
    /// The image's directory lacks a delta of its chain.
    LinkMissing {
        image: ImageName,
        index: usize,
        digest: Digest,
    },
    /// Nothing in `objects/`, but the image still has it.
    ObjectMissing {
        image: ImageName,
        index: usize,
        digest: Digest,
    },
    /// A file of its own with another length than the object: a copy is allowed, this is none.
    LinkDiffers {
        image: ImageName,
        index: usize,
        digest: Digest,
    },
    HeadMissing {
        image: ImageName,
    },
    MetaMissing {
        digest: Digest,
    },
    DescriptionUnreadable {
        digest: Digest,
        cause: StoreError,
    },
    ObjectWritable {
        path: PathBuf,
        mode: u32,
    },
    Strange {
        path: PathBuf,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::ImageUnreadable { dir, cause } => write!(f, "{}: the image cannot be read: {cause}", dir.display()),
            Problem::LinkMissing { image, index, digest } => {
                write!(f, "image \"{image}\": {} is missing, it should be {digest}", delta_name(*index))
            }
            Problem::ObjectMissing { image, index, digest } => {
                write!(
                    f,
                    "image \"{image}\": object {digest} is missing, {} still has it",
                    delta_name(*index)
                )
            }
            Problem::LinkDiffers { image, index, digest } => write!(f, "image \"{image}\": {} is not {digest}", delta_name(*index)),
            Problem::HeadMissing { image } => write!(f, "image \"{image}\": its head is missing"),
            Problem::MetaMissing { digest } => write!(f, "object {digest}: its .meta is missing"),
            Problem::DescriptionUnreadable { digest, cause } => write!(f, "object {digest}: its description cannot be read: {cause}"),
            Problem::ObjectWritable { path, mode } => write!(f, "{}: mode {mode:04o}, want 0400", path.display()),
            Problem::Strange { path } => write!(f, "{}: not a file of ours", path.display()),
        }
    }
}

impl Store {
    /// All that is wrong with images, links and objects. Errors: only when the store's own folders cannot be listed.
    pub fn problems(&self) -> Result<Vec<Problem>, StoreError> {
        let listing = self.images()?;
        let mut found = Vec::new();
        for (dir, cause) in listing.unreadable {
            found.push(Problem::ImageUnreadable { dir, cause });
        }
        for image in &listing.images {
            self.image_problems(image, &mut found);
        }
        for object in self.objects()? {
            if let ObjectKind::Delta(digest) = object.kind {
                self.object_problems(&digest, &mut found);
            }
            let mode = std::fs::symlink_metadata(&object.path).map_or(0o400, |meta| meta.mode() & 0o7777);
            if mode & 0o222 != 0 {
                found.push(Problem::ObjectWritable { path: object.path, mode });
            }
        }
        let strange = |path: &PathBuf| kind_of(path).is_none() && !is_beside(path);
        found.extend(
            self.object_files()?
                .into_iter()
                .filter(strange)
                .map(|path| Problem::Strange { path }),
        );
        Ok(found)
    }

    /// What is wrong with one image's directory.
    pub fn image_problems(&self, image: &ImageRecord, found: &mut Vec<Problem>) {
        self.settled_link_problems(image, found);
        if image.head.is_some() && !self.head_path(&image.name).is_file() {
            found.push(Problem::HeadMissing { image: image.name.clone() });
        }
    }

    /// What is wrong with the links, but for what a flatten that is at work, or has died on an image in use, will bring in line.
    fn settled_link_problems(&self, image: &ImageRecord, found: &mut Vec<Problem>) {
        let mut record = image.clone();
        loop {
            let at_work = self.is_flattened_now(&record.name);
            let mut problems = Vec::new();
            self.link_problems(&record, &mut problems);
            if problems.is_empty() {
                return;
            }
            let changed = self.image(&record.name).ok().filter(|now| now.chain != record.chain);
            match changed {
                Some(now) => record = now,
                // It was not at work before we looked, and the record is the same: whoever wrote that has ended.
                None if !at_work => return found.append(&mut problems),
                None => {
                    problems.retain(|problem| matches!(problem, Problem::ObjectMissing { .. }));
                    return found.append(&mut problems);
                }
            }
        }
    }

    fn is_flattened_now(&self, name: &ImageName) -> bool {
        let intents = self.journal_intents().unwrap_or_default();
        intents
            .iter()
            .any(|intent| matches!(intent, Intent::Flatten { name: its } if its == name))
    }

    fn link_problems(&self, image: &ImageRecord, found: &mut Vec<Problem>) {
        let dir = self.image_dir(ImageId::of(&image.name));
        for (index, digest) in image.chain.iter().enumerate() {
            let (image, digest) = (image.name.clone(), *digest);
            let link = fs::open_read(&dir.join(delta_name(index))).and_then(|file| identity(&file));
            let object = self.open_object(&digest).and_then(|file| identity(&file));
            match (link, object) {
                (Err(_), _) => found.push(Problem::LinkMissing { image, index, digest }),
                (Ok(_), Err(_)) => found.push(Problem::ObjectMissing { image, index, digest }),
                (Ok(link), Ok(object)) if link.len != object.len => found.push(Problem::LinkDiffers { image, index, digest }),
                (Ok(link), Ok(object)) if link.inode != object.inode && link.names > 1 => {
                    found.push(Problem::LinkDiffers { image, index, digest });
                }
                _ => {}
            }
        }
    }

    fn object_problems(&self, digest: &Digest, found: &mut Vec<Problem>) {
        if !self.object_paths(digest).meta.is_file() {
            found.push(Problem::MetaMissing { digest: *digest });
        }
        if let Err(cause) = self.description(digest) {
            found.push(Problem::DescriptionUnreadable { digest: *digest, cause });
        }
    }
}

struct Identity {
    inode: u64,
    len: u64,
    names: u64,
}

fn identity(file: &std::fs::File) -> Result<Identity, StoreError> {
    use super::error::At;
    let meta = file.metadata().at("look at", Path::new("an open delta"))?;
    Ok(Identity {
        inode: meta.ino(),
        len: meta.len(),
        names: meta.nlink(),
    })
}

/// A file that belongs to an object, by its name.
fn is_beside(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split_once('.'));
    name.is_some_and(|(name, suffix)| name.parse::<Digest>().is_ok() && matches!(suffix, "meta" | "json" | "torrent" | "meta.torrent"))
}
