//! Objects as torrents: made, announced, found, fetched and believed.
//!
//! Refuses to know of images, devices and mounts. Invariant: no byte that a peer sent is believed before a hash that the caller
//! brought has vouched for it, and no file that is seeded is ever written to.

mod announce;
mod believed;
mod bridge;
mod dht;
mod engine;
mod fetch;
mod gather;
mod host;
pub mod link;
mod metadata;
mod node;
mod peers;
mod storage;
pub mod torrent;
mod verifier;

pub use fetch::FetchError;
pub use metadata::MetadataError;
pub use node::{
    Fetched, ObjectItem, Peer, Step, Swarm, SwarmConfig, SwarmError, TorrentPeers, Watcher, exempt_from_proxy, proxy_problem,
    public_bootstrap,
};
pub use peers::FoundBy;

#[cfg(all(test, feature = "root-tests"))]
mod tests;
