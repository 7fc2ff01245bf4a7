//! Whole swarms on loopback. They need free ports and a few seconds, no root.

use super::link::Link;
use super::torrent::TorrentInfo;
use super::*;
use crate::blockio::MemoryIo;
use crate::format::verity;
use crate::ids::{Digest, InfoHash, Sha256};
use crate::units::Bytes;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod faults;
mod many;
mod parity;
mod raw;
mod resume;
mod throttle;

/// Longer than anything takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const ANY_PORT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that do not compress and differ everywhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// An object as the store would have it.
struct Object {
    data: Vec<u8>,
    digest: Digest,
    units: Arc<Vec<[u8; 32]>>,
    info: TorrentInfo,
}

impl Object {
    fn new(data: Vec<u8>) -> Object {
        let (digest, units) = verity::digest_file(&MemoryIo::new(data.clone()), &mut |_| {}).unwrap();
        let info = TorrentInfo::build(&digest.to_string(), &MemoryIo::new(data.clone()), &|_| {}).unwrap();
        Object {
            data,
            digest,
            units: Arc::new(units),
            info,
        }
    }

    fn noise(len: usize) -> Object {
        Object::new(noise(len, len as u64))
    }

    fn store(&self, dir: &Path) -> PathBuf {
        let path = dir.join(format!("{}.delta", self.digest));
        std::fs::write(&path, &self.data).unwrap();
        path
    }

    fn item(&self, dir: &Path) -> ObjectItem {
        ObjectItem {
            digest: self.digest,
            len: Bytes(self.data.len() as u64),
            info_hash: self.info.info_hash(),
            units: self.units.clone(),
            dir: dir.into(),
            peers: Vec::new(),
        }
    }
}

/// A swarm of its own on 127.0.0.1, with its own runtime, as a process would have it.
struct Node {
    swarm: Swarm,
    dir: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    fn start(bootstrap: &[String]) -> Node {
        Node::start_on(Some(ANY_PORT), bootstrap, PATIENCE)
    }

    fn start_on(dht_listen: Option<SocketAddrV4>, bootstrap: &[String], patience: Duration) -> Node {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(4).enable_all().build().unwrap();
        Node::start_in(runtime, dht_listen, bootstrap, patience)
    }

    fn start_in(runtime: tokio::runtime::Runtime, dht_listen: Option<SocketAddrV4>, bootstrap: &[String], patience: Duration) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let config = SwarmConfig {
            // Who hears of it in the DHT looks for it at its node's address.
            listen: SocketAddr::new(IpAddr::V4(*dht_listen.unwrap_or(ANY_PORT).ip()), 0),
            announce_port: 0,
            dht_listen,
            bootstrap: bootstrap.to_vec(),
            work_dir: dir.path().join("work"),
            patience: Some(patience),
        };
        let swarm = Swarm::start(config, runtime.handle()).unwrap();
        Node {
            swarm,
            dir,
            runtime: Some(runtime),
        }
    }

    fn dht(&self) -> String {
        self.swarm.dht_listen().expect("the node has a DHT").to_string()
    }

    fn addr(&self) -> SocketAddr {
        self.swarm.listen().unwrap()
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.swarm.stop();
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(2));
    }
}

/// Two addresses on loopback that no other process of these tests has, with a port below those that the kernel hands out.
fn two_addresses() -> [SocketAddrV4; 2] {
    let own = (std::process::id() << 1) & 0x007f_fffe;
    [0, 1].map(|n| SocketAddrV4::new(Ipv4Addr::from(0x7f80_0000 | own | n), 4_981))
}

#[test]
fn an_object_travels_with_the_dht_alone_and_through_the_bridge_only() {
    let boot = Node::start(&[]);
    let (a, b) = (Node::start(&[boot.dht()]), Node::start(&[boot.dht()]));
    let object = Object::noise(20 * 1024 * 1024 + 12_345);
    let path = object.store(a.dir());
    a.swarm.seed(&object.info, &path).unwrap();
    let since = Instant::now();
    let fetched = b.swarm.fetch_object(object.item(b.dir()), Arc::new(())).unwrap();
    println!("fetched in {:?}", since.elapsed());
    assert!(std::fs::read(&fetched.path).unwrap() == object.data);
    assert_eq!(fetched.info, object.info);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&fetched.path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o400);
    assert!(!fetched.path.with_extension("units").exists());
    let (answers, handed) = b.swarm.bridge_answers();
    assert!(answers > 0 && handed > 0, "{answers} answers, {handed} peers");
    let peers = b.swarm.peers();
    assert_eq!(peers.len(), 1);
    // In a long fetch the seed looks for peers as well: some may have come over a link that it made.
    let from = peers[0].peers.iter().find(|peer| peer.addr == a.addr()).unwrap();
    assert!(from.down_bytes > 0 && from.found_by == FoundBy::Dht, "{from:?}");
    assert!(peers[0].peers.iter().map(|peer| peer.down_bytes).sum::<u64>() >= object.data.len() as u64);
    until("the seed's count", || a.swarm.peers()[0].uploaded_bytes >= object.data.len() as u64);
}

#[test]
fn two_hosts_that_bootstrap_on_each_other_find_each_other() {
    let [first, second] = two_addresses();
    let a = Node::start_on(Some(first), &[second.to_string()], PATIENCE);
    let object = Object::noise(3 << 20);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    // The other host comes up later, as in life; one of its names does not resolve at all.
    std::thread::sleep(Duration::from_millis(1500));
    let b = Node::start_on(Some(second), &[first.to_string(), "no-such-host.invalid:1".into()], PATIENCE);
    let since = Instant::now();
    let fetched = b.swarm.fetch_object(object.item(b.dir()), Arc::new(())).unwrap();
    println!("two hosts: {:?}, {} nodes known", since.elapsed(), b.swarm.dht_nodes());
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
}

#[test]
fn what_was_fetched_is_seeded_at_once_and_a_second_seed_call_is_quick() {
    let boot = Node::start(&[]);
    let (a, b, c) = (Node::start(&[boot.dht()]), Node::start(&[boot.dht()]), Node::start(&[boot.dht()]));
    let object = Object::noise(5 << 20);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    let fetched = b.swarm.fetch_object(object.item(b.dir()), Arc::new(())).unwrap();
    a.swarm.unseed(object.info.info_hash());
    let home = b.dir().join("object");
    std::fs::hard_link(&fetched.path, &home).unwrap();
    std::fs::remove_file(&fetched.path).unwrap();
    b.swarm.seed(&object.info, &home).unwrap();
    c.swarm.fetch_object(object.item(c.dir()), Arc::new(())).unwrap();
    assert!(matches!(
        c.swarm.fetch_object(object.item(c.dir()), Arc::new(())),
        Err(FetchError::Busy { .. })
    ));
    assert_eq!(b.swarm.damage(object.info.info_hash()), None);
}

#[test]
fn without_peers_a_fetch_says_so_and_can_be_cancelled() {
    struct Cancel;
    impl Watcher for Cancel {
        fn step(&self, step: Step) {
            assert_eq!(step, Step::Looking { peers: 0 });
        }
        fn cancelled(&self) -> bool {
            true
        }
    }
    let a = Node::start_on(Some(ANY_PORT), &[], Duration::from_secs(1));
    let object = Object::noise(10_000);
    let error = a.swarm.fetch_object(object.item(a.dir()), Arc::new(())).unwrap_err();
    assert!(matches!(error, FetchError::Stalled { peers: 0, .. }), "{error:?}");
    let error = a.swarm.fetch_object(object.item(a.dir()), Arc::new(Cancel)).unwrap_err();
    assert!(matches!(error, FetchError::Cancelled), "{error:?}");
}

#[test]
fn a_link_carries_what_a_pull_needs() {
    let object = Object::noise(10_000);
    let link = Link {
        info_hash: object.info.info_hash(),
        sha256: Some(Sha256::of(&object.data)),
        name: Some("web".into()),
        trackers: Vec::new(),
        peers: vec![SocketAddr::from(([127, 0, 0, 1], 4240))],
        web_seeds: Vec::new(),
    };
    assert_eq!(Link::parse(&link.to_string()).unwrap(), link);
}
