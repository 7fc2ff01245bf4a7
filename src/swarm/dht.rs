//! One `mainline` node: who has an info-hash, and telling others that we do.
//!
//! Refuses to know what the info-hashes stand for. Invariant: the node runs even where no bootstrap name resolves, and goes on
//! trying the names.

use crate::ids::InfoHash;
use futures_util::StreamExt;
use futures_util::future::join_all;
use mainline::async_dht::AsyncDht;
use mainline::{Dht, Id};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const RESOLVE: Duration = Duration::from_secs(3);
const LOOKUP: Duration = Duration::from_secs(10);
const ANNOUNCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, thiserror::Error)]
pub enum DhtError {
    #[error("no other node answers yet")]
    Alone,
    #[error("no node took the announce")]
    Refused,
    #[error("no answer within {} s", ANNOUNCE.as_secs())]
    Timeout,
    #[error("the node is stopped")]
    Stopped,
}

pub struct DhtNode {
    shared: Arc<Shared>,
    retry: JoinHandle<()>,
}

struct Shared {
    listen: SocketAddrV4,
    node: RwLock<Option<AsyncDht>>,
}

impl DhtNode {
    /// Starts a server node. Names that do not resolve are tried again in the background.
    pub async fn start(listen: SocketAddrV4, bootstrap: Vec<String>) -> io::Result<DhtNode> {
        let (found, missing) = resolve(bootstrap).await;
        let node = build(listen, &found).await?;
        let listen = node.info().await.local_addr();
        let listen = SocketAddrV4::new(*listen.ip(), listen.port());
        let shared = Arc::new(Shared {
            listen,
            node: RwLock::new(Some(node)),
        });
        let retry = tokio::spawn(retry_names(shared.clone(), found, missing));
        Ok(DhtNode { shared, retry })
    }

    /// Where it listens: the port is the real one, where 0 was asked for.
    pub fn listen(&self) -> SocketAddrV4 {
        self.shared.listen
    }

    async fn node(&self) -> Option<AsyncDht> {
        self.shared.node.read().await.clone()
    }

    /// How many nodes are in the routing table.
    pub async fn nodes(&self) -> usize {
        match self.node().await {
            Some(node) => node.to_bootstrap().await.len(),
            None => 0,
        }
    }

    /// Tells the nodes nearest to `info_hash` that we have it on `port`.
    pub async fn announce(&self, info_hash: InfoHash, port: u16) -> Result<(), DhtError> {
        use mainline::errors::PutQueryError;
        let node = self.node().await.ok_or(DhtError::Stopped)?;
        match timeout(ANNOUNCE, node.announce_peer(Id::from(info_hash.0), Some(port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(PutQueryError::NoClosestNodes)) => Err(DhtError::Alone),
            Ok(Err(_)) => Err(DhtError::Refused),
            Err(_) => Err(DhtError::Timeout),
        }
    }

    /// Asks who has `info_hash`; `found` hears each answer as it comes.
    pub async fn lookup(&self, info_hash: InfoHash, mut found: impl FnMut(Vec<SocketAddr>)) {
        let Some(node) = self.node().await else { return };
        let mut answers = node.get_peers(Id::from(info_hash.0));
        let _ = timeout(LOOKUP, async {
            while let Some(peers) = answers.next().await {
                found(peers.into_iter().map(SocketAddr::V4).collect());
            }
        })
        .await;
    }

    pub async fn stop(&self) {
        self.retry.abort();
        self.shared.node.write().await.take();
    }
}

impl Drop for DhtNode {
    fn drop(&mut self) {
        self.retry.abort();
    }
}

/// Each name's IPv4 addresses, and the names that have none now.
async fn resolve(names: Vec<String>) -> (Vec<SocketAddrV4>, Vec<String>) {
    let look_up = async |name: String| {
        let looked_up = timeout(RESOLVE, tokio::net::lookup_host(name.clone())).await;
        let addresses: Vec<SocketAddr> = looked_up.ok().and_then(Result::ok).map_or_else(Vec::new, Iterator::collect);
        (name, addresses)
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, addresses) in join_all(names.into_iter().map(&look_up)).await {
        let before = found.len();
        found.extend(addresses.into_iter().filter_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        }));
        if found.len() == before {
            missing.push(name);
        }
    }
    (found, missing)
}

/// A node with these neighbours; it waits a little for a predecessor on the same port to end.
async fn build(listen: SocketAddrV4, bootstrap: &[SocketAddrV4]) -> io::Result<AsyncDht> {
    let mut tries = 0;
    loop {
        let bootstrap = bootstrap.to_vec();
        let built = tokio::task::spawn_blocking(move || {
            // Where the library cannot bind, it may panic instead of saying so.
            drop(std::net::UdpSocket::bind(listen)?);
            let mut builder = Dht::builder();
            builder
                .bind_address(*listen.ip())
                .port(listen.port())
                .server_mode()
                .bootstrap(&bootstrap);
            builder.build()
        })
        .await
        .unwrap_or_else(|_| Err(io::Error::other("it ended at its start")));
        match built {
            Ok(node) => return Ok(node.as_async()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 20 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// `mainline` takes addresses once, so a name that resolves later means a new node, unless the old one has found others by then.
async fn retry_names(shared: Arc<Shared>, mut found: Vec<SocketAddrV4>, mut missing: Vec<String>) {
    let mut pause = Duration::from_secs(5);
    while !missing.is_empty() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
        let (more, still) = resolve(missing).await;
        missing = still;
        if more.is_empty() {
            continue;
        }
        found.extend(more);
        let mut node = shared.node.write().await;
        let Some(old) = node.as_ref() else { return };
        if !old.to_bootstrap().await.is_empty() {
            continue;
        }
        node.take();
        match build(shared.listen, &found).await {
            Ok(new) => *node = Some(new),
            Err(error) => tracing::error!(%error, listen = %shared.listen, "the DHT node could not start again"),
        }
    }
}
