//! How much space a head may take: a limit that refuses and loses nothing, and space that is there whatever fills the host's disk.

use super::full_disk::Filler;
use super::rig::{Rig, noise, run, text};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Writes a file, all the way to the device.
fn write(path: &Path, content: Vec<u8>) -> io::Result<()> {
    fs::write(path, content)?;
    fs::File::open(path)?.sync_all()
}

#[test]
fn a_head_at_its_limit_refuses_writes_keeps_what_it_has_and_the_next_head_has_the_same() {
    let rig = Rig::new();
    let mnt = rig.make_dir("mnt");
    rig.ok(&["create", "web", "--size", "256M"]);
    rig.ok(&["mount", "web", text(&mnt), "--limit", "16M"]);
    write(&mnt.join("kept"), noise(1, MIB as usize)).unwrap();
    assert!(write(&mnt.join("big"), noise(2, 100 << 20)).is_err(), "100 MiB went into 16");
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, MIB as usize));
    // Whether anything of the file system's own was lost is the kernel's to say.
    let said = rig.ctl(&["umount", "web"]);
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
    rig.fails(&["umount", "web"], 3);
    let head = rig.json(&["info", "web"])["head"].clone();
    assert_eq!((&head["limit_bytes"], &head["reserve"]), (&(16 * MIB).into(), &false.into()));
    // The host keeps account of the blocks, which takes one now and then.
    assert!(head["stored_bytes"].as_u64().unwrap() <= 16 * MIB + (64 << 10), "{head}");
    rig.assert_sound("after a full head");
    let why = rig.fails(&["mount", "web", text(&mnt), "--limit", "64M"], 2);
    assert!(why.contains("resize --limit"), "{why}");
    let why = rig.fails(&["resize", "web", "--limit", "1M"], 2);
    assert!(why.contains("a limit of 1048576 bytes, and its head has "), "{why}");
    rig.ok(&["resize", "web", "--limit", "80M"]);
    rig.ok(&["mount", "web", text(&mnt)]);
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, MIB as usize));
    rig.fails(&["resize", "web", "--limit", "90M"], 4);
    // There is room again.
    if mnt.join("big").exists() {
        fs::remove_file(mnt.join("big")).unwrap();
    }
    write(&mnt.join("more"), noise(3, 40 << 20)).unwrap();
    rig.ok(&["umount", "web"]);
    rig.assert_sound("after a larger limit");
    rig.ok(&["commit", "web"]);
    assert_eq!(rig.json(&["info", "web"])["next_head"]["limit_bytes"], 80 * MIB);
    rig.ok(&["attach", "web"]);
    assert_eq!(rig.json(&["info", "web"])["head"]["limit_bytes"], 80 * MIB);
    rig.ok(&["detach", "web"]);
}

#[test]
fn writes_that_were_lost_are_said_once_by_a_detach_that_is_done() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M", "--fs", "none", "--limit", "4M"]);
    let device = rig.ok(&["attach", "web", "--mode", "user"]);
    // Nobody waits for it.
    fs::File::options()
        .write(true)
        .open(device.trim())
        .unwrap()
        .write_all_at(&noise(1, 32 << 20), 0)
        .unwrap();
    let why = rig.fails(&["detach", "web"], 1);
    assert!(why.contains("is detached, and not all that was written"), "{why}");
    rig.assert_sound("lost writes");
    rig.fails(&["detach", "web"], 3);
    rig.ok(&["attach", "web"]);
    rig.ok(&["detach", "web"]);
}

#[test]
fn a_head_that_the_kernel_gave_up_is_brought_back_if_all_of_it_is_there() {
    let rig = Rig::new();
    let mnt = rig.make_dir("mnt");
    rig.ok(&["create", "web", "--size", "64M"]);
    rig.ok(&["mount", "web", text(&mnt)]);
    write(&mnt.join("kept"), noise(1, MIB as usize)).unwrap();
    rig.ok(&["umount", "web"]);
    let images = fs::read_dir(rig.root().join("images")).unwrap();
    let head = images.last().unwrap().unwrap().path().join("head.delta");
    let give_up = || {
        fs::File::options()
            .write(true)
            .open(&head)
            .unwrap()
            .write_all_at(&[0; 4], 4)
            .unwrap()
    };
    give_up();
    for words in [&["check", "web"][..], &["mount", "web", text(&mnt)], &["commit", "web"]] {
        let said = rig.ctl(words);
        assert!(
            said.code == Some(5) && (said.out + &said.err).contains("check --repair"),
            "{words:?}"
        );
    }
    let said = rig.json(&["check", "web", "--repair"]);
    assert_eq!(
        (said["findings"].as_array().unwrap().len(), &said["findings"][0]["repaired"]),
        (1, &true.into())
    );
    rig.assert_sound("repaired");
    rig.ok(&["mount", "web", text(&mnt)]);
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, MIB as usize));
    rig.fails(&["check", "web", "--repair"], 4);
    rig.ok(&["umount", "web"]);
    // Something is missing now.
    give_up();
    let whole = fs::read(&head).unwrap();
    fs::write(&head, &whole[..whole.len() / 2]).unwrap();
    let said = rig.ctl(&["check", "--all", "--repair"]);
    assert!(said.code == Some(5) && said.out.contains("not repaired: "), "{said:?}");
    assert!(fs::read(&head).unwrap() == whole[..whole.len() / 2], "nothing was changed");
    fs::write(&head, &whole).unwrap();
    rig.ok(&["check", "--all", "--repair"]);
    rig.assert_sound("repaired again");
}

#[test]
fn no_head_is_begun_where_little_space_is_left() {
    let mut rig = Rig::new();
    rig.ok(&["create", "old", "--size", "64M"]);
    fs::write(rig.path("config.toml"), "free_margin = \"4000T\"").unwrap();
    for daemon in [false, true] {
        if daemon {
            rig.start_daemon(None);
        }
        for words in [&["create", "new", "--size", "1G"][..], &["clone", "old", "new"], &["attach", "old"]] {
            let why = rig.fails(words, 1);
            assert!(why.contains("no space for another head") && why.contains("margin"), "{why}");
        }
        rig.ok(&["attach", "old", "--read-only"]);
        rig.ok(&["detach", "old"]);
        rig.ok(&["clone", "old", "new", "--limit", "1M", "--reserve"]);
        rig.ok(&["rm", "new"]);
    }
    rig.stop_daemon();
}

#[test]
fn a_reserved_head_is_written_to_while_the_hosts_disk_is_full() {
    let rig = Rig::on_small_disk(128);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["create", "web", "--size", "64M"]);
    rig.ok(&["clone", "web", "held", "--limit", "24M", "--reserve"]);
    let stored = |verb: &str| {
        let head = rig.json(&["info", "held"])["head"].clone();
        assert_eq!(head["reserve"], true);
        assert!(head["stored_bytes"].as_u64().unwrap() >= 24 * MIB, "after {verb}: {head}");
    };
    stored("clone");
    rig.ok(&["mount", "held", text(&mnt)]);
    let filler = Filler::leave(&rig, 0);
    write(&mnt.join("a"), noise(1, 5 << 20)).unwrap();
    fs::remove_file(mnt.join("a")).unwrap();
    run("fstrim", &[text(&mnt)]);
    // What was discarded was not given back to the host, whose disk took nothing.
    write(&mnt.join("b"), noise(2, 5 << 20)).unwrap();
    filler.give_back();
    rig.ok(&["umount", "held"]);
    stored("umount");
    rig.ok(&["mount", "held", text(&mnt)]);
    assert!(fs::read(mnt.join("b")).unwrap() == noise(2, 5 << 20));
    stored("mount");
    rig.ok(&["umount", "held"]);
    rig.assert_sound("a reserved head");
    // What cannot be had is said at once, and takes nothing.
    for words in [
        &["clone", "web", "more", "--reserve", "--limit", "1G"][..],
        &["mount", "web", text(&mnt), "--reserve"],
    ] {
        let filler = Filler::leave(&rig, 8);
        let why = rig.fails(words, 1);
        assert!(why.to_lowercase().contains("no space"), "{why}");
        filler.give_back();
        assert!(rig.json(&["info", "web"])["head"].is_null());
    }
    rig.assert_sound("nothing was reserved");
}

#[test]
fn what_a_head_cannot_have_is_a_usage_error() {
    let rig = Rig::new();
    let words = |last: &[&'static str]| [&["create", "web", "--size", "64M"][..], last].concat();
    for (last, said) in [(&["--limit", "32K"][..], "at least 49152"), (&["--limit", "100001"], "multiple")] {
        let why = rig.fails(&words(last), 2);
        assert!(why.contains(said), "{why}");
    }
    rig.ok(&words(&["--reserve", "--limit", "1M"]));
    let head = rig.json(&["info", "web"])["head"].clone();
    assert!(head["stored_bytes"].as_u64().unwrap() >= MIB, "{head}");
    rig.fails(&["attach", "web", "--read-only", "--limit", "1M"], 2);
    rig.fails(&["attach", "web", "--reserve"], 2);
}

#[test]
fn a_head_that_the_kernel_had_is_no_longer_than_its_limit_once_it_is_reserved() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    rig.ok(&["attach", "web"]);
    rig.ok(&["detach", "web"]);
    let images = fs::read_dir(rig.root().join("images")).unwrap();
    let head = images.last().unwrap().unwrap().path().join("head.delta");
    for last in [&["--limit", "1M", "--reserve"][..], &["80M", "--limit", "8M", "--reserve"]] {
        rig.ok(&["resize", "web", "--no-reserve", "--limit", "none"]);
        // As an attach in one of the kernel's modes leaves it.
        fs::File::options().write(true).open(&head).unwrap().set_len(70 * MIB).unwrap();
        rig.ok(&[&["resize", "web"], last].concat());
        let limit = rig.json(&["info", "web"])["head"]["limit_bytes"].as_u64().unwrap();
        assert_eq!(fs::metadata(&head).unwrap().len(), limit, "{last:?}");
    }
}

fn head(rig: &Rig, name: &str) -> (u64, Option<u64>, bool) {
    let head = rig.json(&["info", name])["head"].clone();
    let number = |field: &str| head[field].as_u64();
    (number("stored_bytes").unwrap(), number("limit_bytes"), head["reserve"] == true)
}

#[test]
fn the_bounds_of_a_head_that_is_there_are_changed_and_taken_away() {
    let rig = Rig::on_small_disk(128);
    let mnt = rig.make_dir("mnt");
    rig.ok(&["create", "web", "--size", "48M", "--limit", "16M"]);
    rig.ok(&["mount", "web", text(&mnt)]);
    write(&mnt.join("kept"), noise(1, MIB as usize)).unwrap();
    for words in [
        &["--reserve"][..],
        &["--no-reserve"],
        &["--limit", "none"],
        &["--limit", "24M", "--reserve"],
    ] {
        rig.fails(&[&["resize", "web"][..], words].concat(), 4);
    }
    rig.ok(&["umount", "web"]);
    let before = rig.raw("web");
    let said = rig.json(&["resize", "web", "--reserve"]);
    assert_eq!((&said["limit_bytes"], &said["reserve"]), (&(16 * MIB).into(), &true.into()));
    let (stored, limit, reserve) = head(&rig, "web");
    assert!(stored >= 16 * MIB && reserve && limit == Some(16 * MIB), "{stored} {limit:?}");
    // Without a limit it is all that the disk needs.
    rig.ok(&["resize", "web", "--limit", "none"]);
    let (stored, limit, reserve) = head(&rig, "web");
    assert!(stored >= 48 * MIB && reserve && limit.is_none(), "{stored} {limit:?}");
    rig.ok(&["resize", "web", "--limit", "20M"]);
    let (stored, limit, _) = head(&rig, "web");
    assert!(
        (20 * MIB..22 * MIB).contains(&stored) && limit == Some(20 * MIB),
        "{stored} {limit:?}"
    );
    rig.ok(&["resize", "web", "--no-reserve"]);
    let (stored, limit, reserve) = head(&rig, "web");
    assert!(stored < 8 * MIB && !reserve && limit == Some(20 * MIB), "{stored} {limit:?}");
    // What the host has not got is said, and nothing has changed.
    let filler = Filler::leave(&rig, 8);
    let why = rig.fails(&["resize", "web", "--limit", "none", "--reserve"], 1);
    assert!(why.to_lowercase().contains("no space"), "{why}");
    filler.give_back();
    assert_eq!(head(&rig, "web"), (stored, limit, reserve));
    assert!(rig.raw("web") == before, "the disk has not changed");
    rig.assert_sound("bounds");
    // Where there is no head yet, it is the next one's.
    rig.ok(&["commit", "web"]);
    rig.ok(&["resize", "web", "--limit", "none", "--reserve"]);
    assert_eq!(rig.json(&["info", "web"])["next_head"]["reserve"], true);
    rig.ok(&["attach", "web"]);
    assert!(head(&rig, "web").0 >= 48 * MIB);
    rig.ok(&["detach", "web"]);
    rig.assert_sound("the next head");
}

#[test]
fn a_resize_that_is_refused_changes_neither_size_nor_limit() {
    let rig = Rig::new();
    let mnt = rig.make_dir("mnt");
    for (name, fs) in [("ext", "ext4"), ("xfs", "xfs"), ("raw", "none")] {
        rig.ok(&["create", name, "--size", "512M", "--fs", fs, "--limit", "256M"]);
    }
    rig.ok(&["mount", "ext", text(&mnt)]);
    write(&mnt.join("kept"), noise(1, 20 << 20)).unwrap();
    rig.ok(&["umount", "ext"]);
    for (words, code) in [
        (&["xfs", "384M", "--limit", "64M"][..], 2),
        (&["raw", "384M", "--limit", "64M"], 2),
        (&["ext", "8M", "--limit", "64M"], 2),
        (&["ext", "+20T", "--limit", "64M"], 2),
        (&["ext", "1G", "--limit", "1M"], 2),
        (&["ext", "1G", "--limit", "33333"], 2),
        // Less than what is in it takes when it has moved.
        (&["ext", "256M", "--limit", "1M"], 1),
    ] {
        rig.fails(&[&["resize"][..], words].concat(), code);
        let info = rig.json(&["info", words[0]]);
        let bounds = if info["head"].is_null() {
            &info["next_head"]
        } else {
            &info["head"]
        };
        let found = (&info["virtual_size_bytes"], &bounds["limit_bytes"], &bounds["reserve"]);
        assert_eq!(found, (&(512 * MIB).into(), &(256 * MIB).into(), &false.into()), "{words:?}");
    }
    for (size, limit) in [("768M", 64 * MIB), ("256M", 48 * MIB)] {
        let said = rig.json(&["resize", "ext", size, "--limit", &limit.to_string(), "--reserve"]);
        assert_eq!(said["limit_bytes"], limit, "{said}");
        let (stored, found, reserve) = head(&rig, "ext");
        assert!(stored >= limit && found == Some(limit) && reserve, "{stored} {found:?}");
    }
    rig.ok(&["mount", "ext", text(&mnt)]);
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, 20 << 20));
    rig.ok(&["umount", "ext"]);
    rig.assert_sound("size and limit");
}
