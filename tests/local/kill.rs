//! `kill -9` at every stop point, of the command and of the daemon, and of what serves a mounted image.

use super::resize::ext4_size;
use super::rig::{Rig, Said, noise, run, text};
use super::servers::MINUTE;
use blockbt::store::stop::STOP_POINTS;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Where a verb has happened although it was killed: from this point on.
const DECISIVE: [(&str, &str); 12] = [
    ("create", "create.renamed"),
    ("import", "import.renamed"),
    ("clone", "clone.renamed"),
    ("commit", "commit.recorded"),
    ("flatten", "flatten.recorded"),
    ("grow", "grow.recorded"),
    ("shrink", "shrink.exchanged"),
    ("bounds", "bounds.recorded"),
    ("rename", "rename.renamed"),
    ("rm", "rm.renamed"),
    ("gc", "gc.parts"),
    ("publish", "publish.recorded"),
];

fn verb_of(point: &str) -> &str {
    point.split_once('.').unwrap().0
}

fn has_happened(point: &str) -> bool {
    let (_, decisive) = DECISIVE.iter().find(|(verb, _)| *verb == verb_of(point)).unwrap();
    let place = |wanted: &str| STOP_POINTS.iter().position(|point| *point == wanted).unwrap();
    place(point) >= place(decisive)
}

/// A store with the image `old`, and what the verb needs besides.
fn prepared(verb: &str) -> Rig {
    let rig = Rig::new();
    let source = rig.make_dir("source");
    fs::write(source.join("file"), noise(1, 300_000)).unwrap();
    rig.ok(&["import", "old", text(&source), "--size", "64M"]);
    match verb {
        "commit" => change(&rig, "old", 2),
        "bounds" => {
            change(&rig, "old", 2);
            rig.ok(&["resize", "old", "--limit", "24M", "--reserve"]);
        }
        "flatten" => {
            // Three deltas, of which it keeps one, a clone on the same chain, and a head.
            for n in 2..4 {
                change(&rig, "old", n);
                rig.ok(&["commit", "old"]);
            }
            rig.ok(&["clone", "old", "clone"]);
            rig.ok(&["export", "clone", text(&rig.path("clone.raw"))]);
            change(&rig, "old", 4);
        }
        "gc" => {
            rig.ok(&["create", "junk", "--size", "64M"]);
            rig.ok(&["rm", "junk"]);
            let part = rig.root().join(format!("incoming/{}.part", "ab".repeat(32)));
            fs::write(&part, noise(5, 10_000)).unwrap();
            run("touch", &["-d", "8 days ago", text(&part)]);
        }
        _ => {}
    }
    rig
}

/// Writes something into an image, for another `n` something else.
fn change(rig: &Rig, name: &str, n: u64) {
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", name, text(&mnt)]);
    fs::write(mnt.join("new"), noise(n, 200_000)).unwrap();
    rig.ok(&["umount", name]);
}

fn words(rig: &Rig, verb: &str) -> Vec<String> {
    let source = rig.path("source");
    let words: &[&str] = match verb {
        "create" => &["create", "new", "--size", "64M"],
        "import" => &["import", "new", text(&source), "--size", "64M"],
        "clone" => &["clone", "old", "new"],
        "commit" => &["commit", "old"],
        "flatten" => &["flatten", "old", "--keep", "1"],
        "grow" => &["resize", "old", "96M"],
        "shrink" => &["resize", "old", "48M"],
        // Less of it, and certain as before: what is over is given back last.
        "bounds" => &["resize", "old", "--limit", "12M"],
        "rename" => &["rename", "old", "new"],
        "rm" => &["rm", "old"],
        "gc" => &["gc"],
        "publish" => &["publish", "old"],
        other => panic!("no test for {other}"),
    };
    words.iter().map(|word| word.to_string()).collect()
}

/// The verb is wholly done or wholly undone, and can be said again.
fn assert_settled(rig: &Rig, point: &str, before: &[u8]) {
    let (verb, done) = (verb_of(point), has_happened(point));
    let names = rig.names();
    rig.assert_sound(point);
    let there: &[&str] = match (verb, done) {
        ("create" | "import" | "clone", true) => &["new", "old"],
        ("rename", true) => &["new"],
        ("flatten", _) => &["clone", "old"],
        ("rm", true) => &[],
        _ => &["old"],
    };
    assert_eq!(names, there, "{point}");
    let resized = ["grow", "shrink"].contains(&verb) && done;
    if let Some(old) = names.last().filter(|_| verb != "create" && verb != "import" && !resized) {
        assert!(rig.raw(old) == before, "{point}: the disk of {old} has changed");
    }
    if verb == "clone" && done {
        assert!(rig.raw("new") == before, "{point}: the clone differs");
    }
    let again = words(rig, verb);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    match (verb, done) {
        ("create" | "import" | "clone", true) => {
            rig.fails(&again, 4);
        }
        ("rename" | "rm", true) => {
            rig.fails(&again, 3);
        }
        ("commit", _) => {
            let deltas = rig.json(&["info", "old"])["chain"].as_array().unwrap().len();
            assert_eq!(deltas, if done { 2 } else { 1 }, "{point}");
            assert_eq!(rig.ok(&again).contains("nothing to commit"), done, "{point}");
            assert!(rig.raw("old") == before, "{point}: the disk has changed with the second commit");
        }
        ("flatten", _) => {
            let deltas = || rig.json(&["info", "old"])["chain"].as_array().unwrap().len();
            assert_eq!(deltas(), if done { 2 } else { 3 }, "{point}");
            assert_eq!(rig.ok(&again).contains("nothing to flatten"), done, "{point}");
            assert_eq!(deltas(), 2, "{point}");
            assert!(rig.raw("old") == before, "{point}: the disk has changed with the second flatten");
            let sibling = fs::read(rig.path("clone.raw")).unwrap();
            assert!(rig.raw("clone") == sibling, "{point}: the clone's disk has changed");
            rig.ok(&["rm", "clone"]);
            rig.ok(&["gc"]);
            assert!(!rig.ok(&["commit", "old"]).contains("nothing"), "{point}: the head has gone");
            assert!(rig.raw("old") == before, "{point}: the disk has changed with the commit");
        }
        ("grow" | "shrink", _) => {
            let want = if verb == "grow" { 96 << 20 } else { 48 << 20 };
            let size = |field: &str| rig.json(&["info", "old"])[field].as_u64().unwrap();
            assert_eq!(size("virtual_size_bytes"), if done { want } else { 64 << 20 }, "{point}");
            assert!(
                ext4_size(rig, "old") <= size("virtual_size_bytes"),
                "{point}: its file system is larger than it"
            );
            rig.ok(&again);
            assert_eq!((size("virtual_size_bytes"), ext4_size(rig, "old")), (want, want), "{point}");
            let mnt = rig.make_dir("mnt");
            rig.ok(&["mount", "old", text(&mnt), "--read-only"]);
            assert!(fs::read(mnt.join("file")).unwrap() == noise(1, 300_000), "{point}");
            rig.ok(&["umount", "old"]);
        }
        ("bounds", _) => {
            let head = || rig.json(&["info", "old"])["head"].clone();
            let limit = if done { 12 << 20 } else { 24 << 20 };
            assert_eq!(
                (&head()["limit_bytes"], &head()["reserve"]),
                (&limit.into(), &true.into()),
                "{point}"
            );
            assert!(head()["stored_bytes"].as_u64().unwrap() >= limit, "{point}: {}", head());
            // What is over goes with the next attach, in whichever mode.
            rig.ok(&["attach", "old", "--mode", "user"]);
            let stored = head()["stored_bytes"].as_u64().unwrap();
            assert!((limit..limit + (1 << 20)).contains(&stored), "{point}: {stored}");
            rig.ok(&["detach", "old"]);
            rig.ok(&again);
            rig.ok(&["resize", "old", "--no-reserve", "--limit", "none"]);
            assert!(head()["stored_bytes"].as_u64().unwrap() < 8 << 20, "{point}: {}", head());
            assert!(rig.raw("old") == before, "{point}: the disk has changed");
        }
        ("publish", _) => {
            let published = &rig.json(&["info", "old"])["published"];
            assert_eq!(published.is_object(), done, "{point}: {published}");
            let link = rig.json(&again)["link"].clone();
            assert_eq!(rig.json(&["info", "old"])["published"]["link"], link, "{point}");
        }
        ("gc", _) => {
            rig.ok(&again);
            let left = rig.json(&["gc", "--dry-run"]);
            assert_eq!(
                (&left["freed_bytes"], &left["kept_objects"]),
                (&0.into(), &1.into()),
                "{point}: {left}"
            );
        }
        _ => {
            rig.ok(&again);
        }
    }
    rig.assert_sound(point);
}

fn kill_at_all_points_of(verb: &str) {
    let points: Vec<&str> = STOP_POINTS.iter().copied().filter(|point| verb_of(point) == verb).collect();
    assert!(points.len() > 1, "{verb} has lost its stop points");
    for point in points {
        let rig = prepared(verb);
        let before = rig.raw("old");
        let killed = rig.command(&words(&rig, verb)).env("BLOCKBT_STOP_AT", point).status().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&killed),
            Some(9),
            "{point} was not reached"
        );
        assert_settled(&rig, point, &before);
    }
}

#[test]
fn every_stop_point_is_tested() {
    for point in STOP_POINTS {
        let verb = verb_of(point);
        // pull has its own tests, with a second host.
        assert!(verb == "pull" || DECISIVE.iter().any(|(tested, _)| *tested == verb), "{point}");
    }
}

#[test]
fn a_killed_create_happened_or_did_not() {
    kill_at_all_points_of("create");
}

#[test]
fn a_killed_import_happened_or_did_not() {
    kill_at_all_points_of("import");
}

#[test]
fn a_killed_clone_happened_or_did_not() {
    kill_at_all_points_of("clone");
}

#[test]
fn a_killed_commit_happened_or_did_not() {
    kill_at_all_points_of("commit");
}

#[test]
fn a_killed_flatten_happened_or_did_not_and_the_image_reads_the_same() {
    kill_at_all_points_of("flatten");
}

#[test]
fn a_killed_resize_leaves_the_old_size_or_the_new_one() {
    kill_at_all_points_of("grow");
    kill_at_all_points_of("shrink");
}

#[test]
fn a_killed_change_of_bounds_leaves_the_old_ones_or_the_new_and_the_space_they_promise() {
    kill_at_all_points_of("bounds");
}

#[test]
fn a_grown_head_is_cut_before_anybody_else_can_have_the_image() {
    let rig = Rig::new();
    rig.ok(&["create", "old", "--size", "64M", "--fs", "none", "--limit", "24M", "--reserve"]);
    // Behind this point the transaction ends, and with it the image's lock.
    let mut resize = rig.command(&["resize", "old", "80M", "--limit", "12M"]);
    let died = resize.env("BLOCKBT_STOP_AT", "grow.done").output().unwrap();
    assert_eq!(died.status.signal(), Some(9), "{died:?}");
    let images = fs::read_dir(rig.root().join("images")).unwrap();
    let head = images.last().unwrap().unwrap().path().join("head.delta");
    assert_eq!(fs::metadata(head).unwrap().len(), 12 << 20);
    assert_eq!(rig.names(), ["old"]);
    rig.assert_sound("grow.done");
}

#[test]
fn a_killed_rename_happened_or_did_not() {
    kill_at_all_points_of("rename");
}

#[test]
fn a_killed_rm_happened_or_did_not() {
    kill_at_all_points_of("rm");
}

#[test]
fn a_killed_gc_goes_on_with_the_next() {
    kill_at_all_points_of("gc");
}

#[test]
fn a_killed_publish_happened_or_did_not() {
    kill_at_all_points_of("publish");
}

#[test]
fn a_daemon_killed_in_a_verb_leaves_what_a_killed_command_does() {
    let points = [
        "create.object",
        "import.mounted",
        "clone.renamed",
        "commit.linked",
        "commit.recorded",
        "flatten.object",
        "flatten.recorded",
        "flatten.relinked",
        "grow.mounted",
        "shrink.fitted",
        "shrink.exchanged",
        "rename.renamed",
        "rm.renamed",
        "gc.delta",
        "publish.manifest",
    ];
    for point in points {
        let verb = verb_of(point);
        let mut rig = prepared(verb);
        let before = rig.raw("old");
        rig.start_daemon(Some(point));
        let asked = rig.ctl(&words(&rig, verb));
        assert!(asked.code == Some(1) && asked.err.contains("daemon"), "{point}: {asked:?}");
        assert_eq!(rig.wait_daemon(), Some(9), "{point} was not reached");
        assert_settled(&rig, point, &before);
    }
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}

#[test]
fn what_was_synced_survives_the_server_s_death_and_the_next_verb_cleans_up() {
    for next in [&["list", "--json"][..], &["info", "old"], &["check", "old"], &["commit", "old"]] {
        let rig = prepared("");
        let mnt = rig.make_dir("mnt");
        rig.ok(&["mount", "old", text(&mnt)]);
        let content = noise(3, 2_000_000);
        write_synced(&mnt.join("synced"), &content);
        rig.kill_server();
        let said = rig.ctl(next);
        assert!(said.code == Some(0) && said.err.is_empty(), "{next:?}: {said:?}");
        // Once, to whoever comes first, and not among what programs read.
        let lost = "its server is gone: what was written since the last sync is lost (image old)";
        let told = |said: &Said| said.warned.iter().filter(|line| *line == lost).count();
        assert!(told(&said) == 1 && !said.out.contains("warning"), "{next:?}: {said:?}");
        let again = rig.ctl(next);
        assert_eq!(told(&again), 0, "{next:?}: {again:?}");
        rig.assert_sound(next[0]);
        rig.ok(&["mount", "old", text(&mnt)]);
        assert!(fs::read(mnt.join("synced")).unwrap() == content, "{next:?}");
        rig.ok(&["umount", "old"]);
        let device = rig.ok(&["attach", "old"]);
        run("e2fsck", &["-fn", device.trim()]);
        rig.ok(&["detach", "old"]);
        rig.assert_sound(next[0]);
    }
}

#[test]
fn a_killed_daemon_leaves_what_is_mounted_mounted() {
    let mut rig = prepared("");
    let mnt = rig.make_dir("mnt");
    rig.start_daemon(None);
    rig.ok(&["mount", "old", text(&mnt)]);
    write_synced(&mnt.join("before"), b"1");
    rig.kill_daemon();
    write_synced(&mnt.join("after"), b"2");
    rig.fails(&["commit", "old"], 4);
    rig.start_daemon(None);
    let entry = rig.json(&["list"]);
    assert_eq!(entry["dir"], text(&mnt), "{entry}");
    rig.stop_daemon();
    assert_eq!(fs::read(mnt.join("after")).unwrap(), b"2");
    rig.ok(&["umount", "old"]);
    rig.assert_sound("umount");
    rig.ok(&["mount", "old", text(&mnt)]);
    assert_eq!(fs::read(mnt.join("before")).unwrap(), b"1");
    assert_eq!(fs::read(mnt.join("after")).unwrap(), b"2");
}

#[test]
fn a_mount_or_umount_killed_at_any_moment_can_be_said_again() {
    let rig = prepared("");
    let mnt = rig.make_dir("mnt");
    for (verb, step_ms) in [("mount", 5), ("umount", 3)] {
        for n in 0..16 {
            let when = format!("{verb} killed after {} ms", n * step_ms);
            if verb == "umount" {
                rig.ok(&["mount", "old", text(&mnt)]);
                write_synced(&mnt.join("n"), when.as_bytes());
            }
            let words = if verb == "mount" {
                vec![verb, "old", text(&mnt)]
            } else {
                vec![verb, "old"]
            };
            let mut child = rig.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(n * step_ms));
            child.kill().unwrap();
            child.wait().unwrap();
            rig.names();
            // What was done before the kill stays, be it all of it, the device alone, or nothing.
            let said = rig.ctl(&["umount", "old"]);
            assert!(matches!(said.code, Some(0 | 3)), "{when}: {said:?}");
            // A server that a killed mount has started may be on its way in or out: the next verb to meet it tidies up.
            let start = Instant::now();
            while !rig.left().is_empty() && start.elapsed() < MINUTE {
                rig.names();
            }
            rig.assert_clean(&when);
            if verb == "umount" {
                rig.ok(&["mount", "old", text(&mnt), "--read-only"]);
                assert_eq!(fs::read(mnt.join("n")).unwrap(), when.as_bytes());
                rig.ok(&["umount", "old"]);
            }
        }
    }
    rig.assert_sound("killed mounts");
}
