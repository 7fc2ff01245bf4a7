//! A full disk at every step: the old state stays, it is said why, and with space given back all goes on.

use super::rig::{HeldImport, Rig, Said, noise, run, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// Room that is taken, and given back.
pub struct Filler(PathBuf);

impl Filler {
    pub fn leave(rig: &Rig, mib: u64) -> Filler {
        let filler = Filler(rig.root().with_file_name("filler"));
        filler.give_back();
        let free = free(rig);
        let mut size = free.saturating_sub(mib * MIB);
        // A file system needs something for itself, too.
        while size > 0 && !take(&filler.0, size) {
            size = size.saturating_sub(64 << 10);
        }
        filler
    }

    pub fn give_back(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn take(path: &Path, size: u64) -> bool {
    let taken = Command::new("fallocate")
        .args(["-l", &size.to_string(), text(path)])
        .output()
        .unwrap();
    if !taken.status.success() {
        fs::remove_file(path).unwrap();
    }
    taken.status.success()
}

fn free(rig: &Rig) -> u64 {
    run("sync", &["-f", text(rig.root())]);
    let out = run("stat", &["-f", "-c", "%a %S", text(rig.root())]);
    out.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product()
}

/// Tries a verb with more and more room until it is carried out; after each failure `unchanged` must hold. Returns how often it failed.
fn with_more_and_more_room(rig: &Rig, words: &[&str], unchanged: impl Fn()) -> usize {
    let levels = [0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64];
    for (failures, mib) in levels.into_iter().enumerate() {
        let filler = Filler::leave(rig, mib);
        let before = free(rig);
        let said: Said = rig.ctl(words);
        if said.code == Some(0) {
            filler.give_back();
            rig.assert_sound("carried out");
            return failures;
        }
        let when = format!("{words:?} with {mib} MiB left: {said:?}");
        assert!(said.code == Some(1) && said.err.to_lowercase().contains("no space"), "{when}");
        rig.assert_clean(&when);
        // The catalogue may be made anew and need a little.
        assert!(free(rig) + MIB >= before, "{when}: {} of {before} are free", free(rig));
        unchanged();
        rig.assert_sound(&when);
        filler.give_back();
    }
    panic!("{words:?} needs more than {} MiB", levels[levels.len() - 1]);
}

fn source(rig: &Rig) -> PathBuf {
    let source = rig.make_dir("source");
    fs::write(source.join("big"), noise(1, 12 << 20)).unwrap();
    for n in 0..300 {
        fs::write(source.join(format!("small-{n}")), noise(n, 3000)).unwrap();
    }
    source
}

#[test]
fn an_import_that_finds_no_room_says_so_and_leaves_nothing() {
    let rig = Rig::on_small_disk(128);
    rig.ok(&["create", "old", "--size", "64M"]);
    let source = source(&rig);
    let tar = rig.path("source.tar");
    run("tar", &["-C", text(&source), "-cf", text(&tar), "."]);
    let raw = rig.path("disk.raw");
    fs::write(&raw, noise(7, 12 << 20)).unwrap();
    for from in [source, tar, raw] {
        let failures = with_more_and_more_room(&rig, &["import", "new", text(&from), "--size", "64M"], || {
            assert_eq!(rig.names(), ["old"]);
        });
        assert!(failures > 3, "the disk was never full with {}", from.display());
        if from.extension().is_none_or(|ending| ending == "tar") {
            let mnt = rig.make_dir("mnt");
            rig.ok(&["mount", "new", text(&mnt), "--read-only"]);
            assert!(fs::read(mnt.join("big")).unwrap() == noise(1, 12 << 20));
            rig.ok(&["umount", "new"]);
        }
        rig.ok(&["rm", "new"]);
        rig.ok(&["gc"]);
    }
}

#[test]
fn a_create_and_a_clone_that_find_no_room_leave_nothing() {
    let rig = Rig::on_small_disk(64);
    rig.ok(&["create", "old", "--size", "64M"]);
    for words in [&["create", "new", "--size", "1G"][..], &["clone", "old", "new"]] {
        with_more_and_more_room(&rig, words, || assert_eq!(rig.names(), ["old"]));
        // rm is what makes room: it works on a disk that has none.
        let filler = Filler::leave(&rig, 0);
        rig.ok(&["rm", "new"]);
        rig.ok(&["gc"]);
        filler.give_back();
        rig.assert_sound("rm and gc on a full disk");
    }
}

#[test]
fn a_commit_that_finds_no_room_loses_nothing() {
    let rig = Rig::on_small_disk(128);
    rig.ok(&["create", "web", "--size", "64M"]);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    fs::write(mnt.join("big"), noise(1, 12 << 20)).unwrap();
    rig.ok(&["umount", "web"]);
    let before = rig.raw("web");
    let failures = with_more_and_more_room(&rig, &["commit", "web"], || {
        assert!(rig.json(&["info", "web"])["head"].is_object());
        assert!(rig.raw("web") == before);
    });
    assert!(failures > 3, "the disk was never full");
    assert!(rig.raw("web") == before && rig.json(&["info", "web"])["head"].is_null());
}

#[test]
fn a_flatten_that_finds_no_room_changes_nothing() {
    let rig = Rig::on_small_disk(128);
    rig.ok(&["create", "web", "--size", "64M"]);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    fs::write(mnt.join("big"), noise(1, 12 << 20)).unwrap();
    rig.ok(&["umount", "web"]);
    rig.ok(&["commit", "web"]);
    let before = rig.raw("web");
    let deltas = || rig.json(&["info", "web"])["chain"].as_array().unwrap().len();
    let failures = with_more_and_more_room(&rig, &["flatten", "web"], || {
        assert_eq!(deltas(), 2);
        assert!(rig.raw("web") == before);
    });
    assert!(failures > 3, "the disk was never full");
    assert!(rig.raw("web") == before && deltas() == 1);
}

#[test]
fn a_publish_that_finds_no_room_can_be_said_again() {
    let rig = Rig::on_small_disk(64);
    rig.ok(&["create", "web", "--size", "64M"]);
    with_more_and_more_room(&rig, &["publish", "web"], || {
        assert!(rig.json(&["info", "web"])["published"].is_null());
    });
    assert!(rig.json(&["info", "web"])["published"].is_object());
}

#[test]
fn a_guest_on_a_full_disk_gets_an_error_and_its_disk_stays_whole() {
    let rig = Rig::on_small_disk(64);
    rig.ok(&["create", "web", "--size", "256M"]);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    fs::write(mnt.join("kept"), noise(1, 1 << 20)).unwrap();
    run("sync", &["-f", text(&mnt)]);
    let filler = Filler::leave(&rig, 8);
    let big = fs::write(mnt.join("big"), noise(2, 100 << 20)).and_then(|()| fs::File::open(mnt.join("big"))?.sync_all());
    assert!(big.is_err(), "100 MiB went into 8");
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, 1 << 20));
    // That not all reached the disk may be said here.
    let said = rig.ctl(&["umount", "web"]);
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
    filler.give_back();
    rig.names();
    rig.assert_sound("after a full disk");
    rig.ok(&["mount", "web", text(&mnt)]);
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, 1 << 20));
    rig.ok(&["umount", "web"]);
    let device = rig.ok(&["attach", "web"]);
    run("e2fsck", &["-fn", device.trim()]);
    rig.ok(&["detach", "web"]);
    rig.ok(&["commit", "web"]);
    rig.assert_sound("commit after a full disk");
}

#[test]
fn what_a_full_disk_lost_while_an_import_ran_is_noticed_although_there_is_room_at_its_end() {
    let rig = Rig::on_small_disk(128);
    rig.ok(&["create", "old", "--size", "64M"]);
    let source = source(&rig);
    let mut import = HeldImport::begin(&rig, "new", &source);
    let filler = Filler::leave(&rig, 4);
    import.send_most();
    // The kernel writes now what the import has only in memory, and cannot.
    let draft = import.draft();
    assert!(
        !Command::new("sync").arg("-f").arg(&draft).status().unwrap().success(),
        "12 MiB went into 4"
    );
    filler.give_back();
    let said = import.finish();
    assert!(said.code == Some(1) && said.err.contains("is not all on"), "{said:?}");
    assert_eq!(rig.names(), ["old"]);
    rig.assert_sound("lost writes");
}

#[test]
fn a_daemon_on_a_full_disk_says_so_and_lives() {
    let mut rig = Rig::on_small_disk(64);
    rig.ok(&["create", "old", "--size", "64M"]);
    rig.ok(&["create", "spare", "--size", "64M"]);
    rig.start_daemon(None);
    let source = rig.make_dir("source");
    fs::write(source.join("file"), noise(1, 8 << 20)).unwrap();
    for mib in [0, 1, 2] {
        let filler = Filler::leave(&rig, mib);
        let why = rig.fails(&["import", "new", text(&source), "--size", "64M"], 1);
        assert!(why.to_lowercase().contains("no space"), "{why}");
        rig.names();
        rig.ok(&["info", "old"]);
        filler.give_back();
        rig.assert_sound("no room for the daemon");
    }
    let filler = Filler::leave(&rig, 0);
    rig.ok(&["rm", "spare"]);
    rig.ok(&["gc"]);
    filler.give_back();
    rig.ok(&["import", "new", text(&source), "--size", "64M"]);
    let tree = rig.ok(&["tree"]);
    assert_eq!((rig.names(), tree.lines().count()), (vec!["new".into(), "old".into()], 2));
    rig.stop_daemon();
    assert_eq!(rig.ok(&["tree"]), tree);
    rig.assert_sound("with room again");
}
