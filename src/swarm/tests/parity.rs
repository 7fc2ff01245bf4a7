//! libtorrent reads our torrents, downloads from us, and we from it.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Answers a line per command: `hash FILE` (of a torrent that it makes itself), `check TORRENT`, `seed TORRENT DIR`, `get TORRENT DIR PORT`.
const SCRIPT: &str = r#"
import sys, time, hashlib, libtorrent as lt
session = None
def open_session():
    global session
    if session is None:
        session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
            "enable_natpmp": False, "allow_multiple_connections_per_ip": True, "enable_incoming_utp": False, "enable_outgoing_utp": False,
            "mixed_mode_algorithm": 0})
    return session
def add(torrent, dir):
    p = lt.add_torrent_params()
    p.ti = lt.torrent_info(torrent)
    p.save_path = dir
    p.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
    return open_session().add_torrent(p)
for line in sys.stdin:
    words = line.rstrip("\n").split("\t")
    if words[0] == "hash":
        fs = lt.file_storage()
        lt.add_files(fs, words[1])
        t = lt.create_torrent(fs, int(words[2]), lt.create_torrent.v1_only)
        lt.set_piece_hashes(t, words[3])
        info = t.generate()[b"info"]
        for key in list(info):
            if key not in (b"length", b"name", b"piece length", b"pieces"):
                del info[key]
        print(hashlib.sha1(lt.bencode(info)).hexdigest(), flush=True)
    elif words[0] == "check":
        ti = lt.torrent_info(words[1])
        print(ti.info_hash(), ti.num_pieces(), ti.total_size(), flush=True)
    elif words[0] == "seed":
        h = add(words[1], words[2])
        while not h.status().is_seeding:
            time.sleep(0.02)
        print(session.listen_port(), flush=True)
    elif words[0] == "get":
        open_session()
        start = time.monotonic()
        h = add(words[1], words[2])
        h.connect_peer(("127.0.0.1", int(words[3])))
        while not h.status().is_seeding:
            time.sleep(0.002)
        seconds = time.monotonic() - start
        h.flush_cache()
        session.remove_torrent(h)
        print(seconds, flush=True)
"#;

struct Libtorrent {
    child: Child,
    input: ChildStdin,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Libtorrent {
    fn start() -> Libtorrent {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 with python3-libtorrent is installed");
        Libtorrent {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn ask(&mut self, words: &[&str]) -> String {
        writeln!(self.input, "{}", words.join("\t")).unwrap();
        self.output.next().expect("libtorrent answers").unwrap()
    }
}

impl Drop for Libtorrent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The object's data and torrent file, as libtorrent wants them.
fn lay_out(object: &Object, dir: &Path) -> (String, String) {
    let data = dir.join(object.digest.to_string());
    std::fs::write(&data, &object.data).unwrap();
    let torrent = dir.join("x.torrent");
    std::fs::write(&torrent, object.info.torrent_file()).unwrap();
    (data.display().to_string(), torrent.display().to_string())
}

#[test]
fn libtorrent_computes_our_info_hash_and_takes_whole_pieces() {
    let mut lt = Libtorrent::start();
    for len in [4 << 18, (4 << 18) + 1, (4 << 18) - 1, 1 << 18, 9000] {
        let object = Object::noise(len);
        let dir = tempfile::tempdir().unwrap();
        let (data, torrent) = lay_out(&object, dir.path());
        let piece = object.info.piece_len.to_string();
        let ours = object.info.info_hash().to_string();
        assert_eq!(lt.ask(&["hash", &data, &piece, &dir.path().display().to_string()]), ours, "{len}");
        let want = format!("{ours} {} {len}", object.info.pieces.len());
        assert_eq!(lt.ask(&["check", &torrent]), want);
    }
}

#[test]
fn objects_travel_to_libtorrent_and_back_byte_for_byte() {
    let object = Object::noise(6 << 20);
    let (ours, theirs) = (Node::start(&[]), tempfile::tempdir().unwrap());
    let mut lt = Libtorrent::start();
    ours.swarm.seed(&object.info, &object.store(ours.dir())).unwrap();
    let torrent = theirs.path().join("x.torrent");
    std::fs::write(&torrent, object.info.torrent_file()).unwrap();
    let dir = theirs.path().display().to_string();
    let port = ours.addr().port().to_string();
    lt.ask(&["get", &torrent.display().to_string(), &dir, &port]);
    let got = theirs.path().join(object.digest.to_string());
    until("what libtorrent writes", || std::fs::read(&got).is_ok_and(|got| got == object.data));

    let port = lt.ask(&["seed", &torrent.display().to_string(), &dir]);
    let other = Node::start(&[]);
    let mut item = object.item(other.dir());
    item.peers = vec![SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))];
    let fetched = other.swarm.fetch_object(item, Arc::new(())).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
    let peers = other.swarm.peers();
    assert_eq!(peers[0].peers[0].found_by, FoundBy::Static);
}

/// When the last piece came.
struct Clock(std::sync::Mutex<Option<Instant>>);

impl Watcher for Clock {
    fn step(&self, step: Step) {
        if let Step::Fetching { have, len, .. } = step
            && have == len
        {
            self.0.lock().unwrap().get_or_insert_with(Instant::now);
        }
    }
}

/// Prints what `make bench` reports, over `BLOCKBT_BENCH_ROUNDS` rounds of 256 MiB; its only claim is that all
/// arrives.
///
/// Both clocks start when the torrent and the peer's address are handed over, and stop when the last piece has its SHA-1; both seeds
/// run all the time and read the same synced file, and no DHT is asked. libtorrent has the `.torrent`; we fetch the metadata, too.
#[test]
fn transfer_beside_libtorrent() {
    let rounds: Option<u32> = std::env::var("BLOCKBT_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let object = Object::noise(if rounds.is_some() { 256 << 20 } else { 16 << 20 });
    let (mut pieces, mut linked, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let source = tempfile::tempdir().unwrap();
    let (data, torrent) = lay_out(&object, source.path());
    let mut seed = Libtorrent::start();
    let port = seed.ask(&["seed", &torrent, &source.path().display().to_string()]);
    let direct = || Node::start_on(None, &[], PATIENCE);
    let ours = direct();
    ours.swarm.seed(&object.info, Path::new(&data)).unwrap();
    for _ in 0..rounds.unwrap_or(1) {
        // Nobody pays for what another has left to be written back.
        rustix::fs::sync();
        let dir = tempfile::tempdir().unwrap();
        let mut leech = Libtorrent::start();
        let seconds = leech.ask(&["get", &torrent, &dir.path().display().to_string(), &port]);
        theirs.push(seconds.parse::<f64>().unwrap());
        drop((leech, dir));

        rustix::fs::sync();
        let node = direct();
        let mut item = object.item(node.dir());
        item.peers = vec![ours.addr()];
        let clock = Arc::new(Clock(std::sync::Mutex::default()));
        let since = Instant::now();
        let fetched = node.swarm.fetch_object(item, clock.clone()).unwrap();
        std::fs::hard_link(&fetched.path, node.dir().join("linked")).unwrap();
        std::fs::File::open(node.dir()).unwrap().sync_all().unwrap();
        linked.push(since.elapsed().as_secs_f64());
        pieces.push((clock.0.lock().unwrap().unwrap() - since).as_secs_f64());
    }
    let ratio = |ours: &[f64]| median(ours) / median(&theirs);
    println!(
        "{} MiB: libtorrent {theirs:.2?} s, our pieces {pieces:.2?} s ({:.2}), verified and linked {linked:.2?} s ({:.2})",
        object.data.len() >> 20,
        ratio(&pieces),
        ratio(&linked)
    );
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
