//! Publishers and peers that lie: no object, a named error, and a daemon that lives.

use crate::raw::{RawPeer, Script};
use crate::rig::*;
use blockbt::bencode::{self, Value};
use blockbt::blockio::MemoryIo;
use blockbt::format::manifest::{Manifest, ManifestDelta};
use blockbt::format::meta::Meta;
use blockbt::format::trailer::FileSystem;
use blockbt::format::verity;
use blockbt::ids::{Digest, InfoHash, Sha256};
use blockbt::swarm::torrent::{TorrentInfo, sha1};
use blockbt::swarm::{Swarm, SwarmConfig};
use blockbt::units::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Seeds whatever it is given, under whatever name.
struct Liar {
    swarm: Swarm,
    runtime: Option<tokio::runtime::Runtime>,
    dir: tempfile::TempDir,
}

impl Liar {
    fn new() -> Liar {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = SwarmConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            announce_port: 0,
            dht_listen: None,
            bootstrap: Vec::new(),
            work_dir: dir.path().join("work"),
            patience: None,
        };
        let swarm = Swarm::start(config, runtime.handle()).unwrap();
        Liar {
            swarm,
            runtime: Some(runtime),
            dir,
        }
    }

    fn seed(&self, name: &str, bytes: &[u8]) -> InfoHash {
        let info = TorrentInfo::build(name, &MemoryIo::new(bytes.to_vec()), &|_| {}).unwrap();
        let path = self.dir.path().join(info.info_hash().to_string());
        fs::write(&path, bytes).unwrap();
        self.swarm.seed(&info, &path).unwrap();
        info.info_hash()
    }

    /// The link to an image of one delta.
    fn publish(&self, delta: ManifestDelta) -> String {
        let manifest = Manifest {
            name: "data".parse().unwrap(),
            virtual_size: Bytes(2 << 20),
            file_system: FileSystem::None,
            labels: BTreeMap::new(),
            deltas: vec![delta],
        };
        let bytes = manifest.encode().unwrap();
        let sha256 = Sha256::of(&bytes);
        let info_hash = self.seed(&sha256.to_string(), &bytes);
        link(info_hash, sha256, self.swarm.listen().unwrap().port())
    }

    fn delta(&self, digest: Digest, bytes: &[u8], meta: &Meta) -> ManifestDelta {
        let encoded = meta.encode();
        let meta_sha256 = Sha256::of(&encoded);
        ManifestDelta {
            digest,
            len: Bytes(bytes.len() as u64),
            info_hash: self.seed(&digest.to_string(), bytes),
            meta_sha256,
            meta_len: Bytes(encoded.len() as u64),
            meta_info_hash: self.seed(&meta_sha256.to_string(), &encoded),
        }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.swarm.stop();
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(2));
    }
}

fn link(info_hash: InfoHash, sha256: Sha256, port: u16) -> String {
    Host::with_peer(&format!("magnet:?xt=urn:btih:{info_hash}&x.bbt={sha256}"), port)
}

/// An honest delta of 2 MiB: its digest, bytes and `.meta`.
fn honest(host: &Host) -> (Digest, Vec<u8>, Meta) {
    host.import_noise("honest", 2, 9);
    let digest = host.chain("honest")[0];
    let bytes = fs::read(host.object(&digest)).unwrap();
    let meta = Meta::parse(&host.store().meta(&digest).unwrap()).unwrap();
    (digest, bytes, meta)
}

/// The pull fails as damaged, says so in these words, and leaves nothing.
fn is_refused(b: &mut Host, link: &str, words: &str, what: &str) {
    let (code, said) = b.fails(&["pull", link, "--timeout", TIMEOUT]);
    assert_eq!(code, 5, "{what}: {said}");
    assert!(said.contains(words), "{what}: {said}");
    assert_eq!(b.images().len(), 0, "{what}");
    assert_eq!(b.store().objects().unwrap(), [], "{what}");
    b.assert_tidy();
    assert!(b.daemon_lives(), "{what}");
    assert!(!b.log().contains("panicked"), "{what}: {}", b.log());
}

#[test]
fn a_torrent_whose_bytes_are_not_the_trees_is_named_and_nothing_of_it_stays() {
    let a = Host::new(&Net::Link);
    let (digest, bytes, meta) = honest(&a);
    let liar = Liar::new();
    let mut b = Host::new(&Net::Link);
    b.start();
    let data_len = meta.data_len.0 as usize;
    let area = meta.facts.chunk_size.bytes().0 as usize + 8;
    for (at, what) in [
        (0, "the header"),
        (area, "an area"),
        (data_len / 2, "data"),
        (data_len + 40, "the trailer"),
        (bytes.len() - 1, "the footer"),
    ] {
        let mut lie = bytes.clone();
        lie[at] ^= 1;
        let mut delta = liar.delta(digest, &bytes, &meta);
        liar.swarm.unseed(delta.info_hash);
        delta.info_hash = liar.seed(&digest.to_string(), &lie);
        is_refused(&mut b, &liar.publish(delta), "the torrent lies", what);
    }
}

#[test]
fn a_delta_that_was_made_wrong_is_refused_although_its_bytes_are_its_digests() {
    let a = Host::new(&Net::Link);
    let (_, bytes, meta) = honest(&a);
    let liar = Liar::new();
    let mut b = Host::new(&Net::Link);
    b.start();
    let made = |bytes: &[u8], change: &dyn Fn(&mut Meta)| {
        let (digest, units) = verity::digest_file(&MemoryIo::new(bytes.to_vec()), &mut |_| {}).unwrap();
        let mut meta = Meta { units, ..meta.clone() };
        change(&mut meta);
        liar.publish(liar.delta(digest, bytes, &meta))
    };
    let area = meta.facts.chunk_size.bytes().0 as usize;
    let mut other = bytes.clone();
    other[area] ^= 1;
    is_refused(
        &mut b,
        &made(&other, &|_| {}),
        "was made wrong",
        "an area that is not the trailer's",
    );
    let mut other = bytes.clone();
    other[meta.data_len.0 as usize + 16] ^= 1;
    is_refused(&mut b, &made(&other, &|_| {}), "was made wrong", "a trailer with a wrong sum");
    let fewer = |meta: &mut Meta| {
        meta.extents.pop();
    };
    let link = made(&bytes, &fewer);
    let (code, said) = b.fails(&["pull", &link, "--timeout", TIMEOUT]);
    assert_eq!(code, 5, "a .meta of another disk: {said}");
    b.assert_tidy();
}

#[test]
fn manifests_metas_and_links_that_do_not_fit_are_named() {
    let mut a = Host::new(&Net::Link);
    let (digest, bytes, meta) = honest(&a);
    let liar = Liar::new();
    let mut b = Host::new(&Net::Link);
    b.start();
    // A .meta whose SHA-256 is not the manifest's.
    let mut delta = liar.delta(digest, &bytes, &meta);
    delta.meta_sha256 = Sha256([7; 32]);
    delta.meta_info_hash = liar.seed(&delta.meta_sha256.to_string(), &meta.encode());
    is_refused(&mut b, &liar.publish(delta.clone()), "SHA-256", "another .meta");
    // A .meta of another delta.
    let mut delta = liar.delta(digest, &bytes, &meta);
    delta.digest = Digest([9; 32]);
    is_refused(&mut b, &liar.publish(delta), "the .meta of", "a .meta of another delta");
    // A manifest that is none.
    let nonsense = b"d4:name3:abce";
    let sha256 = Sha256::of(nonsense);
    let port = liar.swarm.listen().unwrap().port();
    let nothing = link(liar.seed(&sha256.to_string(), nonsense), sha256, port);
    is_refused(&mut b, &nothing, "manifest", "no manifest");
    // A link with another x.bbt, and one with none.
    let good = Host::with_peer(&a.publish("honest"), a.port);
    a.start();
    let at = good.find("x.bbt=").unwrap() + 6;
    let wrong = format!("{}{}{}", &good[..at], "0".repeat(64), &good[at + 64..]);
    is_refused(&mut b, &wrong, &"0".repeat(64), "a wrong x.bbt");
    let none = format!("{}{}", &good[..at - 7], &good[at + 64..]);
    let (code, said) = b.fails(&["pull", &none]);
    assert!(code == 2 && said.contains("x.bbt"), "{said}");
    b.ok(&["pull", &none, "--insecure-sha1"]);
    assert_eq!(a.chain("honest"), b.chain("honest"));
}

/// An info dict, and a link to it that names a peer who has it.
fn hostile_dict(dict: Value) -> String {
    let metadata = bencode::encode(&dict);
    let info_hash = InfoHash(sha1(&metadata));
    let peer = RawPeer::start(Script {
        info_hash,
        said_size: metadata.len() as i64,
        metadata,
        pieces: 1,
        answers: true,
    });
    link(info_hash, Sha256([1; 32]), peer.addr.port())
}

#[test]
fn hostile_info_dicts_over_the_wire_are_named_and_the_daemon_lives() {
    let mut b = Host::new(&Net::Link);
    b.start();
    let name = Sha256([1; 32]).to_string();
    let dict = |length: i64, piece: i64, pieces: usize, name: &str| {
        Value::dict([
            ("length", Value::Int(length)),
            ("name", Value::bytes(name)),
            ("piece length", Value::Int(piece)),
            ("pieces", Value::Bytes(vec![1; pieces])),
        ])
    };
    for (dict, what) in [
        (dict(1000, 0, 20, &name), "piece length 0"),
        (dict(1000, -1, 20, &name), "piece length -1"),
        (dict(1 << 60, 1 << 18, 20, &name), "length 2^60"),
        (dict(1000, 1 << 60, 20, &name), "piece length 2^60"),
        (dict(0, 1 << 18, 0, &name), "no bytes"),
        (dict(1000, 1 << 18, 40, &name), "too many pieces"),
        (dict(1000, 1 << 18, 19, &name), "half a piece hash"),
        (dict(1000, 1 << 18, 20, "../../etc/passwd"), "a name with slashes"),
        (dict(1000, 1 << 18, 20, "x"), "another name"),
        (Value::Int(3), "no dict"),
    ] {
        is_refused(&mut b, &hostile_dict(dict), "info dict", what);
    }
}

#[test]
fn peers_that_send_garbage_are_left_and_a_good_one_is_enough() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 4, 10);
    let good = Host::with_peer(&a.publish("data"), a.port);
    a.start();
    let mut b = Host::new(&Net::Link);
    b.start();
    // Whoever connects gets noise; one says first that a message of 4 GiB will come.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (count, mut client) in listener.incoming().flatten().enumerate() {
            let bytes = if count % 2 == 0 {
                vec![0xff; 4096]
            } else {
                noise(4096, count as u64)
            };
            let _ = client.write_all(&bytes);
        }
    });
    let at = good.find("&x.pe").unwrap();
    let (code, said) = b.fails(&["pull", &Host::with_peer(&good[..at], port), "--timeout", "2"]);
    assert!(
        code == 1 && said.contains("manifest") && said.contains("2 s"),
        "what it waited for: {said}"
    );
    b.assert_tidy();
    // And one that claims all pieces of the delta, and sends noise for each.
    let digest = a.chain("data")[0];
    let torrent = a.store().read_torrent(&a.store().object_paths(&digest).torrent).unwrap();
    let raw = RawPeer::start(Script {
        info_hash: InfoHash(sha1(&torrent)),
        said_size: torrent.len() as i64,
        metadata: torrent,
        pieces: (a.object(&digest).metadata().unwrap().len() as usize).div_ceil(256 << 10),
        answers: true,
    });
    b.ok(&["pull", &Host::with_peer(&Host::with_peer(&good, port), raw.addr.port())]);
    assert_eq!(a.chain("data"), b.chain("data"));
    println!("{} blocks of noise were taken", raw.blocks.load(Ordering::Relaxed));
    b.assert_sound();
    assert!(b.daemon_lives());
}
