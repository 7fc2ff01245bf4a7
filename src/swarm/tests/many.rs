//! Many torrents and many peers at once; peers that go and come back, that stall, that send numbers out of bounds.

use super::raw::{RawPeer, Script};
use super::throttle::Throttle;
use super::*;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

fn without_dht(patience: Duration) -> Node {
    Node::start_on(None, &[], patience)
}

/// Distinct objects, each seeded by `node`.
fn seeded(node: &Node, count: usize, len: usize) -> Vec<Object> {
    let objects: Vec<Object> = (0..count).map(|index| Object::noise(len + index)).collect();
    for object in &objects {
        node.swarm.seed(&object.info, &object.store(node.dir())).unwrap();
    }
    objects
}

fn item_from(object: &Object, to: &Node, peers: &[SocketAddr]) -> ObjectItem {
    let mut item = object.item(to.dir());
    item.peers = peers.to_vec();
    item
}

fn addr_of(link: &Throttle) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], link.port))
}

/// Offers an object and then never sends a byte of it.
fn silent(object: &Object) -> RawPeer {
    RawPeer::start(Script {
        info_hash: object.info.info_hash(),
        said_size: object.info.info_dict().len() as i64,
        metadata: object.info.info_dict(),
        pieces: object.info.pieces.len(),
        answers: false,
    })
}

#[test]
fn twelve_objects_at_once_all_arrive() {
    let (a, b) = (without_dht(PATIENCE), without_dht(PATIENCE));
    let objects = seeded(&a, 12, 3 << 20);
    std::thread::scope(|scope| {
        for object in &objects {
            scope.spawn(|| {
                let fetched = b.swarm.fetch_object(item_from(object, &b, &[a.addr()]), Arc::new(())).unwrap();
                assert!(std::fs::read(fetched.path).unwrap() == object.data);
            });
        }
    });
    assert_eq!(b.swarm.peers().len(), 12);
}

#[test]
fn fetches_that_hang_by_the_dozen_leave_room_for_one_that_can_go_on() {
    struct Until(Arc<AtomicUsize>);
    impl Watcher for Until {
        fn step(&self, _: Step) {}
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) == 0
        }
    }
    // They hang for as long as all of them take to get there.
    let (a, b) = (without_dht(PATIENCE), without_dht(PATIENCE * 3));
    let hanging: Vec<Object> = (0..70).map(|index| Object::noise(300_000 + index)).collect();
    let good = Object::noise(2 << 20);
    a.swarm.seed(&good.info, &good.store(a.dir())).unwrap();
    let go_on = Arc::new(AtomicUsize::new(1));
    std::thread::scope(|scope| {
        let peers: Vec<RawPeer> = hanging.iter().map(silent).collect();
        for (object, peer) in hanging.iter().zip(&peers) {
            let item = item_from(object, &b, &[peer.addr]);
            let watcher = Arc::new(Until(go_on.clone()));
            scope.spawn(|| {
                let error = b.swarm.fetch_object(item, watcher).unwrap_err();
                assert!(matches!(error, FetchError::Cancelled), "{error:?}");
            });
        }
        // Each is at its pieces, and holds its stream if it has got one.
        let since = Instant::now();
        while peers.iter().any(|peer| peer.blocks.load(Ordering::Relaxed) == 0) && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        let hang = peers.iter().filter(|peer| peer.blocks.load(Ordering::Relaxed) > 0).count();
        let since = Instant::now();
        let fetched = b.swarm.fetch_object(item_from(&good, &b, &[a.addr()]), Arc::new(()));
        println!("{hang} of 70 hang, and another came in {:?}", since.elapsed());
        go_on.store(0, Ordering::Relaxed);
        assert_eq!(hang, 70);
        assert!(std::fs::read(fetched.unwrap().path).unwrap() == good.data);
    });
}

#[test]
fn fifty_objects_are_seeded_one_after_the_other() {
    let (a, b) = (without_dht(PATIENCE), without_dht(PATIENCE));
    let since = Instant::now();
    let objects = seeded(&a, 50, 600_000);
    println!("50 objects seeded in {:?}", since.elapsed());
    assert_eq!(a.swarm.peers().len(), 50);
    let last = objects.last().unwrap();
    let since = Instant::now();
    let fetched = b.swarm.fetch_object(item_from(last, &b, &[a.addr()]), Arc::new(())).unwrap();
    println!("one of them fetched in {:?}", since.elapsed());
    assert!(std::fs::read(fetched.path).unwrap() == last.data);
}

#[test]
fn three_leechers_of_a_seed_that_has_sent_one_copy_serve_each_other() {
    let boot = Node::start(&[]);
    // The seed is in no DHT, so that it is reached over its link alone, which lets one copy through.
    let a = without_dht(PATIENCE);
    let object = Object::noise(16 << 20);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    let link = Throttle::start(a.addr().port(), object.data.len() as u64);
    let leechers = [(); 3].map(|()| Node::start(&[boot.dht()]));
    let since = Instant::now();
    let up = |node: &Node| {
        let torrents = node.swarm.peers();
        torrents.iter().map(|torrent| torrent.uploaded_bytes).sum::<u64>() as f64 / object.data.len() as f64
    };
    std::thread::scope(|scope| {
        for node in &leechers {
            let item = item_from(&object, node, &[addr_of(&link)]);
            scope.spawn(|| {
                let fetched = node.swarm.fetch_object(item, Arc::new(())).unwrap();
                assert!(std::fs::read(fetched.path).unwrap() == object.data);
            });
        }
        until("what they have of each other", || leechers.iter().map(up).sum::<f64>() > 0.25);
        link.open();
    });
    let (seed, others) = (up(&a), leechers.each_ref().map(up));
    println!("in {:?}: the seed sent {seed:.2} copies, the others {others:.2?}", since.elapsed());
}

#[test]
fn a_seed_that_goes_and_comes_back_is_found_again() {
    let b = Node::start(&[]);
    let object = Object::noise(8 << 20);
    let first = without_dht(PATIENCE);
    let path = object.store(b.dir());
    first.swarm.seed(&object.info, &path).unwrap();
    let link = Throttle::start(first.addr().port(), 5 << 20);
    std::thread::scope(|scope| {
        let item = item_from(&object, &b, &[addr_of(&link)]);
        let fetch = scope.spawn(|| b.swarm.fetch_object(item, Arc::new(())));
        until("the throttle", || link.holds());
        drop((first, link));
        let again = Node::start(&[b.dht()]);
        let since = Instant::now();
        again.swarm.seed(&object.info, &path).unwrap();
        let fetched = fetch.join().unwrap().unwrap();
        println!("complete {:?} after the seed was back", since.elapsed());
        assert!(std::fs::read(fetched.path).unwrap() == object.data);
        let sent = || again.swarm.peers()[0].uploaded_bytes;
        until("the second seed's count", || sent() > 0);
        assert!(sent() < object.data.len() as u64, "{}", sent());
    });
}

#[test]
fn a_silent_peer_is_passed_over_and_alone_it_is_a_named_error() {
    let (a, b) = (without_dht(PATIENCE), without_dht(Duration::from_secs(2)));
    let object = Object::noise(4 << 20);
    let peer = silent(&object);
    until("a request for a block", || {
        let item = item_from(&object, &b, &[peer.addr]);
        let error = b.swarm.fetch_object(item, Arc::new(())).unwrap_err();
        assert!(matches!(error, FetchError::Stalled { peers: 1, .. }), "{error:?}");
        peer.blocks.load(Ordering::Relaxed) > 0
    });
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    // Patient enough for the good peer to take over what the silent one was asked for.
    let c = without_dht(PATIENCE);
    let since = Instant::now();
    let fetched = c
        .swarm
        .fetch_object(item_from(&object, &c, &[peer.addr, a.addr()]), Arc::new(()))
        .unwrap();
    println!("beside a silent peer: {:?}", since.elapsed());
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
}

/// Panics on threads of this name.
const WATCHED: &str = "hostile-numbers";
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Shakes hands and sends an extension's handshake. The connection is good for as long as the other side lets it be.
fn say(to: SocketAddr, info_hash: InfoHash, message: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\0".to_vec();
    hello.extend(info_hash.0);
    hello.extend(b"-XX0001-abcdefghijkl");
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 68]).unwrap();
    let mut framed = (message.len() as u32 + 2).to_be_bytes().to_vec();
    framed.extend([20, 0]);
    framed.extend(message.as_bytes());
    stream.write_all(&framed).unwrap();
    stream
}

#[test]
fn numbers_out_of_bounds_from_a_peer_panic_no_task() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some(WATCHED) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        before(info);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(WATCHED)
        .enable_all()
        .build();
    let a = Node::start_in(runtime.unwrap(), Some(ANY_PORT), &[], PATIENCE);
    let object = Object::noise(300_000);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut open = Vec::new();
    for number in [
        "99999999999999999999999",
        "-99999999999999999999999",
        "256",
        "4294967296",
        "18446744073709551616",
    ] {
        for message in [
            format!("d1:md11:ut_metadatai{number}eee"),
            format!("d1:md11:ut_metadatai1ee13:metadata_sizei{number}ee"),
            format!("d1:pi{number}e4:reqqi{number}ee"),
            format!("d1:v{number}:xe"),
        ] {
            open.push(say(a.addr(), object.info.info_hash(), &message));
        }
        let query = format!("d1:ad2:idi{number}ee1:q4:ping1:t4:aaaa1:y1:qe");
        udp.send_to(query.as_bytes(), a.swarm.dht_listen().unwrap()).unwrap();
    }
    // Both ports go on answering: another host finds it in the DHT, and fetches it.
    let b = Node::start(&[a.dht()]);
    b.swarm.fetch_object(object.item(b.dir()), Arc::new(())).unwrap();
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}
