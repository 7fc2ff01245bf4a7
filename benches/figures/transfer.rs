//! One object from one seed to one peer on loopback, beside libtorrent with the same torrent.

use crate::tool::{self, Store};
use crate::{Goal, Row, in_turns, median};
use blockbt::blockio::FileIo;
use blockbt::format::verity;
use blockbt::swarm::torrent::TorrentInfo;
use blockbt::swarm::{ObjectItem, Step, Swarm, SwarmConfig, Watcher};
use blockbt::units::Bytes;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

const LEN: usize = 256_000_000;

/// `seed TORRENT DIR` and `get TORRENT DIR PORT`, one a line, each answered by a line: the port, and the seconds until all pieces were there.
const LIBTORRENT: &str = r#"
import sys, time, libtorrent as lt
session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True, "enable_incoming_utp": False, "enable_outgoing_utp": False, "mixed_mode_algorithm": 0})
def add(torrent, dir):
    p = lt.add_torrent_params()
    p.ti = lt.torrent_info(torrent)
    p.save_path = dir
    p.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
    return session.add_torrent(p)
for line in sys.stdin:
    words = line.rstrip("\n").split("\t")
    h = add(words[1], words[2])
    if words[0] == "seed":
        while not h.status().is_seeding:
            time.sleep(0.02)
        print(session.listen_port(), flush=True)
    else:
        while h.status().state in (lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data):
            time.sleep(0.005)
        start = time.monotonic()
        h.connect_peer(("127.0.0.1", int(words[3])))
        while not h.status().is_seeding:
            time.sleep(0.005)
        print(time.monotonic() - start, flush=True)
"#;

pub fn rows() -> Vec<Row> {
    let store = Store::new();
    let dir = store.dir();
    let object = Object::new(dir);
    let torrent = dir.join("object.torrent");
    std::fs::write(&torrent, object.info.torrent_file()).expect("target/ can be written to");
    let torrent = torrent.display().to_string();

    let mut their_seed = Libtorrent::start();
    let their_port = their_seed.ask(&["seed", &torrent, &dir.display().to_string()]);
    let our_seed = Node::start(dir);
    let file = dir.join(object.item.digest.to_string());
    our_seed.swarm.seed(&object.info, &file).expect("the object is whole");

    let mut pieces = Vec::new();
    let mut ours = || {
        let (into, peer) = (folder(dir), Node::start(dir));
        tool::settle();
        let mut item = object.item.clone();
        item.dir = into.path().into();
        item.peers = vec![our_seed.swarm.listen().expect("it listens")];
        let clock = Arc::new(Clock::default());
        let start = Instant::now();
        let fetched = peer.swarm.fetch_object(item, clock.clone()).expect("the seed has all");
        std::fs::hard_link(&fetched.path, into.path().join("linked")).expect("it is on one file system");
        File::open(into.path())
            .and_then(|dir| dir.sync_all())
            .expect("a directory can be synced");
        let linked = start.elapsed().as_secs_f64();
        let last = clock.0.lock().expect("no thread panics with it").expect("all pieces came");
        pieces.push((last - start).as_secs_f64());
        linked
    };
    let mut theirs = || {
        let (into, mut peer) = (folder(dir), Libtorrent::start());
        tool::settle();
        let seconds = peer.ask(&["get", &torrent, &into.path().display().to_string(), &their_port]);
        seconds.parse::<f64>().expect("it answers with seconds")
    };
    let [linked, theirs] = in_turns([&mut ours, &mut theirs]);
    let pieces = median(pieces);
    let row = |name: &str, ours: f64, limit| Row {
        name: name.into(),
        value: ours / theirs,
        unit: "x",
        goal: Goal::AtMost(limit),
        detail: format!(
            "256 MB, pieces of {} KiB: {ours:.2} s / libtorrent {theirs:.2} s",
            object.info.piece_len >> 10
        ),
    };
    vec![
        row("transfer, all pieces there", pieces, 1.1),
        row("transfer, verified, durable and linked", linked, 1.6),
    ]
}

fn folder(above: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(above).expect("target/ can be written to")
}

/// A file of random bytes, named by its digest.
struct Object {
    info: TorrentInfo,
    item: ObjectItem,
}

impl Object {
    fn new(dir: &Path) -> Object {
        let draft = dir.join("object");
        std::fs::write(&draft, tool::random(LEN)).expect("target/ can be written to");
        let io = FileIo(File::open(&draft).expect("it was just written"));
        let (digest, units) = verity::digest_file(&io, &mut |_| {}).expect("it can be read");
        let info = TorrentInfo::build(&digest.to_string(), &io, &|_| {}).expect("it can be read");
        std::fs::rename(&draft, dir.join(digest.to_string())).expect("it is ours");
        let item = ObjectItem {
            digest,
            len: Bytes(LEN as u64),
            info_hash: info.info_hash(),
            units: Arc::new(units),
            dir: dir.into(),
            peers: Vec::new(),
        };
        Object { info, item }
    }
}

/// A swarm with threads of its own, as a process has it.
struct Node {
    swarm: Swarm,
    runtime: Option<Runtime>,
}

impl Node {
    fn start(dir: &Path) -> Node {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let config = SwarmConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            announce_port: 0,
            dht_listen: None,
            bootstrap: Vec::new(),
            work_dir: dir.join("work"),
            patience: Some(Duration::from_secs(60)),
        };
        Node {
            swarm: Swarm::start(config, runtime.handle()).expect("loopback has free ports"),
            runtime: Some(runtime),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.swarm.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// When the last piece came.
#[derive(Default)]
struct Clock(Mutex<Option<Instant>>);

impl Watcher for Clock {
    fn step(&self, step: Step) {
        if let Step::Fetching { have, len, .. } = step
            && have == len
        {
            self.0.lock().expect("no thread panics with it").get_or_insert_with(Instant::now);
        }
    }
}

struct Libtorrent {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Libtorrent {
    fn start() -> Libtorrent {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", LIBTORRENT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with python3-libtorrent is installed");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Libtorrent { child, input, output }
    }

    fn ask(&mut self, words: &[&str]) -> String {
        writeln!(self.input, "{}", words.join("\t")).expect("libtorrent listens");
        let line = self.output.next().and_then(Result::ok);
        line.expect("libtorrent answers")
    }
}

impl Drop for Libtorrent {
    fn drop(&mut self) {
        // Gone already, it needs no end.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
