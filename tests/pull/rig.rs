//! Hosts for the tests: a store each, a daemon that may run, and the command line.

use blockbt::ids::Digest;
use blockbt::store::Store;
use serde_json::Value;
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

const BLOCKBTD: &str = env!("CARGO_BIN_EXE_blockbtd");
const CTL: &str = env!("CARGO_BIN_EXE_blockbt-ctl");

/// A port that nobody has, below those that a kernel hands out. It is this process's to its end: who asks here in another one finds it
/// taken on the next address, too, whether or not a daemon of ours has it just now.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 16) as u16 * 250;
    loop {
        let port = 4_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 4_900;
        let Ok(claim) = TcpListener::bind(("127.0.0.2", port)) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            std::mem::forget(claim);
            return port;
        }
    }
}

/// Bytes that do not compress and differ everywhere.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
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

/// Longer than anything takes on a slow and busy machine.
const LONG: Duration = Duration::from_secs(300);
/// The same for a pull that is to end by itself.
pub const TIMEOUT: &str = "300";

/// Waits until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// How a host finds others.
pub enum Net<'a> {
    /// By the DHT alone, starting from these.
    Dht(&'a [&'a Host]),
    /// By what a link says alone.
    Link,
}

pub struct Host {
    dir: tempfile::TempDir,
    pub root: PathBuf,
    pub port: u16,
    daemon: Option<Child>,
}

impl Host {
    pub fn new(net: &Net) -> Host {
        Host::at(net, free_port(), None)
    }

    /// One whose store is on another file system, perhaps.
    pub fn at(net: &Net, port: u16, root: Option<PathBuf>) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let root = root.unwrap_or_else(|| dir.path().join("store"));
        let (dht, nodes) = match net {
            Net::Link => (false, vec![]),
            Net::Dht(hosts) => (true, hosts.iter().map(|host| host.port).collect()),
        };
        let host = Host {
            dir,
            root,
            port,
            daemon: None,
        };
        host.configure(dht, &nodes);
        host
    }

    /// Bootstrap nodes are ports on loopback.
    pub fn configure(&self, dht: bool, bootstrap: &[u16]) {
        let mut nodes: Vec<String> = bootstrap.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        if nodes.is_empty() {
            nodes.push("\"none\"".into());
        }
        let settings = format!(
            "root = \"{}\"\nlisten = \"127.0.0.1:{}\"\ndht = {dht}\nbootstrap = [{}]\n",
            text(&self.root),
            self.port,
            nodes.join(", ")
        );
        fs::write(self.config(), settings).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn daemon_command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(BLOCKBTD);
        command
            .args(["--config", text(&self.config())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        clean(&mut command);
        command
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon, and waits until it has told its service manager that it is ready.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        let manager = self.dir.path().join("notify");
        let _ = fs::remove_file(&manager);
        let socket = UnixDatagram::bind(&manager).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut child = self
            .daemon_command()
            .envs(environment.iter().copied())
            .env("NOTIFY_SOCKET", &manager)
            .spawn()
            .unwrap();
        let start = Instant::now();
        let mut said = [0; 256];
        loop {
            match socket.recv(&mut said) {
                Ok(len) if said[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") => break,
                _ => {}
            }
            let ended = child.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > LONG {
                let _ = child.kill();
                panic!("the daemon is not ready ({ended:?}):\n{}", self.log());
            }
        }
        self.daemon = Some(child);
    }

    /// A start that is to fail: the exit code and what was said.
    pub fn start_in_vain(&self, environment: &[(&str, &str)]) -> (Option<i32>, String) {
        let output = self
            .daemon_command()
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn daemon_lives(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.daemon.take().expect("it runs");
        signal(child.id(), "TERM");
        until("the daemon's end", || child.try_wait().unwrap().is_some());
        child.wait().unwrap()
    }

    /// `kill -9`, or waits for the death that it meets by itself.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn wait_dead(&mut self) {
        let mut child = self.daemon.take().expect("it runs");
        until("the daemon's death", || child.try_wait().unwrap().is_some());
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CTL);
        command
            .args(["--config", text(&self.config())])
            .args(arguments)
            .stdin(Stdio::null());
        clean(&mut command);
        command
    }

    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A verb that works, and its reply.
    pub fn ok(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[&["--json"], arguments].concat());
        reply(&output).unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            panic!("{arguments:?}: {} {said}\n{}", output.status, self.log())
        })
    }

    /// What `list` tells of each image.
    pub fn images(&self) -> Vec<Value> {
        let output = self.ctl(&["--json", "list"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// A verb that does not: its exit code, and what it says.
    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.ctl(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} worked");
        (output.status.code().unwrap_or(-1), said)
    }

    pub fn spawn(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
        let mut command = self.command(&[&["--json"], arguments].concat());
        command.envs(environment.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn publish(&self, image: &str) -> String {
        self.ok(&["publish", image])["link"].as_str().unwrap().into()
    }

    /// `link` with this host's address in it.
    pub fn with_peer(link: &str, port: u16) -> String {
        format!("{link}&x.pe=127.0.0.1:{port}")
    }

    /// An image without a file system: `megabytes` of noise.
    pub fn import_noise(&self, image: &str, megabytes: usize, seed: u64) {
        let raw = self.dir.path().join(format!("{image}.raw"));
        fs::write(&raw, noise(megabytes << 20, seed)).unwrap();
        self.ok(&["import", image, text(&raw)]);
        fs::remove_file(raw).unwrap();
    }

    pub fn store(&self) -> Store {
        Store::open(&self.root).unwrap()
    }

    pub fn chain(&self, image: &str) -> Vec<Digest> {
        let info = self.ok(&["info", image]);
        let deltas = info["chain"].as_array().unwrap().iter();
        deltas.map(|delta| delta["digest"].as_str().unwrap().parse().unwrap()).collect()
    }

    pub fn object(&self, digest: &Digest) -> PathBuf {
        self.store().object_paths(digest).delta
    }

    /// Nothing is left of work that has ended.
    pub fn assert_tidy(&self) {
        let store = self.store();
        let list = |dir: PathBuf| -> Vec<PathBuf> {
            fs::read_dir(dir)
                .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default()
        };
        for dir in [self.root.join("tmp"), self.root.join("journal"), store.incoming_dir().join("small")] {
            assert_eq!(list(dir), Vec::<PathBuf>::new());
        }
        let incoming: Vec<_> = list(store.incoming_dir()).into_iter().filter(|path| path.is_file()).collect();
        assert_eq!(incoming, Vec::<PathBuf>::new());
    }

    pub fn assert_sound(&self) {
        let check = self.ok(&["check", "--all"]);
        assert_eq!(check["findings"].as_array().map(Vec::len), Some(0), "{check}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.root.display(), self.log());
        }
        let Ok(store) = Store::open(&self.root) else { return };
        for image in store.images().map(|listing| listing.images).unwrap_or_default() {
            let name = image.name.to_string();
            let done = self.ctl(&["umount", &name]).status.success();
            let _ = done || self.ctl(&["detach", &name]).status.success();
        }
        let _ = fs::remove_dir_all(store.run_dir());
    }
}

/// What the tests' own environment says must not matter.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars() {
        if name.starts_with("BLOCKBT_") || name.to_ascii_lowercase().ends_with("_proxy") || name == "NOTIFY_SOCKET" {
            command.env_remove(name);
        }
    }
}

pub fn reply(output: &Output) -> Option<Value> {
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).expect("one JSON object"))
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Writes `len` bytes of noise to an image's disk, at its start, and commits it.
pub fn change(host: &Host, image: &str, len: usize, seed: u64) {
    let attached = host.ok(&["attach", image]);
    fs::write(attached["device"].as_str().unwrap(), noise(len, seed)).unwrap();
    host.ok(&["detach", image]);
    host.ok(&["commit", image]);
}
