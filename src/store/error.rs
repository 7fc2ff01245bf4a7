use crate::format::head::HeadError;
use crate::ids::{Digest, IdError, ImageName};
use crate::units::Bytes;
use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with a store, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("not a blockbt store: {}", path.display())]
    NotAStore { path: PathBuf },
    #[error("{}: version {found}, and this program knows version {known}", path.display())]
    Newer { path: PathBuf, found: u64, known: u64 },
    #[error("{}: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{}: not the JSON it should be", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: {len}, want at most {max}", path.display())]
    TooLarge { path: PathBuf, len: Bytes, max: Bytes },
    #[error("no image \"{name}\"")]
    NotFound { name: ImageName },
    #[error("image \"{name}\" exists")]
    Exists { name: ImageName },
    #[error("image \"{name}\" is in use")]
    InUse { name: ImageName },
    #[error("image \"{name}\" has no head: nothing has been written to it")]
    NoHead { name: ImageName },
    #[error("no object {digest}")]
    NoObject { digest: Digest },
    #[error("object {digest} has {there} in the store, and {new} now: one of them is not what its name says")]
    ObjectDiffers { digest: Digest, there: Bytes, new: Bytes },
    #[error("{}: still locked by another process after {seconds} s", path.display())]
    Busy { path: PathBuf, seconds: u64 },
    #[error("{}: no head can be made", path.display())]
    Head { path: PathBuf, source: HeadError },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl StoreError {
    /// The file system said that there is something already.
    pub(super) fn is_exists(&self) -> bool {
        matches!(self, StoreError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty))
    }

    /// The file system said that there is nothing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the disk, or somebody's quota of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self, StoreError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Says what was done, and to which file, when it went wrong.
pub(super) trait At<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io {
            doing,
            path: path.into(),
            source: error.into(),
        })
    }
}
