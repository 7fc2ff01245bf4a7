//! Seeds that lie, peers that break the protocol, files that rot.

use super::raw::{RawPeer, Script};
use super::*;
use crate::bencode::{self, Value};
use crate::swarm::torrent::{TorrentError, sha1};
use std::sync::atomic::Ordering;

/// A leecher that gives up soon: for what must come to nothing.
fn hasty() -> Node {
    Node::start_on(None, &[], Duration::from_secs(3))
}

fn script(info_hash: InfoHash, metadata: Vec<u8>) -> Script {
    Script {
        info_hash,
        said_size: metadata.len() as i64,
        metadata,
        pieces: 0,
        answers: true,
    }
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "work").collect()
}

#[test]
fn valid_sha1_over_other_bytes_is_a_lie_and_leaves_nothing() {
    let (a, b) = (Node::start(&[]), Node::start(&[]));
    let object = Object::noise(3 << 20);
    let at = (1 << 20) + 4096 + 17;
    let mut data = object.data.clone();
    data[at] ^= 0x10;
    let info = TorrentInfo::build(&object.digest.to_string(), &MemoryIo::new(data.clone()), &|_| {}).unwrap();
    let path = a.dir().join("lie");
    std::fs::write(&path, &data).unwrap();
    a.swarm.seed(&info, &path).unwrap();
    let mut item = object.item(b.dir());
    item.info_hash = info.info_hash();
    item.peers = vec![a.addr()];
    match b.swarm.fetch_object(item.clone(), Arc::new(())) {
        Err(FetchError::Lies { unit, digest, .. }) => assert_eq!((unit, digest), (2, object.digest)),
        other => panic!("{other:?}"),
    }
    assert_eq!(leftovers(b.dir()), [""; 0]);
    assert!(b.swarm.peers().is_empty());

    // One level up: the unit hashes; and the top: the digest itself.
    let mut units = item.units.to_vec();
    units[1][31] ^= 1;
    let forged = ObjectItem {
        units: Arc::new(units),
        ..item.clone()
    };
    assert!(matches!(b.swarm.fetch_object(forged, Arc::new(())), Err(FetchError::Units { .. })));
    let mut digest = object.digest;
    digest.0[0] ^= 0x80;
    let forged = ObjectItem { digest, ..item.clone() };
    assert!(matches!(b.swarm.fetch_object(forged, Arc::new(())), Err(FetchError::Units { .. })));
    let mut units = item.units.to_vec();
    units.pop();
    let forged = ObjectItem {
        units: Arc::new(units),
        ..item
    };
    assert!(matches!(b.swarm.fetch_object(forged, Arc::new(())), Err(FetchError::Units { .. })));
    assert_eq!(leftovers(b.dir()), [""; 0]);
}

#[test]
fn a_blob_with_another_sha256_is_not_handed_out() {
    let (a, b) = (Node::start(&[]), Node::start(&[]));
    let blob = noise(300_000, 5);
    let good = Sha256::of(&blob);
    let info = TorrentInfo::build(&good.to_string(), &MemoryIo::new(blob.clone()), &|_| {}).unwrap();
    let path = a.dir().join("blob");
    std::fs::write(&path, &blob).unwrap();
    a.swarm.seed(&info, &path).unwrap();
    let fetch = |max, sha256| {
        b.swarm
            .fetch_blob(info.info_hash(), Bytes(max), sha256, vec![a.addr()], Arc::new(()))
    };
    let (bytes, found) = fetch(300_000, Some(good)).unwrap();
    assert!(bytes == blob && found == info);
    assert!(fetch(300_000, None).is_ok());
    assert!(matches!(
        fetch(299_999, Some(good)),
        Err(FetchError::Metadata {
            cause: MetadataError::Torrent(TorrentError::TooLong { .. }),
            ..
        })
    ));
    assert!(matches!(
        fetch(300_000, Some(Sha256([1; 32]))),
        Err(FetchError::Metadata {
            cause: MetadataError::Torrent(TorrentError::OtherName { .. }),
            ..
        })
    ));
    // The right name over other bytes.
    let want = Sha256([2; 32]);
    let lie = TorrentInfo::build(&want.to_string(), &MemoryIo::new(blob.clone()), &|_| {}).unwrap();
    a.swarm.seed(&lie, &path).unwrap();
    match b
        .swarm
        .fetch_blob(lie.info_hash(), Bytes(300_000), Some(want), vec![a.addr()], Arc::new(()))
    {
        Err(FetchError::OtherBlob { found, .. }) => assert_eq!(found, good),
        other => panic!("{other:?}"),
    }
    assert_eq!(leftovers(&b.dir().join("work")), [""; 0]);
}

#[test]
fn a_peer_of_random_blocks_gives_no_object_and_does_not_stop_a_good_one() {
    let (a, b) = (Node::start(&[]), hasty());
    let object = Object::noise(2 << 20);
    let raw = RawPeer::start(Script {
        pieces: object.info.pieces.len(),
        ..script(object.info.info_hash(), object.info.info_dict())
    });
    let mut item = object.item(b.dir());
    item.peers = vec![raw.addr];
    until("a request for a block", || {
        let error = b.swarm.fetch_object(item.clone(), Arc::new(())).unwrap_err();
        assert!(matches!(error, FetchError::Stalled { .. }), "{error:?}");
        raw.blocks.load(Ordering::Relaxed) > 0
    });
    let path = object.store(a.dir());
    a.swarm.seed(&object.info, &path).unwrap();
    // What the hasty one has left is gone on with.
    let c = Node::start(&[]);
    item.peers.push(a.addr());
    let fetched = c.swarm.fetch_object(item, Arc::new(())).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
}

#[test]
fn hostile_metadata_over_the_wire_is_a_named_error_and_the_swarm_lives_on() {
    let (b, c) = (Node::start(&[]), hasty());
    let object = Object::noise(1 << 20);
    let with = |field: &str, value: Value| {
        let Value::Dict(mut dict) = bencode::decode(&object.info.info_dict()).unwrap() else {
            panic!("an info dict is a dict");
        };
        dict.insert(field.into(), value);
        bencode::encode(&Value::Dict(dict))
    };
    for (what, dict) in [
        ("piece length 0", with("piece length", Value::Int(0))),
        ("length 2^60", with("length", Value::Int(1 << 60))),
        ("too many pieces", with("pieces", Value::Bytes(vec![0; 20 * 9]))),
        ("a slash", with("name", Value::bytes("../../etc/passwd"))),
        ("not bencode", vec![b'x'; 100]),
        ("nothing but depth", vec![b'l'; 20_000]),
    ] {
        let info_hash = InfoHash(sha1(&dict));
        let raw = RawPeer::start(script(info_hash, dict));
        let mut item = object.item(b.dir());
        item.info_hash = info_hash;
        item.peers = vec![raw.addr];
        match b.swarm.fetch_object(item, Arc::new(())) {
            Err(FetchError::Metadata {
                cause: MetadataError::Torrent(_),
                ..
            }) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    // Peers that are merely useless: their sizes and bytes are refused, and others could still answer.
    let right = object.info.info_hash();
    let dict = object.info.info_dict();
    let sizes = [0, -1, 1 << 40, i64::MAX, dict.len() as i64 + 1];
    let mut useless: Vec<RawPeer> = sizes
        .map(|said_size| {
            RawPeer::start(Script {
                said_size,
                ..script(right, dict.clone())
            })
        })
        .into();
    useless.push(RawPeer::start(script(right, vec![7; dict.len()])));
    let mut item = object.item(b.dir());
    item.peers = useless.iter().map(|peer| peer.addr).collect();
    let error = c.swarm.fetch_object(item.clone(), Arc::new(())).unwrap_err();
    assert!(matches!(error, FetchError::Stalled { peers: 6, .. }), "{error:?}");
    assert_eq!(leftovers(b.dir()), [""; 0]);
    let a = Node::start(&[]);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    item.peers.push(a.addr());
    b.swarm.fetch_object(item, Arc::new(())).unwrap();
}

#[test]
fn a_rotten_seed_beside_a_good_peer_is_reported_and_never_written() {
    let boot = Node::start(&[]);
    let (good, rotten) = (Node::start(&[boot.dht()]), Node::start(&[boot.dht()]));
    let object = Object::noise(4 << 20);
    good.swarm.seed(&object.info, &object.store(good.dir())).unwrap();
    let path = object.store(rotten.dir());
    let mut data = object.data.clone();
    data[2_000_000] ^= 1;
    std::fs::write(&path, &data).unwrap();
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    match rotten.swarm.seed(&object.info, &path) {
        Err(SwarmError::Damaged { cause, .. }) => assert_eq!(cause.to_string(), "262144 bytes are in pieces that fail their SHA-1"),
        other => panic!("{other:?}"),
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(rotten.swarm.peers().is_empty());
    assert!(std::fs::read(&path).unwrap() == data);
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    // Too short is damaged as well, and a file that is not there is an I/O error.
    std::fs::write(&path, &data[..4096]).unwrap();
    assert!(matches!(rotten.swarm.seed(&object.info, &path), Err(SwarmError::Damaged { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(rotten.swarm.seed(&object.info, &path), Err(SwarmError::Io { .. })));
    assert!(!path.exists());
}

#[test]
fn a_part_that_is_already_an_object_is_not_opened_for_writing() {
    let (a, b) = (Node::start(&[]), Node::start(&[]));
    let object = Object::noise(1 << 20);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    let store = b.dir().join("store");
    std::fs::create_dir(&store).unwrap();
    let linked = store.join("object");
    std::fs::write(&linked, b"another host's bytes").unwrap();
    std::fs::hard_link(&linked, b.dir().join(format!("{}.part", object.digest))).unwrap();
    let mut item = object.item(b.dir());
    item.peers = vec![a.addr()];
    let fetched = b.swarm.fetch_object(item, Arc::new(())).unwrap();
    assert_eq!(std::fs::read(&linked).unwrap(), b"another host's bytes");
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
}
