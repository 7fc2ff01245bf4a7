//! What a verb will not do, or not do all of, and says so.

use super::rig::{Rig, text};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_clone_takes_nothing_from_a_head_and_needs_no_lock() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    fs::write(mnt.join("file"), vec![7; 1 << 20]).unwrap();
    File::open(&mnt).and_then(|dir| dir.sync_all()).unwrap();
    let said = rig.ok(&["clone", "web", "mounted"]);
    assert!(said.starts_with("mounted: clone of web, 1 delta shared"), "{said}");
    rig.ok(&["umount", "web"]);
    let said = rig.json(&["clone", "web", "copy"]);
    assert!(said["left_out_bytes"].as_u64().unwrap() >= 1 << 20, "{said}");
    assert!(rig.ok(&["clone", "web", "other"]).contains("in web's head, which is not committed"));
    for name in ["mounted", "copy", "other"] {
        rig.ok(&["mount", name, text(&mnt)]);
        assert!(!mnt.join("file").exists(), "{name}");
        rig.ok(&["umount", name]);
    }
    rig.ok(&["commit", "web"]);
    assert_eq!(rig.json(&["clone", "web", "whole"])["left_out_bytes"], 0);
    rig.assert_sound("clone");
}

#[test]
fn nothing_is_mounted_over_what_is_in_a_directory() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let full = rig.make_dir("full");
    fs::write(full.join("file"), "seen").unwrap();
    let why = rig.fails(&["mount", "web", text(&full)], 2);
    assert!(why.contains(text(&full)) && why.contains("not empty"), "{why}");
    let why = rig.fails(&["mount", "web", text(&full.join("file"))], 2);
    assert!(why.contains("file"), "{why}");
    rig.fails(&["mount", "web", text(&rig.path("nowhere"))], 3);
    assert_eq!(fs::read(full.join("file")).unwrap(), b"seen");
    rig.assert_sound("mount");
}

#[test]
fn what_is_only_attached_is_not_unmounted_and_stays() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let device = rig.ok(&["attach", "web"]);
    let why = rig.fails(&["umount", "web"], 3);
    assert!(why.contains("detach"), "{why}");
    assert_eq!(rig.json(&["list"])["device"], device.trim());
    rig.ok(&["detach", "web"]);
    rig.assert_sound("umount");
}

#[test]
fn a_dry_rm_says_what_rm_and_gc_then_do() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let would = rig.json(&["rm", "web", "--dry-run"]);
    assert_eq!(rig.names(), ["web"]);
    let did = rig.json(&["rm", "web"]);
    assert_eq!(would["unreferenced_bytes"], did["unreferenced_bytes"]);
    assert_eq!(
        (&would["unreferenced_objects"], &did["unreferenced_objects"]),
        (&1.into(), &1.into())
    );
    assert_eq!(rig.json(&["gc"])["freed_bytes"], did["unreferenced_bytes"]);
    rig.fails(&["rm", "web", "--dry-run"], 3);
    rig.assert_sound("rm");
}

#[test]
fn a_damaged_chain_is_exit_code_five_in_every_verb_that_needs_it() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let digest = rig.json(&["info", "web"])["chain"][0]["digest"].as_str().unwrap().to_string();
    let delta = rig.root().join("objects").join(&digest[..2]).join(format!("{digest}.delta"));
    fs::set_permissions(&delta, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&delta).unwrap().set_len(4096).unwrap();
    let mnt = rig.make_dir("mnt");
    let raw = rig.path("out.raw");
    for words in [
        &["attach", "web"][..],
        &["mount", "web", text(&mnt)],
        &["export", "web", text(&raw)],
    ] {
        let why = rig.fails(words, 5);
        assert!(why.contains(text(&delta)), "{words:?}: {why}");
    }
    fs::remove_file(&delta).unwrap();
    for words in [["info", "web"], ["publish", "web"]] {
        let why = rig.fails(&words, 5);
        assert!(why.contains(&digest), "{words:?}: {why}");
    }
    rig.assert_clean("damaged");
}

#[test]
fn what_check_finds_in_the_store_s_own_files_has_its_place_once_and_its_cause() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let digest = rig.json(&["info", "web"])["chain"][0]["digest"].as_str().unwrap().to_string();
    let folder = rig.root().join("objects").join(&digest[..2]);
    let (delta, description) = (folder.join(format!("{digest}.delta")), folder.join(format!("{digest}.json")));
    fs::set_permissions(&delta, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&description, "{").unwrap();
    let said = rig.ctl(&["check", "--all"]);
    assert_eq!(said.code, Some(5), "{said:?}");
    let line = |path| said.out.lines().find(|line| line.starts_with(text(path))).unwrap();
    assert!(line(&delta).ends_with(": object-writable: mode 0600, want 0400"), "{said:?}");
    assert!(line(&description).contains("line 1 column"), "{said:?}");
}

#[test]
fn tree_is_read_from_the_files_where_another_process_has_the_catalogue() {
    let mut rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let tree = rig.ok(&["tree"]);
    rig.start_daemon(None);
    assert_eq!(rig.ok(&["--no-daemon", "tree"]), tree);
    rig.stop_daemon();
    rig.assert_sound("tree");
}
