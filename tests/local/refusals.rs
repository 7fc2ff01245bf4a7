//! What each verb says when it cannot or must not, and that nothing has changed then.

use super::rig::{Rig, Said, noise, text};
use std::fs;

#[test]
fn what_is_attached_is_in_use() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    fs::write(mnt.join("file"), "x").unwrap();
    let (tar, raw) = (rig.path("out.tar"), rig.path("out.raw"));
    let refused = [
        &["commit", "web"][..],
        &["flatten", "web"],
        &["rm", "web"],
        &["rename", "web", "other"],
        &["resize", "web", "128M"],
        &["mount", "web", text(&mnt)],
        &["attach", "web"],
        &["detach", "web"],
        &["export", "web", text(&tar)],
        &["export", "web", text(&raw)],
    ];
    for words in refused {
        let why = rig.fails(words, 4);
        assert!(why.contains("web"), "{why}");
    }
    assert!(!tar.exists() && !raw.exists() && rig.names() == ["web"]);
    assert_eq!(
        rig.json(&["info", "web"])["chain"].as_array().unwrap().len(),
        1,
        "nothing was committed"
    );
    assert_eq!(rig.json(&["list"])["dir"], text(&mnt));
    assert!(rig.json(&["check", "web"])["findings"].as_array().unwrap().is_empty());
    rig.ok(&["umount", "web"]);
    // Attached without a mount it stays as it is, too.
    let device = rig.ok(&["attach", "web"]);
    rig.fails(&["export", "web", text(&tar)], 4);
    assert_eq!(rig.json(&["list"])["device"], device.trim());
    rig.ok(&["detach", "web"]);
    for words in [["detach", "web"], ["umount", "web"]] {
        let why = rig.fails(&words, 3);
        assert!(why.contains("web"), "{why}");
    }
    rig.assert_sound("detach");
}

#[test]
fn an_error_names_the_thing_and_has_its_code() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let (nowhere, strange) = (rig.path("nowhere"), rig.path("strange"));
    fs::write(&strange, "no disk").unwrap();
    let long = "n".repeat(300);
    for verb in [
        "info", "mount", "umount", "attach", "detach", "commit", "flatten", "diff", "check", "rm", "publish",
    ] {
        let why = rig.fails(&[verb, "absent"], 3);
        assert!(why.contains("\"absent\""), "{why}");
    }
    let cases: &[(&[&str], i32, &str)] = &[
        (&["clone", "absent", "new"], 3, "absent"),
        (&["rename", "absent", "new"], 3, "absent"),
        (&["diff", "web", "absent"], 3, "absent"),
        (&["export", "absent", "x.tar"], 3, "absent"),
        (&["create", "web", "--size", "64M"], 4, "web"),
        (&["import", "web", text(&strange)], 4, "web"),
        (&["clone", "web", "web"], 2, "same image"),
        (&["rename", "web", "web"], 2, "same"),
        (&["import", "new", text(&nowhere)], 3, text(&nowhere)),
        (&["import", "new", text(&strange)], 2, text(&strange)),
        (&["import", "new", "/dev/null"], 2, "/dev/null"),
        (&["export", "web", "web.zip"], 2, "web.zip"),
        (&["export", "web", "/nonexistent/web.tar"], 1, "/nonexistent"),
        (&["mount", "web", text(&nowhere)], 3, text(&nowhere)),
        (&["--socket", "/nonexistent.sock", "list"], 1, "/nonexistent.sock"),
        (&["--config", "/nonexistent.toml", "list"], 2, "/nonexistent.toml"),
        (&["pull", "magnet:?nonsense"], 2, ""),
    ];
    for (words, code, named) in cases {
        let why = rig.fails(words, *code);
        assert!(why.contains(named), "{words:?}: {why}");
    }
    let usage: &[&[&str]] = &[
        &["create", "../x", "--size", "1G"],
        &["create", "", "--size", "1G"],
        &["create", &long, "--size", "1G"],
        &["create", "a\nb", "--size", "1G"],
        &["create", "x", "--size", "17T"],
        &["create", "x", "--size", "-1"],
        &["create", "x", "--size", "1000"],
        &["check"],
        &["frobnicate"],
    ];
    for words in usage {
        let said = rig.ctl(words);
        assert!(
            said.code == Some(2) && said.out.is_empty() && said.err.starts_with("error: "),
            "{words:?}: {said:?}"
        );
    }
    assert_eq!(rig.names(), ["web"]);
    let other = rig.make_dir("not a store");
    fs::write(other.join("file"), "").unwrap();
    let said: Said = rig.command_at(&other, &["list"]).output().unwrap().into();
    assert!(said.code == Some(1) && said.err.contains("not a store"), "{said:?}");
    rig.assert_sound("errors");
}

#[test]
fn only_who_makes_images_makes_a_store() {
    let rig = Rig::new();
    let empty = rig.make_dir("empty");
    let (missing, half) = (rig.path("deep/missing"), rig.make_dir("half"));
    fs::create_dir(half.join("objects")).unwrap();
    let verbs: &[&[&str]] = &[
        &["list"],
        &["tree"],
        &["info", "web"],
        &["diff", "web"],
        &["check", "--all"],
        &["gc"],
        &["rm", "web"],
        &["mount", "web"],
        &["flatten", "web"],
        &["clone", "web", "other"],
        &["peers"],
        &["--no-daemon", "list"],
    ];
    for words in verbs {
        for root in [&missing, &empty, &half] {
            let said: Said = rig.command_at(root, words).output().unwrap().into();
            let why = format!("no store at {}", root.display());
            assert!(said.code == Some(3) && said.err.contains(&why), "{words:?}: {said:?}");
        }
    }
    assert!(!rig.path("deep").exists() && fs::read_dir(&empty).unwrap().next().is_none());
    for root in [&missing, &empty, &half] {
        let create = ["create", "web", "--size", "1M", "--fs", "none"];
        let said: Said = rig.command_at(root, &create).output().unwrap().into();
        assert_eq!(said.code, Some(0), "{said:?}");
        let said: Said = rig.command_at(root, &["list"]).output().unwrap().into();
        assert!(said.code == Some(0) && said.out.contains("web"), "{said:?}");
    }
}

/// One header and what follows it, right or wrong.
fn entry(name: &[u8], kind: u8, link: &[u8], size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_entry_type(tar::EntryType::new(kind));
    let raw = header.as_old_mut();
    raw.name[..name.len()].copy_from_slice(name);
    raw.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn a_hostile_archive_is_refused_by_the_entry_s_name_and_leaves_nothing() {
    let rig = Rig::new();
    rig.ok(&["create", "old", "--size", "64M"]);
    fs::write(rig.make_dir("canary").join("bird"), "alive").unwrap();
    let canary = rig.path("canary");
    let outside = text(&canary).as_bytes();
    let end = vec![0; 1024];
    let symlink = entry(b"out", b'2', outside, 0);
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("absolute", "/etc/passwd", entry(b"/etc/passwd", b'0', b"", 0)),
        ("upwards", "a/../../x", entry(b"a/../../x", b'0', b"", 0)),
        (
            "through a symlink",
            "out/bird",
            [symlink.clone(), entry(b"out/bird", b'0', b"", 0)].concat(),
        ),
        (
            "a directory through a symlink",
            "out/new",
            [symlink.clone(), entry(b"out/new", b'5', b"", 0)].concat(),
        ),
        ("hard link outside", "hard", entry(b"hard", b'1', &[outside, b"/bird"].concat(), 0)),
        ("hard link upwards", "hard", entry(b"hard", b'1', b"../../bird", 0)),
        (
            "hard link through a symlink",
            "hard",
            [symlink, entry(b"hard", b'1', b"out/bird", 0)].concat(),
        ),
        ("2^60 bytes", "huge", entry(b"huge", b'0', b"", 1 << 60)),
        ("truncated", "short", [entry(b"short", b'0', b"", 4096), vec![1; 100]].concat()),
        ("whiteout", ".wh.gone", entry(b"dir/.wh.gone", b'0', b"", 0)),
        ("not a header", "good", [entry(b"good", b'0', b"", 0), vec![7; 512]].concat()),
    ];
    for (what, named, bytes) in cases {
        let tar = rig.path("hostile.tar");
        let end = if what == "truncated" { &[][..] } else { &end };
        fs::write(&tar, [&bytes, end].concat()).unwrap();
        let why = rig.fails(&["import", "new", text(&tar), "--size", "64M"], 1);
        assert!(why.contains(named), "{what}: {why}");
        rig.assert_clean(what);
        assert_eq!(rig.names(), ["old"], "{what}");
        let birds: Vec<_> = fs::read_dir(&canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(
            (birds.len(), fs::read(canary.join("bird")).unwrap()),
            (1, b"alive".to_vec()),
            "{what}"
        );
    }
    assert_eq!(rig.json(&["gc", "--dry-run"])["freed_bytes"], 0);
    rig.assert_sound("hostile archives");
}

#[test]
fn a_tree_that_does_not_fit_is_told_so() {
    let rig = Rig::new();
    let source = rig.make_dir("source");
    fs::write(source.join("big"), noise(1, 24 << 20)).unwrap();
    let why = rig.fails(&["import", "new", text(&source), "--size", "16M"], 1);
    assert!(
        why.contains("16.0 MiB") && why.contains("too small") && why.contains("big"),
        "{why}"
    );
    let disk = rig.path("disk.raw");
    fs::write(&disk, noise(1, 2 << 20)).unwrap();
    let why = rig.fails(&["import", "new", text(&disk), "--size", "1M"], 2);
    assert!(why.contains(&(2 << 20).to_string()), "{why}");
    assert!(rig.names().is_empty());
    rig.assert_sound("does not fit");
}
