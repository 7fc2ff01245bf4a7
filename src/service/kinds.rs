//! What a caller can do about each error of the layers below.
//!
//! Refuses to know exit codes. Invariant: every error type that reaches `service` is here, once.

use super::draft::DraftError;
use super::fit::FitError;
use super::{ErrorKind, ServiceError};
use crate::attach::{AttachError, DiskError};
use crate::catalog::CatalogError;
use crate::chain::ChainError;
use crate::chain::seal::SealChainError;
use crate::files::{FilesError, SourceError};
use crate::format::exceptions::ReadError;
use crate::format::head::{HeadError, RepairError};
use crate::format::manifest::ManifestError;
use crate::format::meta::MetaError;
use crate::format::seal::SealError;
use crate::kernel::KernelError;
use crate::store::StoreError;
use crate::swarm::link::LinkError;
use crate::swarm::torrent::TorrentError;
use crate::swarm::{FetchError, SwarmError};
use crate::units::UnitError;

fn store(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        StoreError::Head { source, .. } => head(source),
        StoreError::Exists { .. } | StoreError::InUse { .. } | StoreError::Busy { .. } => ErrorKind::InUse,
        // Nobody asks for an object by name: an image of ours should have it.
        StoreError::NoObject { .. }
        | StoreError::Damaged { .. }
        | StoreError::Json { .. }
        | StoreError::ObjectDiffers { .. }
        | StoreError::TooLarge { .. } => ErrorKind::Damaged,
        StoreError::Id(_) => ErrorKind::Usage,
        StoreError::NotAStore { .. } | StoreError::Newer { .. } | StoreError::NoHead { .. } | StoreError::Io { .. } => ErrorKind::Failed,
    }
}

fn attach(error: &AttachError) -> ErrorKind {
    match error {
        AttachError::Store(cause) => store(cause),
        AttachError::NotAttached { .. } | AttachError::NotMounted { .. } => ErrorKind::NotFound,
        AttachError::NoFileSystem { .. } | AttachError::HasHead { .. } => ErrorKind::Usage,
        other if other.is_in_use() => ErrorKind::InUse,
        _ => ErrorKind::Failed,
    }
}

fn source(error: &SourceError) -> ErrorKind {
    match error {
        SourceError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        SourceError::Io { .. } => ErrorKind::Failed,
        SourceError::NotUsable { .. } => ErrorKind::Usage,
    }
}

fn disk(error: &DiskError) -> ErrorKind {
    match error {
        DiskError::Head { source, .. } => head(source),
        DiskError::Open { source, .. } if source.kind() != std::io::ErrorKind::NotFound => ErrorKind::Failed,
        _ => ErrorKind::Damaged,
    }
}

/// A full disk is no damage.
fn head(error: &HeadError) -> ErrorKind {
    match error {
        HeadError::Io { .. } | HeadError::Read(ReadError::Io { .. }) => ErrorKind::Failed,
        _ => ErrorKind::Damaged,
    }
}

fn catalog(error: &CatalogError) -> ErrorKind {
    match error {
        CatalogError::Busy { .. } => ErrorKind::InUse,
        _ => ErrorKind::Failed,
    }
}

fn fetch(error: &FetchError) -> ErrorKind {
    match error {
        FetchError::Units { .. }
        | FetchError::Length { .. }
        | FetchError::Metadata { .. }
        | FetchError::Lies { .. }
        | FetchError::OtherBlob { .. } => ErrorKind::Damaged,
        FetchError::Busy { .. } => ErrorKind::InUse,
        _ => ErrorKind::Failed,
    }
}

fn swarm(error: &SwarmError) -> ErrorKind {
    match error {
        SwarmError::Damaged { .. } => ErrorKind::Damaged,
        SwarmError::Busy { .. } => ErrorKind::InUse,
        _ => ErrorKind::Failed,
    }
}

fn fit(error: &FitError) -> ErrorKind {
    match error {
        FitError::TooSmall { .. } => ErrorKind::Usage,
        FitError::Damaged(_) => ErrorKind::Damaged,
        _ => ErrorKind::Failed,
    }
}

macro_rules! kinds {
    ($($Error:ty => $kind:expr;)*) => {$(
        impl From<$Error> for ServiceError {
            fn from(error: $Error) -> ServiceError {
                let kind: fn(&$Error) -> ErrorKind = $kind;
                ServiceError::from_error(kind(&error), &error)
            }
        }
    )*};
}

kinds! {
    StoreError => store;
    AttachError => attach;
    SourceError => source;
    DiskError => disk;
    CatalogError => catalog;
    FetchError => fetch;
    SwarmError => swarm;
    LinkError => |_| ErrorKind::Usage;
    TorrentError => |_| ErrorKind::Damaged;
    DraftError => |_| ErrorKind::Failed;
    FitError => fit;
    KernelError => |_| ErrorKind::Failed;
    FilesError => |_| ErrorKind::Failed;
    SealError => |_| ErrorKind::Failed;
    SealChainError => |_| ErrorKind::Failed;
    HeadError => head;
    RepairError => |_| ErrorKind::Damaged;
    ChainError => |_| ErrorKind::Damaged;
    MetaError => |_| ErrorKind::Damaged;
    ManifestError => |_| ErrorKind::Damaged;
    UnitError => |_| ErrorKind::Usage;
}
