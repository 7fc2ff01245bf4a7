//! The tour of the README by hand, with and without a daemon.

use super::rig::{Rig, Said, noise, run, text};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A tree with all that a root file system has.
fn tree(rig: &Rig) -> PathBuf {
    let dir = rig.make_dir("tree");
    fs::create_dir_all(dir.join("usr/lib")).unwrap();
    fs::write(dir.join("usr/lib/library"), noise(1, 3_000_000)).unwrap();
    fs::write(dir.join("a name with blanks and ümläuts"), "x").unwrap();
    fs::write(dir.join("usr").join("n".repeat(240)), "long").unwrap();
    fs::hard_link(dir.join("usr/lib/library"), dir.join("hardlink")).unwrap();
    std::os::unix::fs::symlink("usr/lib", dir.join("lib")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"data", 1 << 29).unwrap();
    run("mknod", &[text(&dir.join("null")), "c", "1", "3"]);
    run("mkfifo", &[text(&dir.join("fifo"))]);
    run("setfattr", &["-n", "user.word", "-v", "value", text(&dir.join("usr/lib/library"))]);
    run("chown", &["70000:80000", text(&dir.join("sparse"))]);
    run("chmod", &["6755", text(&dir.join("usr/lib/library"))]);
    run(
        "touch",
        &["-d", "2001-02-03 04:05:06.123456789", text(&dir.join("usr/lib/library"))],
    );
    dir
}

/// By a tool of another origin: nothing differs.
fn assert_same_tree(a: &Path, b: &Path) {
    let (a, b) = (format!("{}/", a.display()), format!("{}/", b.display()));
    let words = ["-aHAXSn", "--delete", "--checksum", "-i", "--exclude=/lost+found", &a, &b];
    assert_eq!(run("rsync", &words), "");
}

fn mounted<T>(rig: &Rig, name: &str, work: impl FnOnce(&Path) -> T) -> T {
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", name, text(&mnt)]);
    let result = work(&mnt);
    rig.ok(&["umount", name]);
    result
}

#[test]
fn a_tree_comes_back_the_same_from_every_kind_of_source() {
    let rig = Rig::new();
    let tree = tree(&rig);
    let tar = rig.path("tree.tar");
    let words = ["--xattrs", "-S", "--format=posix", "-C", text(&tree), "-cf", text(&tar), "."];
    run("tar", &words);
    for (tool, ending) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz")] {
        let packed = File::create(rig.path(&format!("tree.tar.{ending}"))).unwrap();
        let ran = std::process::Command::new(tool)
            .args(["-1", "-c", text(&tar)])
            .stdout(packed)
            .status()
            .unwrap();
        assert!(ran.success(), "{tool}");
    }
    for source in ["tree", "tree.tar", "tree.tar.gz", "tree.tar.zst", "tree.tar.xz"] {
        let reply = rig.json(&["import", source, text(&rig.path(source)), "--size", "256M"]);
        assert!(reply["entries"].as_u64().unwrap() >= 11, "{reply}");
        mounted(&rig, source, |mnt| assert_same_tree(&tree, mnt));
    }
    // Out again, and in once more.
    rig.ok(&["export", "tree", text(&rig.path("out.tar"))]);
    rig.ok(&["import", "again", text(&rig.path("out.tar")), "--size", "256M"]);
    mounted(&rig, "again", |mnt| assert_same_tree(&tree, mnt));
    rig.ok(&["export", "tree", text(&rig.path("out.raw"))]);
    let device = rig.ok(&["attach", "tree", "--read-only"]);
    let device = device.trim().trim_end_matches(" (read-only)");
    run("cmp", &[device, text(&rig.path("out.raw"))]);
    rig.ok(&["detach", "tree"]);
    let taken = rig.json(&["import", "raw", text(&rig.path("out.raw"))]);
    assert_eq!(
        (&taken["file_system"], &taken["virtual_size_bytes"]),
        (&"ext4".into(), &(256u64 << 20).into())
    );
    mounted(&rig, "raw", |mnt| assert_same_tree(&tree, mnt));
    rig.assert_sound("import and export");
}

#[test]
fn every_file_system_is_made_used_and_committed() {
    let rig = Rig::new();
    for (fs_name, size) in [("ext4", "64M"), ("xfs", "512M")] {
        rig.ok(&["create", fs_name, "--size", size, "--fs", fs_name]);
        mounted(&rig, fs_name, |mnt| fs::write(mnt.join("file"), "content").unwrap());
        rig.ok(&["commit", fs_name]);
        mounted(&rig, fs_name, |mnt| assert_eq!(fs::read(mnt.join("file")).unwrap(), b"content"));
    }
    rig.ok(&["create", "none", "--size", "64M", "--fs", "none"]);
    let why = rig.fails(&["mount", "none", text(&rig.make_dir("mnt"))], 2);
    assert!(why.contains("\"none\""), "{why}");
    let device = rig.ok(&["attach", "none"]);
    let disk = File::options().write(true).open(device.trim()).unwrap();
    disk.write_all_at(&noise(1, 1 << 20), 5 << 20).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    rig.ok(&["detach", "none"]);
    let committed = rig.json(&["commit", "none"]);
    assert_eq!(committed["changed_bytes"], 1 << 20, "{committed}");
    let raw = rig.raw("none");
    assert!(raw.len() == 64 << 20 && raw[5 << 20..6 << 20] == noise(1, 1 << 20));
    rig.assert_sound("create");
}

#[test]
fn what_is_committed_is_what_differs() {
    let rig = Rig::new();
    rig.ok(&["create", "debian", "--size", "64M"]);
    rig.ok(&["clone", "debian", "web"]);
    let nothing = rig.json(&["diff", "debian", "web"]);
    assert_eq!((&nothing["sum_bytes"], &nothing["extents"]), (&0.into(), &Value::Array(vec![])));
    assert_eq!(rig.ok(&["commit", "web"]), "web: nothing to commit\n");
    mounted(&rig, "web", |mnt| fs::write(mnt.join("file"), noise(1, 1 << 20)).unwrap());
    let head = rig.json(&["diff", "web"]);
    assert!(head["sum_bytes"].as_u64().unwrap() >= 1 << 20, "{head}");
    let before = rig.raw("web");
    let first = rig.json(&["commit", "web", "--message", "a greeting"]);
    assert!(
        first["digest"].is_string() && first["changed_bytes"].as_u64().unwrap() >= 1 << 20,
        "{first}"
    );
    assert!(rig.raw("web") == before);
    assert_eq!(rig.ok(&["commit", "web"]), "web: nothing to commit\n");
    // Without a head: what the newest delta changed, which is what the two differ in.
    let (own, both) = (rig.json(&["diff", "web"]), rig.json(&["diff", "debian", "web"]));
    assert_eq!(own["extents"], both["extents"]);
    let (a, b) = (rig.raw("debian"), rig.raw("web"));
    let mut same = a.clone();
    for extent in both["extents"].as_array().unwrap() {
        let start = extent["offset_bytes"].as_u64().unwrap() as usize;
        let end = start + extent["length_bytes"].as_u64().unwrap() as usize;
        same[start..end].copy_from_slice(&b[start..end]);
    }
    assert!(same == b, "diff names all that differs");
    let info = rig.ok(&["info", "web"]);
    assert!(info.contains("a greeting") && info.contains("attached   no"), "{info}");
    let tree = rig.ok(&["tree"]);
    assert!(tree.lines().count() == 2 && tree.contains("└─") && tree.contains("web"), "{tree}");
    rig.assert_sound("commit");
}

#[test]
fn what_has_rotted_is_found_with_its_place_and_the_catalogue_is_made_anew() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let (list, tree) = (rig.ok(&["list"]), rig.ok(&["tree"]));
    fs::remove_dir_all(rig.root().join("catalog.sled")).unwrap();
    let said = rig.ok(&["check", "--rebuild"]);
    assert!(said.contains("catalogue made anew: 1 image, 1 object"), "{said}");
    assert_eq!((rig.ok(&["list"]), rig.ok(&["tree"])), (list, tree));
    let objects = run("find", &[text(&rig.root().join("objects")), "-name", "*.delta"]);
    let path = objects.trim();
    let delta = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    delta.read_exact_at(&mut byte, 70_000).unwrap();
    delta.write_all_at(&[byte[0] ^ 1], 70_000).unwrap();
    for words in [&["check", "web"][..], &["check", "--all"]] {
        let said = rig.ctl(words);
        assert!(
            said.code == Some(5) && said.out.contains(path) && said.out.contains("offset"),
            "{said:?}"
        );
    }
    delta.write_all_at(&byte, 70_000).unwrap();
    rig.assert_sound("mended");
}

#[test]
fn a_removed_image_s_deltas_stay_until_gc() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    rig.ok(&["create", "keep", "--size", "64M"]);
    rig.ok(&["rename", "web", "old"]);
    assert_eq!(rig.names(), ["keep", "old"]);
    let said = rig.ok(&["rm", "old"]);
    assert!(said.starts_with("old: removed\ngc would free "), "{said}");
    let would = rig.json(&["gc", "--dry-run"]);
    assert_eq!(would["kept_objects"], 1, "{would}");
    let count = || {
        run("find", &[text(&rig.root().join("objects")), "-name", "*.delta"])
            .lines()
            .count()
    };
    assert_eq!(count(), 2, "a dry run removes nothing");
    let done = rig.json(&["gc"]);
    assert_eq!((&done["removed"], &done["freed_bytes"]), (&would["removed"], &would["freed_bytes"]));
    assert_eq!(count(), 1);
    assert_eq!(rig.json(&["gc"])["freed_bytes"], 0);
    rig.assert_sound("gc");
}

#[test]
fn a_link_is_the_same_each_time_and_says_that_nobody_serves_it() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let first = rig.ok(&["publish", "web"]);
    let lines: Vec<&str> = first.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("magnet:?xt=urn:btih:") && lines[1].contains("blockbtd"),
        "{first}"
    );
    assert_eq!(rig.ok(&["publish", "web"]), first);
    assert!(rig.ok(&["info", "web"]).contains(lines[0]));
    rig.assert_sound("publish");
}

#[test]
fn a_closed_pipe_is_a_quiet_success() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    for words in [&["list"][..], &["info", "web", "--json"], &["--help"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said: Said = rig.command(words).stdout(writer).stderr(Stdio::piped()).output().unwrap().into();
        assert!(said.code == Some(0) && said.err.is_empty(), "{words:?}: {said:?}");
    }
}

/// What a run says, without what no two runs have in common.
fn masked(said: &Said, rig: &Rig) -> String {
    let mut text = format!("{:?}\n{}{}", said.code, said.out, said.err);
    text = text.replace(rig.path("").to_str().unwrap(), "DIR/");
    if rig.root().join("VERSION").exists() {
        text = text.replace(rig.run_dir().to_str().unwrap(), "RUN");
    }
    // In JSON a time is no word of its own.
    let mut parts = text.split("\"time_unix_seconds\":");
    let first = parts.next().unwrap_or_default().to_string();
    text = parts.fold(first, |all, part| {
        all + "TIME" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    });
    let word = |word: &str| -> String {
        let is_number = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b':' | b'-'));
        match word.strip_prefix("/dev/loop") {
            Some(_) => "LOOP".into(),
            None if is_number(word) && word.len() > 7 => "TIME".into(),
            None => word.into(),
        }
    };
    let mut words: Vec<String> = text
        .split_inclusive(char::is_whitespace)
        .map(|part| {
            let trimmed = part.trim_end();
            word(trimmed) + &part[trimmed.len()..]
        })
        .collect();
    for at in 1..words.len() {
        if words[at].trim_end().trim_end_matches(',') == "ms" {
            words[at - 1] = "TIME ".into();
        }
    }
    words.concat()
}

#[test]
fn a_daemon_changes_nothing_of_what_is_said() {
    let (alone, mut served) = (Rig::new(), Rig::new());
    served.start_daemon(None);
    let disk = alone.path("disk.raw");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    // The same bytes each time.
    let words = [
        "-q",
        "-U",
        "00000000-0000-4000-8000-000000000000",
        "-E",
        "hash_seed=00000000-0000-4000-8000-000000000001",
        text(&disk),
    ];
    run("mkfs.ext4", &words);
    fs::copy(&disk, served.path("disk.raw")).unwrap();
    let tour: &[&[&str]] = &[
        &["import", "debian", "DIR/disk.raw"],
        &["list"],
        &["import", "debian", "DIR/disk.raw"],
        &["import", "x", "DIR/absent"],
        &["create", "data", "--size", "20G", "--fs", "none"],
        &["clone", "debian", "web"],
        &["clone", "absent", "x"],
        &["list"],
        &["list", "--quiet"],
        &["attach", "web"],
        &["commit", "web"],
        &["detach", "web"],
        &["detach", "web"],
        &["commit", "web"],
        &["flatten", "web"],
        &["flatten", "absent"],
        &["mount", "web", "DIR/mnt"],
        &["umount", "web"],
        &["mount", "web"],
        &["umount", "web"],
        &["tree"],
        &["diff", "debian"],
        &["diff", "debian", "absent"],
        &["export", "debian", "DIR/out.raw"],
        &["export", "debian", "DIR/out.zip"],
        &["info", "debian"],
        &["info", "debian", "--json"],
        &["rename", "debian", "old"],
        &["rm", "old"],
        &["rm", "web"],
        &["gc", "--dry-run"],
        &["gc"],
        &["check", "--all"],
        &["check", "--rebuild"],
        &["check", "data"],
        &["publish", "data"],
        &["peers"],
        &["list", "--json"],
    ];
    for words in tour {
        let said = [&alone, &served].map(|rig| {
            rig.make_dir("mnt");
            let there = rig.path("").to_str().unwrap().to_string();
            let words: Vec<String> = words.iter().map(|word| word.replace("DIR/", &there)).collect();
            masked(&rig.ctl(&words), rig)
        });
        assert_eq!(said[0], said[1], "{words:?}");
    }
    served.stop_daemon();
    alone.assert_sound("alone");
    served.assert_sound("served");
}

#[test]
fn a_killed_export_leaves_nothing_attached() {
    let rig = Rig::new();
    let source = rig.make_dir("source");
    fs::write(source.join("file"), noise(1, 1 << 20)).unwrap();
    rig.ok(&["import", "web", text(&source), "--size", "64M"]);
    let mut export = rig.command(&["export", "web", text(&rig.path("out.tar"))]);
    let killed = export.env("BLOCKBT_STOP_AT", "attach.mount").status().unwrap();
    assert_eq!(killed.signal(), Some(9), "it mounts the image");
    let left = rig.left();
    assert!(left.iter().any(|what| what.contains("/export-")), "{left:?}");
    rig.ok(&["list"]);
    rig.assert_sound("a killed export");
    rig.ok(&["rm", "web"]);
}
