//! Why an object did not come.
//!
//! Refuses to know how it was fetched. Invariant: what lied is named, with what was found and what was wanted.

use crate::ids::{Digest, InfoHash, Sha256};
use crate::swarm::engine::EngineError;
use crate::swarm::metadata::MetadataError;
use crate::units::Bytes;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the unit hashes of {digest} have digest {found}")]
    Units { digest: Digest, found: Digest },
    #[error("the info dict of {info_hash} is for {} bytes, want {}", found.0, want.0)]
    Length { info_hash: InfoHash, found: Bytes, want: Bytes },
    #[error("the info dict of {info_hash}")]
    Metadata {
        info_hash: InfoHash,
        #[source]
        cause: MetadataError,
    },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{digest}, unit {unit} (byte {at}): the swarm's bytes hash to {found}, want {want}: the torrent lies, nothing of it was kept")]
    Lies {
        digest: Digest,
        unit: usize,
        at: Bytes,
        found: Sha256,
        want: Sha256,
    },
    #[error("{info_hash}: the swarm's bytes have SHA-256 {found}, want {want}: the torrent lies, nothing of it was kept")]
    OtherBlob { info_hash: InfoHash, found: Sha256, want: Sha256 },
    #[error("{info_hash}: nothing whole and right came for {} s ({peers} peers known)", patience.as_secs())]
    Stalled {
        info_hash: InfoHash,
        patience: Duration,
        peers: usize,
    },
    #[error("{info_hash} is on its way already")]
    Busy { info_hash: InfoHash },
    #[error("stopped on request")]
    Cancelled,
    #[error("the swarm is stopped")]
    Stopped,
}
