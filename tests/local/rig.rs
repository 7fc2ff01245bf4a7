//! A store of a test's own, the two programs on it, and what must not be left when it goes.

use crate::servers;
use blockbt::kernel::{loops, mounts};
use blockbt::store::Store;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    /// What a verb survived: lines of stderr that are no error.
    pub warned: Vec<String>,
}

impl Said {
    fn new(code: Option<i32>, out: String, err: &str) -> Said {
        let (warned, err): (Vec<&str>, Vec<&str>) = err.split_inclusive('\n').partition(|line| line.starts_with(WARNING));
        Said {
            code,
            out,
            err: err.concat(),
            warned: warned.iter().map(|line| line[WARNING.len()..].trim_end().into()).collect(),
        }
    }
}

const WARNING: &str = "blockbt-ctl: warning: ";

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Said::new(output.status.code(), text(output.stdout), &text(output.stderr))
    }
}

pub struct Rig {
    daemon: Option<Child>,
    root: PathBuf,
    dir: tempfile::TempDir,
    _disk: Option<SmallDisk>,
}

impl Rig {
    pub fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "").unwrap();
        Rig {
            daemon: None,
            root: dir.path().join("store"),
            dir,
            _disk: None,
        }
    }

    /// With its store on a disk of `mib` MiB.
    pub fn on_small_disk(mib: u64) -> Rig {
        let mut rig = Rig::new();
        let disk = SmallDisk::new(rig.dir.path(), mib);
        rig.root = disk.dir.join("store");
        rig._disk = Some(disk);
        rig
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory for a mount.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn run_dir(&self) -> PathBuf {
        let version = fs::read_to_string(self.root.join("VERSION")).unwrap();
        let id = version.lines().find_map(|line| line.strip_prefix("id ")).unwrap();
        Path::new("/run/blockbt").join(id)
    }

    pub fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        self.command_at(&self.root, words)
    }

    /// As [`Rig::command`], for another store.
    pub fn command_at(&self, root: &Path, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockbt-ctl"));
        command.arg("--root").arg(root).args(words);
        self.clean(&mut command);
        command
    }

    fn clean(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BLOCKBT_")) {
            command.env_remove(name);
        }
        command.env("BLOCKBT_CONFIG", self.path("config.toml")).stdin(Stdio::null());
    }

    pub fn ctl(&self, words: &[impl AsRef<OsStr>]) -> Said {
        self.command(words).output().unwrap().into()
    }

    /// Carried out, and nothing to complain of. Returns what went to stdout.
    pub fn ok(&self, words: &[&str]) -> String {
        let said = self.ctl(words);
        assert!(said.code == Some(0) && said.err.is_empty(), "{words:?}: {said:?}");
        said.out
    }

    /// One line on stderr, nothing on stdout. Returns the line.
    pub fn fails(&self, words: &[&str], code: i32) -> String {
        let said = self.ctl(words);
        assert!(said.code == Some(code) && said.out.is_empty(), "{words:?}: want {code}: {said:?}");
        assert!(
            said.err.starts_with("blockbt-ctl: ") && said.err.lines().count() == 1,
            "{words:?}: {said:?}"
        );
        said.err
    }

    /// The one object that a verb prints with `--json`.
    pub fn json(&self, words: &[&str]) -> Value {
        let out = self.ok(&[words, &["--json"]].concat());
        assert_eq!(out.lines().count(), 1, "{words:?}: {out}");
        serde_json::from_str(&out).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let out = self.ok(&["list", "--json"]);
        let name = |line: &str| serde_json::from_str::<Value>(line).unwrap()["name"].as_str().unwrap().to_string();
        out.lines().map(name).collect()
    }

    /// All bytes of an image's disk.
    pub fn raw(&self, name: &str) -> Vec<u8> {
        let target = self.path("raw-of-an-image.raw");
        self.ok(&["export", name, text(&target)]);
        let bytes = fs::read(&target).unwrap();
        fs::remove_file(target).unwrap();
        bytes
    }

    pub fn start_daemon(&mut self, stop_at: Option<&str>) {
        self.start_daemon_by(Command::new(env!("CARGO_BIN_EXE_blockbtd")), stop_at);
    }

    /// As [`Rig::start_daemon`], by a command that becomes `blockbtd` with the arguments behind its own.
    pub fn start_daemon_by(&mut self, mut command: Command, stop_at: Option<&str>) {
        command.arg("--root").arg(&self.root);
        command.args(["--listen", "127.0.0.1:0", "--no-dht"]);
        self.clean(&mut command);
        if let Some(point) = stop_at {
            command.env("BLOCKBT_STOP_AT", point);
        }
        let log = File::create(self.path("daemon.log")).unwrap();
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let start = Instant::now();
        let answers =
            || self.root.join("VERSION").exists() && std::os::unix::net::UnixStream::connect(self.run_dir().join("daemon.sock")).is_ok();
        while !answers() {
            let log = || fs::read_to_string(self.path("daemon.log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "{}", log());
            assert!(start.elapsed() < servers::MINUTE, "{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.daemon = Some(child);
    }

    /// As systemd stops it.
    pub fn stop_daemon(&mut self) {
        let mut child = self.daemon.take().unwrap();
        run("kill", &[&child.id().to_string()]);
        assert!(child.wait().unwrap().success());
    }

    pub fn kill_daemon(&mut self) {
        self.daemon.as_mut().unwrap().kill().unwrap();
        assert_eq!(self.wait_daemon(), Some(9));
    }

    /// The signal that a daemon which stops itself died of.
    pub fn wait_daemon(&mut self) -> Option<i32> {
        self.daemon.take().unwrap().wait().unwrap().signal()
    }

    /// The processes that serve attached images of this store.
    pub fn servers(&self) -> Vec<u32> {
        servers::servers(&self.run_dir())
    }

    pub fn kill_server(&self) {
        servers::kill_server(&self.run_dir());
    }

    /// What the names of this store's loop devices begin with.
    fn loop_names(&self) -> String {
        format!("blockbt-{}-", self.run_dir().file_name().unwrap().to_str().unwrap())
    }

    /// What is in the kernel, among the processes and half done in the store.
    pub fn left(&self) -> Vec<String> {
        let (run_dir, dir, prefix) = (self.run_dir(), self.dir.path(), self.loop_names());
        let mut left: Vec<String> = self.servers().iter().map(|pid| format!("server {pid}")).collect();
        let devices = loops::list().unwrap().into_iter().filter_map(|device| device.name);
        left.extend(devices.filter(|name| name.starts_with(&prefix)).map(|name| format!("loop {name}")));
        let small = self._disk.as_ref().map(|disk| &disk.dir);
        let mounted = mounts::list().unwrap().into_iter().map(|mount| mount.dir);
        left.extend(
            mounted
                .filter(|at| (at.starts_with(&run_dir) || at.starts_with(dir)) && Some(at) != small)
                .map(|at| format!("mount {}", at.display())),
        );
        for folder in [
            self.root.join("tmp"),
            self.root.join("journal"),
            self.root.join("incoming"),
            run_dir,
        ] {
            // "small" is where a swarm keeps what it fetches whole.
            let entries = fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path());
            let lasts = |path: &PathBuf| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.ends_with("lock")
                    || name.starts_with("daemon")
                    || (["mnt", "small"].contains(&name) && path.read_dir().unwrap().next().is_none())
            };
            left.extend(entries.filter(|path| !lasts(path)).map(|path| path.display().to_string()));
        }
        left
    }

    pub fn assert_clean(&self, when: &str) {
        servers::await_ends(&self.run_dir(), &self.loop_names());
        let left = self.left();
        assert!(left.is_empty(), "{when}: {left:?}");
    }

    /// Nothing is left half done and nothing is damaged.
    pub fn assert_sound(&self, when: &str) {
        self.assert_clean(when);
        let said = self.ctl(&["check", "--all"]);
        assert_eq!(said.code, Some(0), "{when}: {said:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !self.root.join("VERSION").exists() {
            return;
        }
        if let Ok(store) = Store::open(&self.root) {
            for state in blockbt::attach::states(&store).unwrap_or_default() {
                if let Some(name) = state.name {
                    let _ = blockbt::attach::umount(&store, &name).or_else(|_| blockbt::attach::detach(&store, &name));
                }
            }
            let _ = blockbt::attach::sweep(&store, None);
        }
        let run_dir = self.run_dir();
        let all = mounts::list().unwrap_or_default();
        for mount in all.iter().rev() {
            if mount.dir.starts_with(self.dir.path()) || mount.dir.starts_with(&run_dir) {
                let _ = mounts::unmount_lazily(&mount.dir);
            }
        }
        let _ = fs::remove_dir_all(run_dir);
    }
}

/// An import that has most of its archive and waits for the rest.
pub struct HeldImport {
    child: Child,
    pipe: Option<File>,
    rest: Vec<u8>,
    run_dir: PathBuf,
}

impl HeldImport {
    pub fn start(rig: &Rig, name: &str, source: &Path) -> HeldImport {
        let mut import = HeldImport::begin(rig, name, source);
        import.send_most();
        import
    }

    /// With half a MiB of its archive: what it makes is mounted.
    pub fn begin(rig: &Rig, name: &str, source: &Path) -> HeldImport {
        let (fifo, tar) = (rig.path(&format!("{name}.fifo")), rig.path(&format!("{name}.tar")));
        run("mkfifo", &[text(&fifo)]);
        run("tar", &["--sort=name", "-C", text(source), "-cf", text(&tar), "."]);
        let mut command = rig.command(&["import", name, text(&fifo), "--size", "64M"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pipe = File::options().write(true).open(fifo).unwrap();
        let mut import = HeldImport {
            child,
            pipe: Some(pipe),
            rest: fs::read(tar).unwrap(),
            run_dir: rig.run_dir(),
        };
        import.send(512 << 10);
        import
    }

    fn send(&mut self, count: usize) {
        let bytes: Vec<u8> = self.rest.drain(..count).collect();
        self.pipe.as_mut().unwrap().write_all(&bytes).unwrap();
    }

    /// All but the archive's end.
    pub fn send_most(&mut self) {
        self.send(self.rest.len() - 10_240);
    }

    /// Where what it makes is mounted.
    pub fn draft(&self) -> PathBuf {
        let places = fs::read_dir(&self.run_dir).unwrap().map(|entry| entry.unwrap().path());
        let mut drafts = places.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("draft-"));
        drafts.next().expect("an import at work has a draft").join("mnt")
    }

    pub fn assert_runs(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the import ended before its archive");
    }

    /// Sends the rest.
    pub fn finish(mut self) -> Said {
        self.pipe.take().unwrap().write_all(&self.rest).unwrap();
        let mut said = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut said.0).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut said.1).unwrap();
        let status = self.child.wait().unwrap();
        Said::new(status.code(), said.0, &said.1)
    }
}

impl Drop for HeldImport {
    fn drop(&mut self) {
        // Without its pipe's end the import ends by itself, with an error.
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// An ext4 of its own in a loop device, so that it can be full.
struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    fn new(place: &Path, mib: u64) -> SmallDisk {
        let (file, dir) = (place.join("small.ext4"), place.join("small"));
        fs::create_dir(&dir).unwrap();
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=0", text(&file)]);
        run("mount", &["-o", "loop", text(&file), text(&dir)]);
        SmallDisk { dir }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("the test's paths are UTF-8")
}

/// Runs a tool that is to succeed; returns its stdout.
pub fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = Said::from(output);
    assert_eq!(said.code, Some(0), "{program} {words:?}: {said:?}");
    said.out
}

/// Bytes without a pattern that anything could compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}
