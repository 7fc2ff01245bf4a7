//! Tells the DHT that we have a torrent, and asks it who else has, for as long as the torrent is open.
//!
//! Refuses to know what is done with the peers. Invariant: an announce that failed is repeated soon; a fresh torrent is announced
//! often, as nodes that join later must hear of it too.

use super::dht::DhtNode;
use super::peers::{FoundBy, PeerBook};
use crate::ids::InfoHash;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FRESH: Duration = Duration::from_secs(120);
const OFTEN: Duration = Duration::from_secs(15);
const SELDOM: Duration = Duration::from_secs(15 * 60);
const RETRY: Duration = Duration::from_millis(500);
const ALONE: Duration = Duration::from_secs(1);
/// Behind a NAT the first peer found may be ourselves, so the first looks come quickly either way.
const HURRY: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_secs(5);
const LOOK_SELDOM: Duration = Duration::from_secs(5 * 60);

/// Never ends by itself.
pub async fn run(dht: Arc<DhtNode>, book: Arc<PeerBook>, info_hash: InfoHash, port: u16) {
    let since = Instant::now();
    tokio::join!(announce(&dht, info_hash, port, since), look(&dht, &book, info_hash, port, since));
}

async fn announce(dht: &DhtNode, info_hash: InfoHash, port: u16, since: Instant) {
    let mut retry = RETRY;
    loop {
        let pause = match dht.announce(info_hash, port).await {
            Ok(()) => {
                retry = RETRY;
                if since.elapsed() < FRESH { OFTEN } else { SELDOM }
            }
            Err(error) => {
                tracing::debug!(%info_hash, %error, "not announced yet");
                // While nobody else is there, each second counts for the one who comes.
                retry = (retry * 2).min(if since.elapsed() < FRESH { ALONE } else { OFTEN });
                retry
            }
        };
        tokio::time::sleep(jittered(pause)).await;
    }
}

async fn look(dht: &DhtNode, book: &PeerBook, info_hash: InfoHash, port: u16, since: Instant) {
    loop {
        let others = |peers: Vec<SocketAddr>| peers.into_iter().filter(|peer| !(peer.port() == port && is_ours(peer.ip())));
        dht.lookup(info_hash, |peers| book.add(info_hash, FoundBy::Dht, others(peers)))
            .await;
        let pause = if book.is_complete(info_hash) {
            if since.elapsed() < FRESH { OFTEN } else { LOOK_SELDOM }
        } else if book.peers(info_hash).is_empty() || since.elapsed() < HURRY {
            RETRY
        } else {
            LOOK
        };
        tokio::time::sleep(jittered(pause)).await;
    }
}

/// Whether `ip` is this host's: only such an address can be bound. The DHT tells us of ourselves, too.
fn is_ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// `pause`, shortened by up to a quarter, so that hosts that started together drift apart.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    if getrandom::fill(&mut random).is_err() {
        return pause;
    }
    pause - pause * u32::from(random[0]) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_are_known() {
        assert!(is_ours([127, 0, 0, 1].into()));
        assert!(!is_ours([192, 0, 2, 1].into()), "TEST-NET-1 is nobody's");
    }

    #[test]
    fn jitter_only_shortens_and_by_a_quarter_at_most() {
        for _ in 0..1000 {
            let pause = jittered(OFTEN);
            assert!(pause <= OFTEN && pause >= OFTEN * 3 / 4, "{pause:?}");
        }
    }
}
