//! How much space a head may take: a limit that refuses and loses nothing, and space that is there whatever fills the host's disk.

use super::full_disk::Filler;
use super::rig::{Rig, noise, run, text};
use std::fs;
use std::io;
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
    // That not all was written may be said here.
    let said = rig.ctl(&["umount", "web"]);
    assert!(matches!(said.code, Some(0 | 1)), "{said:?}");
    let head = rig.json(&["info", "web"])["head"].clone();
    assert_eq!((&head["limit_bytes"], &head["reserve"]), (&(16 * MIB).into(), &false.into()));
    assert!(head["stored_bytes"].as_u64().unwrap() <= 16 * MIB, "{head}");
    rig.assert_sound("after a full head");
    rig.ok(&["mount", "web", text(&mnt), "--read-only"]);
    assert!(fs::read(mnt.join("kept")).unwrap() == noise(1, MIB as usize));
    rig.ok(&["umount", "web"]);
    let why = rig.fails(&["mount", "web", text(&mnt), "--limit", "64M"], 2);
    assert!(why.contains("resize --limit"), "{why}");
    rig.ok(&["commit", "web"]);
    assert_eq!(rig.json(&["info", "web"])["next_head"]["limit_bytes"], 16 * MIB);
    rig.ok(&["attach", "web"]);
    assert_eq!(rig.json(&["info", "web"])["head"]["limit_bytes"], 16 * MIB);
    rig.ok(&["detach", "web"]);
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
    write(&mnt.join("a"), noise(1, 12 << 20)).unwrap();
    fs::remove_file(mnt.join("a")).unwrap();
    run("fstrim", &[text(&mnt)]);
    // What was discarded was not given back to the host, whose disk took nothing.
    write(&mnt.join("b"), noise(2, 12 << 20)).unwrap();
    filler.give_back();
    rig.ok(&["umount", "held"]);
    stored("umount");
    rig.ok(&["mount", "held", text(&mnt)]);
    assert!(fs::read(mnt.join("b")).unwrap() == noise(2, 12 << 20));
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
