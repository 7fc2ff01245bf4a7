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
    // That not all was written is said, once.
    let said = rig.ctl(&["umount", "web"]);
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
    if said.code == Some(1) {
        rig.ok(&["umount", "web"]);
    }
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
