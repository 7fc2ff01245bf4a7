//! Who is said to have which torrent, and who said so.
//!
//! Refuses to know how peers are asked. Invariant: only torrents that somebody here wants or has are in the book.

use crate::ids::InfoHash;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const MAX_PEERS: usize = 500;
const MAX_GIVERS: usize = 16;
/// What the DHT said is forgotten after this time, unless it says so again.
const FORGET: Duration = Duration::from_secs(30 * 60);

/// What told us of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    Dht,
    /// An address in a link, or one that the user named.
    Static,
    /// It came to us.
    Incoming,
}

#[derive(Default)]
struct Known {
    peers: BTreeMap<SocketAddr, (FoundBy, Instant)>,
    complete: bool,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FoundBy::Dht => "dht",
            FoundBy::Static => "static",
            FoundBy::Incoming => "incoming",
        })
    }
}

/// The book. Share it in an `Arc`.
#[derive(Default)]
pub struct PeerBook {
    known: Mutex<HashMap<InfoHash, Known>>,
    /// Who gave us something lately, the newest last.
    givers: Mutex<Vec<(SocketAddr, FoundBy)>>,
    changed: Notify,
}

impl PeerBook {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<InfoHash, Known>) -> T) -> T {
        work(&mut self.known.lock().expect("no thread panics while it holds this lock"))
    }

    pub fn open(&self, info_hash: InfoHash) {
        self.with(|known| {
            known.entry(info_hash).or_default();
        });
    }

    pub fn close(&self, info_hash: InfoHash) {
        self.with(|known| known.remove(&info_hash));
    }

    pub fn is_open(&self, info_hash: InfoHash) -> bool {
        self.with(|known| known.contains_key(&info_hash))
    }

    /// A complete torrent needs no peers in a hurry.
    pub fn set_complete(&self, info_hash: InfoHash, complete: bool) {
        self.with(|known| {
            if let Some(known) = known.get_mut(&info_hash) {
                known.complete = complete;
            }
        });
    }

    pub fn is_complete(&self, info_hash: InfoHash) -> bool {
        self.with(|known| known.get(&info_hash).is_some_and(|known| known.complete))
    }

    /// Notes peers of an open torrent; port 0 and more than 500 are left out.
    pub fn add(&self, info_hash: InfoHash, found_by: FoundBy, peers: impl IntoIterator<Item = SocketAddr>) {
        let now = Instant::now();
        self.with(|known| {
            let Some(known) = known.get_mut(&info_hash) else { return };
            for peer in peers.into_iter().filter(|peer| peer.port() != 0) {
                if let Some(entry) = known.peers.get_mut(&peer) {
                    entry.1 = now;
                } else if known.peers.len() < MAX_PEERS {
                    known.peers.insert(peer, (found_by, now));
                }
            }
        });
        self.changed.notify_waiters();
    }

    pub fn peers(&self, info_hash: InfoHash) -> Vec<SocketAddr> {
        self.with(|known| {
            let Some(known) = known.get_mut(&info_hash) else {
                return Vec::new();
            };
            known
                .peers
                .retain(|_, (by, seen)| *by == FoundBy::Static || seen.elapsed() < FORGET);
            known.peers.keys().copied().collect()
        })
    }

    pub fn found_by(&self, info_hash: InfoHash, peer: SocketAddr) -> FoundBy {
        self.with(|known| {
            known
                .get(&info_hash)
                .and_then(|known| known.peers.get(&peer))
                .map_or(FoundBy::Incoming, |entry| entry.0)
        })
    }

    /// Notes who gave us of this torrent, if we know where to call them.
    pub fn gave(&self, info_hash: InfoHash, peers: impl IntoIterator<Item = SocketAddr>) {
        let mut givers = self.givers.lock().expect("no thread panics while it holds this lock");
        for peer in peers {
            let by = self.found_by(info_hash, peer);
            if by != FoundBy::Incoming {
                givers.retain(|(known, _)| *known != peer);
                givers.push((peer, by));
            }
        }
        let extra = givers.len().saturating_sub(MAX_GIVERS);
        givers.drain(..extra);
    }

    /// Who has given us other torrents may have this one, too: an image is many of them, and each look-up takes its time.
    pub fn add_givers(&self, info_hash: InfoHash) {
        let givers = self.givers.lock().expect("no thread panics while it holds this lock").clone();
        for (peer, by) in givers {
            self.add(info_hash, by, [peer]);
        }
    }

    /// Returns when somebody was added, or after `at_most`.
    pub async fn wait(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.changed.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_name_a_peer_is_remembered_and_closed_torrents_take_none() {
        let book = PeerBook::default();
        let (hash, peer) = (InfoHash([1; 20]), "10.0.0.1:5".parse().unwrap());
        book.add(hash, FoundBy::Dht, [peer]);
        assert!(book.peers(hash).is_empty());
        book.open(hash);
        book.add(hash, FoundBy::Dht, [peer, "10.0.0.1:0".parse().unwrap()]);
        book.add(hash, FoundBy::Static, [peer]);
        assert_eq!(book.peers(hash), [peer]);
        assert_eq!(book.found_by(hash, peer), FoundBy::Dht);
        assert_eq!(book.found_by(hash, "10.0.0.2:5".parse().unwrap()), FoundBy::Incoming);
        book.close(hash);
        assert!(book.peers(hash).is_empty());
    }

    #[test]
    fn who_gave_one_torrent_is_asked_for_the_next() {
        let book = PeerBook::default();
        let (first, second) = (InfoHash([1; 20]), InfoHash([2; 20]));
        let (caller, called) = ("10.0.0.1:40000".parse().unwrap(), "10.0.0.1:5".parse().unwrap());
        book.open(first);
        book.add(first, FoundBy::Dht, [called]);
        book.gave(first, [caller, called]);
        book.close(first);
        book.open(second);
        book.add_givers(second);
        assert_eq!(book.peers(second), [called]);
        assert_eq!(book.found_by(second, called), FoundBy::Dht);
    }

    #[test]
    fn a_flood_of_peers_is_cut() {
        let book = PeerBook::default();
        let hash = InfoHash([1; 20]);
        book.open(hash);
        book.add(hash, FoundBy::Dht, (1..=60_000).map(|port| SocketAddr::from(([10, 0, 0, 1], port))));
        assert_eq!(book.peers(hash).len(), MAX_PEERS);
    }
}
