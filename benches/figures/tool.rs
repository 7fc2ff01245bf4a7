//! Runs blockbt on stores of the bench's own, which go away with it, and the tools beside it.

use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub fn target() -> PathBuf {
    let program = std::env::current_exe().expect("Linux has /proc");
    // target/release/deps/figures-<hash>
    program.ancestors().nth(3).expect("cargo's layout").to_path_buf()
}

/// A store, and a directory to mount at.
pub struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Store {
        let above = target().join("bench");
        std::fs::create_dir_all(&above).expect("target/ can be written to");
        let dir = tempfile::tempdir_in(above).expect("target/ can be written to");
        std::fs::create_dir(dir.path().join("mounted")).expect("a new directory is writable");
        Store { dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// The reply to a verb. A figure of a verb that fails is no figure: this ends the run.
    pub fn ctl(&self, words: &[&str]) -> Value {
        let done = self.command(words).output().expect("blockbt-ctl is built");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "blockbt-ctl {}: {error}", words.join(" "));
        serde_json::from_slice(&done.stdout).unwrap_or_else(|cause| panic!("blockbt-ctl {}: {cause}", words.join(" ")))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program("blockbt-ctl");
        command.args(["--no-daemon", "--json"]).args(words);
        command
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(target().join("release").join(name));
        command.arg("--root").arg(self.root());
        for variable in ["ROOT", "CONFIG", "LISTEN", "DHT_LISTEN", "BOOTSTRAP", "NO_DHT"] {
            command.env_remove(format!("BLOCKBT_{variable}"));
        }
        command
    }

    /// The most memory that a verb's process had, in MiB, as the kernel tells while it runs.
    pub fn peak_mib(&self, words: &[&str]) -> f64 {
        let mut child = self.command(words).stdout(Stdio::null()).spawn().expect("blockbt-ctl is built");
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0.0;
        let ended = loop {
            // Read before the end is looked for: a zombie has no memory to tell of.
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            peak = kib.unwrap_or(peak);
            if let Some(ended) = child.try_wait().expect("it is our child") {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(ended.success(), "blockbt-ctl {}: {ended}", words.join(" "));
        peak / 1024.0
    }

    /// Attached until this is dropped.
    pub fn attach(&self, name: &str) -> Attached<'_> {
        let reply = self.ctl(&["attach", name]);
        Attached {
            store: self,
            name: name.into(),
            device: reply["device"].as_str().expect("attach says where").into(),
        }
    }

    /// A daemon that accepts peers at `listen`.
    pub fn daemon(&self, listen: SocketAddr) -> Daemon {
        let mut command = self.program("blockbtd");
        command.args(["--listen", &listen.to_string(), "--no-dht", "--log", "error"]);
        let daemon = Daemon(command.spawn().expect("blockbtd is built"));
        let start = Instant::now();
        while TcpStream::connect(listen).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "blockbtd has not come up at {listen}");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// An empty image with `deltas` sealed deltas, each of which has a few files of random bytes.
    pub fn chain(&self, name: &str, size: &str, deltas: usize) {
        self.ctl(&["create", name, "--size", size]);
        let mut have = self.ctl(&["info", name])["chain"].as_array().map_or(0, Vec::len);
        while have < deltas {
            self.write(name, |dir| {
                for file in 0..8 {
                    std::fs::write(dir.join(format!("{have}-{file}")), random(256 << 10))?;
                }
                Ok(())
            });
            self.ctl(&["commit", name]);
            have += 1;
        }
    }

    pub fn write(&self, name: &str, work: impl FnOnce(&Path) -> std::io::Result<()>) {
        let dir = self.mounted();
        self.ctl(&["mount", name, dir.to_str().expect("our own path is text")]);
        let done = work(&dir);
        self.ctl(&["umount", name]);
        done.expect("there is room in the image");
    }
}

pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("Linux has random bytes");
    bytes
}

pub struct Attached<'a> {
    store: &'a Store,
    name: String,
    pub device: String,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.store.ctl(&["detach", &self.name]);
    }
}

pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        run("kill", &[&self.0.id().to_string()]);
        // Gone already, it needs no end.
        let _gone = self.0.wait();
    }
}

/// What another tool says on its standard output. A figure beside one that fails is no figure: this ends the run.
pub fn run(tool: &str, words: &[&str]) -> String {
    let done = Command::new(tool)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{tool} {}: {error}", words.join(" "));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Nobody's earlier writes are written back at the next one's cost.
pub fn settle() {
    run("sync", &[]);
}

pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("the bench runs as root");
}

pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().into()
}
