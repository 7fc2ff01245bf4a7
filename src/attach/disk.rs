//! From an image's files to the disk that they make, and the `disk.json` in which a server finds which files those are.
//!
//! Refuses to know who serves the disk. Invariant: sealed deltas are opened read-only, always.

use crate::blockio::{BlockDevice, FileIo, ReadAt};
use crate::chain::{Chain, ChainError, ChainMap, Delta, Disk};
use crate::format::head::{Head, HeadError};
use crate::format::sealed::Sealed;
use crate::format::trailer::TrailerError;
use crate::ids::{Digest, ImageName};
use crate::store::{HeadBounds, ImageRecord, Store};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which files make a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFiles {
    pub name: ImageName,
    /// Oldest first.
    pub deltas: Vec<DeltaFile>,
    pub head: Option<HeadFile>,
    #[serde(rename = "virtual_size_bytes")]
    pub virtual_size: Bytes,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaFile {
    pub path: PathBuf,
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadFile {
    pub path: PathBuf,
    #[serde(rename = "smallest_size_bytes")]
    pub smallest_size: Bytes,
    #[serde(default)]
    pub bounds: HeadBounds,
}

type Files = Vec<Arc<dyn ReadAt>>;

/// A disk cannot be made of its files.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("delta {}", path.display())]
    Delta { path: PathBuf, source: TrailerError },
    #[error("chain of image \"{name}\"")]
    Chain { name: ImageName, source: Box<ChainError> },
    #[error("head {}", path.display())]
    Head { path: PathBuf, source: HeadError },
}

impl DiskFiles {
    /// The disk of `record`, with its head at `head`.
    ///
    /// A delta is opened as an object, by its digest: the links in the image's directory are only what keeps it from being collected, and
    /// `flatten` gives them other numbers.
    pub fn of(record: &ImageRecord, store: &Store, head: PathBuf, read_only: bool) -> DiskFiles {
        let delta_file = |digest: &Digest| DeltaFile {
            path: store.object_paths(digest).delta,
            digest: *digest,
        };
        DiskFiles {
            name: record.name.clone(),
            deltas: record.chain.iter().map(delta_file).collect(),
            head: record.head.map(|record| HeadFile {
                path: head,
                smallest_size: record.smallest_size,
                bounds: record.bounds(),
            }),
            virtual_size: record.virtual_size,
            read_only,
        }
    }

    /// Opens all files. A head is brought into order on the way, unless the disk is read-only.
    pub fn open(&self) -> Result<Arc<dyn BlockDevice>, DiskError> {
        let chain = self.chain()?;
        let Some(HeadFile {
            path,
            smallest_size,
            bounds,
        }) = &self.head
        else {
            return Ok(Arc::new(Disk::<FileIo>::sealed(chain)));
        };
        let file = FileIo(open(path, !self.read_only)?);
        let failed = |source| DiskError::Head {
            path: path.clone(),
            source,
        };
        if self.read_only {
            let head = Head::open_read_only(file).map_err(failed)?;
            return Ok(Arc::new(Disk::with_head(chain, head, *smallest_size).into_read_only()));
        }
        let head = Head::open_within(file, self.virtual_size, *bounds).map_err(failed)?;
        head.give_back(self.virtual_size, *bounds).map_err(failed)?;
        Ok(Arc::new(Disk::with_head(chain, head, *smallest_size)))
    }

    /// The sealed part.
    pub fn chain(&self) -> Result<Chain, DiskError> {
        let (deltas, files) = self.open_deltas()?;
        let failed = |error| self.chain_error(error);
        Chain::new(ChainMap::build(&deltas, self.virtual_size).map_err(failed)?, files).map_err(failed)
    }

    /// What the sealed deltas say of themselves.
    pub fn deltas(&self) -> Result<Vec<Delta>, DiskError> {
        Ok(self.open_deltas()?.0)
    }

    pub(super) fn chain_error(&self, error: ChainError) -> DiskError {
        DiskError::Chain {
            name: self.name.clone(),
            source: Box::new(error),
        }
    }

    fn open_deltas(&self) -> Result<(Vec<Delta>, Files), DiskError> {
        let mut deltas = Vec::with_capacity(self.deltas.len());
        let mut files: Files = Vec::with_capacity(self.deltas.len());
        for DeltaFile { path, digest } in &self.deltas {
            let file = FileIo(open(path, false)?);
            let table = Sealed::open(&file).map_err(|source| DiskError::Delta {
                path: path.clone(),
                source,
            })?;
            deltas.push(Delta {
                extents: table.extents,
                chunk_size: table.facts.chunk_size,
                virtual_size: table.facts.virtual_size,
                digest: *digest,
                parent: table.facts.parent,
                stands_for: table.facts.stands_for,
            });
            files.push(Arc::new(file));
        }
        Ok((deltas, files))
    }
}

fn open(path: &Path, write: bool) -> Result<std::fs::File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| DiskError::Open { path: path.into(), source })
}
