//! What goes wrong without anybody's will: rot, full disks, two at once, somebody who leaves.

use crate::rig::*;
use crate::throttle::Throttle;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// One bit of a file changes, as on a bad disk.
fn rot(path: &Path, at: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o400)).unwrap();
}

#[test]
fn rot_in_a_seeded_object_harms_nobody_and_is_found() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 8, 11);
    let link = a.publish("data");
    a.start();
    let mut good = Host::new(&Net::Link);
    good.start();
    good.ok(&["pull", &Host::with_peer(&link, a.port)]);
    let object = a.object(&a.chain("data")[0]);
    rot(&object, 5 << 20);
    let before = (object.metadata().unwrap().mtime_nsec(), fs::read(&object).unwrap());
    let b = Host::new(&Net::Link);
    b.ok(&["pull", &Host::with_peer(&Host::with_peer(&link, a.port), good.port)]);
    assert_eq!(b.chain("data"), good.chain("data"));
    b.assert_sound();
    let after = (object.metadata().unwrap().mtime_nsec(), fs::read(&object).unwrap());
    assert!(before == after, "it was written to");

    let checked = a.ctl(&["--json", "check", "data"]);
    assert_eq!(checked.status.code(), Some(5));
    let found: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let finding = &found["findings"][0];
    assert_eq!(finding["path"].as_str(), Some(text(&object)), "{found}");
    // The next start hashes what it seeds: it says what is wrong, and seeds the rest.
    a.stop();
    a.start();
    until("the damage in the log", || {
        a.log().contains("cannot be seeded") && a.log().contains(text(&object))
    });
    let peers = a.ok(&["peers"]);
    let kinds: Vec<_> = peers["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert!(
        kinds.contains(&"manifest") && kinds.contains(&"meta") && !kinds.contains(&"delta"),
        "{peers}"
    );
    assert!(before.1 == fs::read(&object).unwrap(), "it was written to");
}

/// A file system of its own.
struct Small(PathBuf);

impl Small {
    fn new(dir: PathBuf, size: &str) -> Small {
        fs::create_dir(&dir).unwrap();
        let small = Small(dir);
        small.mount(&format!("size={size}"));
        small
    }

    fn mount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs", text(&self.0)])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", text(&self.0)]).status();
    }
}

fn disk_fills_up(with_daemon: bool) {
    let mut a = Host::new(&Net::Link);
    a.import_noise("little", 2, 12);
    a.import_noise("data", 32, 13);
    let (little, data) = (a.publish("little"), a.publish("data"));
    let (little, data) = (Host::with_peer(&little, a.port), Host::with_peer(&data, a.port));
    a.start();
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path().join("small"), "20M");
    let mut b = Host::at(&Net::Link, free_port(), Some(small.0.join("store")));
    if with_daemon {
        b.start();
    }
    b.ok(&["pull", &little]);
    let (code, said) = b.fails(&["pull", &data, "--timeout", TIMEOUT]);
    assert!(
        code == 1 && said.contains("No space left on device") && said.contains(".part"),
        "{said}"
    );
    assert_eq!(b.chain("little"), a.chain("little"));
    b.assert_sound();
    small.mount("remount,size=100M");
    b.ok(&["pull", &data]);
    assert_eq!(b.chain("data"), a.chain("data"));
    b.assert_sound();
    b.assert_tidy();
    assert!(!b.log().contains("panicked"), "{}", b.log());
    drop(b);
}

#[test]
fn a_full_disk_stops_a_daemons_pull_and_nothing_else() {
    disk_fills_up(true);
}

#[test]
fn a_full_disk_stops_a_commands_pull_and_nothing_else() {
    disk_fills_up(false);
}

/// Two hosts, the second with a daemon that pulls an image of two deltas, held up in the second.
struct HeldUp {
    a: Host,
    b: Host,
    throttle: Throttle,
    link: String,
    /// Past the throttle.
    direct: String,
    pull: Child,
}

impl HeldUp {
    fn new() -> HeldUp {
        let mut a = Host::new(&Net::Link);
        a.import_noise("data", 8, 14);
        change(&a, "data", 6 << 20, 15);
        let link = a.publish("data");
        a.start();
        let throttle = Throttle::start(a.port, 11 << 20);
        let direct = Host::with_peer(&link, a.port);
        let link = Host::with_peer(&link, throttle.port);
        let mut b = Host::new(&Net::Link);
        b.start();
        let pull = b.spawn(&["pull", &link], &[]);
        until("the throttle", || throttle.holds());
        let first = a.chain("data")[0];
        until("the first delta", || b.store().has_object(&first));
        HeldUp {
            a,
            b,
            throttle,
            link,
            direct,
            pull,
        }
    }

    fn ends_well(mut self) {
        self.throttle.open();
        let output = self.pull.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.b.log());
        assert_eq!(self.a.chain("data"), self.b.chain("data"));
        self.b.assert_sound();
        self.b.assert_tidy();
        assert!(self.b.daemon_lives());
    }
}

#[test]
fn gc_beside_a_pull_takes_nothing_that_the_pull_needs() {
    let held = HeldUp::new();
    let collected = held.b.ok(&["gc"]);
    assert_eq!(collected["removed"].as_array().unwrap().len(), 0, "{collected}");
    held.b.ok(&["--no-daemon", "gc"]);
    held.ends_well();
}

#[test]
fn the_same_pull_a_second_time_meanwhile_is_told_that_it_is_in_use() {
    let held = HeldUp::new();
    for arguments in [
        &["pull", &*held.direct][..],
        &["pull", &held.direct, "--name", "other"],
        &["--no-daemon", "pull", &held.direct],
    ] {
        let mut again = held.b.spawn(arguments, &[]);
        until("the second pull's end", || again.try_wait().unwrap().is_some());
        let output = again.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {said}");
        assert!(said.contains("on its way already"), "{said}");
    }
    held.ends_well();
}

#[test]
fn a_pull_whose_asker_leaves_ends_and_the_next_goes_on() {
    let mut held = HeldUp::new();
    signal(held.pull.id(), "TERM");
    held.pull.wait().unwrap();
    until("the pull's end", || held.b.log().contains("stopped on request"));
    let empty = |dir: &str| fs::read_dir(held.b.root.join(dir)).unwrap().count() == 0;
    until("tidying up", || empty("tmp") && empty("journal"));
    let peers = held.b.ok(&["peers"]);
    let arriving = |object: &Value| object["have_bytes"] != object["size_bytes"];
    assert!(!peers["objects"].as_array().unwrap().iter().any(arriving), "{peers}");
    assert_eq!(held.b.images().len(), 0);
    // Its last sync may take as long as the disk wants.
    let second = held.a.chain("data")[1];
    let part = File::open(held.b.store().incoming_dir().join(format!("{second}.part"))).unwrap();
    until("the part's lock", || flock(&part, FlockOperation::NonBlockingLockExclusive).is_ok());
    flock(&part, FlockOperation::Unlock).unwrap();
    held.pull = held.b.spawn(&["pull", &held.link], &[]);
    held.ends_well();
}

#[test]
fn a_daemon_that_stops_in_a_pull_says_so_and_the_next_goes_on() {
    let mut held = HeldUp::new();
    let status = held.b.stop();
    assert!(status.success(), "{status}");
    let output = held.pull.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("stopped on request"), "{said}");
    assert!(!held.b.log().contains("panicked"), "{}", held.b.log());
    held.b.start();
    held.pull = held.b.spawn(&["pull", &held.link], &[]);
    held.ends_well();
}

#[test]
fn what_another_process_has_collected_can_be_pulled_again() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 4, 16);
    let link = Host::with_peer(&a.publish("data"), a.port);
    a.start();
    let mut b = Host::new(&Net::Link);
    b.start();
    b.ok(&["pull", &link]);
    b.ok(&["--no-daemon", "rm", "data"]);
    b.ok(&["--no-daemon", "gc"]);
    assert_eq!(b.store().objects().unwrap(), []);
    let pulled = b.ok(&["pull", &link]);
    assert!(number(&pulled["fetched_bytes"]) > 4 << 20, "{pulled}");
    b.assert_sound();
    a.kill();
    let c = Host::new(&Net::Link);
    let at = link.find("&x.pe").unwrap();
    c.ok(&["pull", &Host::with_peer(&link[..at], b.port)]);
}
