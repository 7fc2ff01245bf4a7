//! `resize` as a user has it: what is in an image stays, what was cut off is gone, and nobody else notices.

use super::rig::{Rig, noise, run, text};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn mounted<T>(rig: &Rig, name: &str, work: impl FnOnce(&Path) -> T) -> T {
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", name, text(&mnt)]);
    let result = work(&mnt);
    rig.ok(&["umount", name]);
    result
}

/// Works on an image's device; all of it is in the head afterwards.
fn attached<T>(rig: &Rig, name: &str, work: impl FnOnce(&str) -> T) -> T {
    let device = rig.ok(&["attach", name]);
    let result = work(device.trim());
    rig.ok(&["detach", name]);
    result
}

fn write_at(device: &str, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn size(rig: &Rig, name: &str) -> u64 {
    rig.json(&["info", name])["virtual_size_bytes"].as_u64().unwrap()
}

/// The size of an ext4 that is whole, by its own superblock.
pub fn ext4_size(rig: &Rig, name: &str) -> u64 {
    attached(rig, name, |device| {
        run("e2fsck", &["-fn", device]);
        let said = run("dumpe2fs", &["-h", device]);
        let line = said.lines().find_map(|line| line.strip_prefix("Block count:")).unwrap();
        line.trim().parse::<u64>().unwrap() * 4096
    })
}

#[test]
fn an_ext4_grows_and_shrinks_with_all_that_is_in_it() {
    let rig = Rig::new();
    let source = rig.make_dir("source");
    fs::write(source.join("first"), noise(1, 5 << 20)).unwrap();
    rig.ok(&["import", "base", text(&source), "--size", "64M"]);
    rig.ok(&["clone", "base", "web"]);
    rig.ok(&["clone", "base", "sibling"]);
    let before = rig.raw("base");
    let grown = rig.json(&["resize", "web", "+192M"]);
    assert_eq!(grown["virtual_size_bytes"], 256 * MIB, "{grown}");
    assert_eq!((size(&rig, "web"), ext4_size(&rig, "web")), (256 * MIB, 256 * MIB));
    // Files that lie all over the disk, half of which go.
    mounted(&rig, "web", |mnt| {
        for n in 0..20 {
            fs::write(mnt.join(format!("{n}")), noise(n, 9 << 20)).unwrap();
        }
        (0..20)
            .filter(|n| n % 5 != 4)
            .for_each(|n| fs::remove_file(mnt.join(format!("{n}"))).unwrap());
    });
    let shrunk = rig.json(&["resize", "web", "72M"]);
    assert_eq!(shrunk["virtual_size_bytes"], 72 * MIB, "{shrunk}");
    let minimum = shrunk["minimum_bytes"].as_u64().unwrap();
    assert!((40 * MIB..72 * MIB).contains(&minimum), "{shrunk}");
    assert_eq!((size(&rig, "web"), ext4_size(&rig, "web")), (72 * MIB, 72 * MIB));
    let is_whole = |mnt: &Path| {
        assert!(fs::read(mnt.join("first")).unwrap() == noise(1, 5 << 20));
        for n in [4, 9, 14, 19] {
            assert!(fs::read(mnt.join(format!("{n}"))).unwrap() == noise(n, 9 << 20), "{n}");
        }
    };
    mounted(&rig, "web", is_whole);
    // What is sealed has that size, and so has who is made of it.
    rig.ok(&["commit", "web"]);
    assert_eq!(rig.json(&["info", "web"])["chain"][1]["virtual_size_bytes"], 72 * MIB);
    rig.ok(&["clone", "web", "copy"]);
    assert_eq!(size(&rig, "copy"), 72 * MIB);
    // Without a head: it gets one.
    rig.ok(&["resize", "web", "128M"]);
    assert_eq!(ext4_size(&rig, "web"), 128 * MIB);
    mounted(&rig, "web", is_whole);
    mounted(&rig, "copy", is_whole);
    assert!(
        rig.raw("base") == before && rig.raw("sibling") == before,
        "the siblings have not changed"
    );
    rig.assert_sound("ext4");
}

#[test]
fn what_is_cut_off_never_comes_back() {
    let rig = Rig::new();
    let whole = noise(1, 24 << 20);
    rig.ok(&["create", "raw", "--size", "24M", "--fs", "none"]);
    attached(&rig, "raw", |device| write_at(device, 0, &whole[..16 << 20]));
    rig.ok(&["commit", "raw"]);
    rig.ok(&["clone", "raw", "sibling"]);
    let sibling = rig.raw("sibling");
    // The sealed delta has bytes behind the new end, and the head as well, also in the chunk that the end cuts.
    attached(&rig, "raw", |device| write_at(device, 8 << 20, &whole[8 << 20..]));
    let end = (10 << 20) + 5 * 512;
    let why = rig.fails(&["resize", "raw", &end.to_string()], 2);
    assert!(why.contains("--shrink"), "{why}");
    assert!(rig.raw("raw") == whole, "nothing has changed");
    rig.ok(&["resize", "raw", &end.to_string(), "--shrink"]);
    assert!(rig.raw("raw") == whole[..end]);
    rig.ok(&["resize", "raw", "32M"]);
    let mut want = whole[..end].to_vec();
    want.resize(32 << 20, 0);
    assert!(rig.raw("raw") == want, "zeros come back");
    // All that differs from what is sealed is told: what is cut off, too.
    let changes = rig.json(&["diff", "raw"]);
    let told = changes["extents"].as_array().unwrap().iter().any(|extent| {
        let (at, len) = (extent["offset_bytes"].as_u64().unwrap(), extent["length_bytes"].as_u64().unwrap());
        at <= 15 << 20 && at + len >= 16 << 20
    });
    assert!(told, "{changes}");
    rig.ok(&["commit", "raw"]);
    assert!(rig.raw("raw") == want);
    rig.ok(&["clone", "raw", "copy"]);
    assert!(rig.raw("copy") == want && rig.raw("sibling") == sibling);
    // A size that only a head has is not sealed, and so not in a clone; sealed it is.
    rig.ok(&["resize", "copy", "-8M", "--shrink"]);
    rig.ok(&["clone", "copy", "later"]);
    assert!(rig.raw("later") == want);
    rig.ok(&["commit", "copy"]);
    assert_eq!(rig.ok(&["commit", "copy"]), "copy: nothing to commit\n");
    rig.ok(&["clone", "copy", "last"]);
    assert!(rig.raw("last") == want[..24 << 20]);
    rig.assert_sound("cut off");
}

#[test]
fn a_disk_is_its_bytes_through_any_sizes() {
    for seed in 1..=3u64 {
        let rig = Rig::new();
        let mut dice = noise(seed, 1 << 16).into_iter();
        let mut below = |limit: u64| u64::from_le_bytes(std::array::from_fn(|_| dice.next().unwrap())) % limit;
        rig.ok(&["create", "raw", "--size", "1M", "--fs", "none"]);
        let mut want = vec![0u8; 1 << 20];
        for round in 0..25 {
            match below(5) {
                0 | 1 => attached(&rig, "raw", |device| {
                    for _ in 0..4 {
                        let at = below(want.len() as u64) / 512 * 512;
                        let len = (below(200) * 512).min(want.len() as u64 - at);
                        let bytes = noise(seed ^ at, len as usize);
                        write_at(device, at, &bytes);
                        want[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }),
                2 | 3 => {
                    let size = 512 * (1 + below(4096));
                    rig.ok(&["resize", "raw", &size.to_string(), "--shrink"]);
                    want.resize(size as usize, 0);
                }
                _ => {
                    rig.ok(&["commit", "raw"]);
                }
            }
            assert!(rig.raw("raw") == want, "seed {seed}, round {round}");
        }
        rig.assert_sound("any sizes");
    }
}

#[test]
fn an_xfs_grows_and_does_not_shrink() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "512M", "--fs", "xfs"]);
    mounted(&rig, "web", |mnt| fs::write(mnt.join("file"), noise(1, 3 << 20)).unwrap());
    rig.ok(&["commit", "web"]);
    rig.ok(&["resize", "web", "2G"]);
    let blocks = mounted(&rig, "web", |mnt| {
        assert!(fs::read(mnt.join("file")).unwrap() == noise(1, 3 << 20));
        run("stat", &["-f", "-c", "%b", text(mnt)]).trim().parse::<u64>().unwrap()
    });
    assert!(blocks * 4096 > 1900 * MIB, "{blocks} blocks");
    attached(&rig, "web", |device| run("xfs_repair", &["-n", device]));
    let before = rig.raw("web");
    for words in [&["resize", "web", "1G"][..], &["resize", "web", "-1M", "--shrink"]] {
        let why = rig.fails(words, 2);
        assert!(why.contains("xfs cannot become smaller"), "{why}");
    }
    assert!(rig.raw("web") == before && size(&rig, "web") == 2 << 30);
    rig.assert_sound("xfs");
}

#[test]
fn the_least_size_is_stated_and_can_be_had() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "256M"]);
    mounted(&rig, "web", |mnt| fs::write(mnt.join("file"), noise(1, 30 << 20)).unwrap());
    let before = rig.raw("web");
    let why = rig.fails(&["resize", "web", "16M"], 2);
    let least = why.split('(').nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_string();
    assert!(why.contains("\"web\"") && why.contains("at least"), "{why}");
    assert!(rig.raw("web") == before && size(&rig, "web") == 256 * MIB, "nothing has changed");
    rig.assert_sound("too small");
    rig.ok(&["resize", "web", &least]);
    assert_eq!(ext4_size(&rig, "web").to_string(), least);
    mounted(&rig, "web", |mnt| {
        assert!(fs::read(mnt.join("file")).unwrap() == noise(1, 30 << 20))
    });
    rig.assert_sound("least size");
}

#[test]
fn a_journal_that_was_not_replayed_is() {
    for size in ["128M", "48M"] {
        let rig = Rig::new();
        rig.ok(&["create", "web", "--size", "64M"]);
        let mnt = rig.make_dir("mnt");
        rig.ok(&["mount", "web", text(&mnt)]);
        let file = File::create(mnt.join("synced")).unwrap();
        file.write_all_at(&noise(1, 1 << 20), 0).unwrap();
        file.sync_all().unwrap();
        File::open(&mnt).unwrap().sync_all().unwrap();
        drop(file);
        rig.kill_server();
        rig.ok(&["resize", "web", size]);
        assert_eq!(ext4_size(&rig, "web"), size.trim_end_matches('M').parse::<u64>().unwrap() * MIB);
        mounted(&rig, "web", |mnt| {
            assert!(fs::read(mnt.join("synced")).unwrap() == noise(1, 1 << 20), "{size}")
        });
        rig.assert_sound(size);
    }
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "64M"]);
    let before = rig.raw("web");
    let mnt = rig.make_dir("mnt");
    rig.ok(&["mount", "web", text(&mnt)]);
    for size in ["128M", "48M", "64M"] {
        let why = rig.fails(&["resize", "web", size], 4);
        assert!(why.contains("web"), "{why}");
    }
    rig.ok(&["umount", "web"]);
    for (words, code, named) in [
        (&["resize", "absent", "1G"][..], 3, "absent"),
        (&["resize", "web", "-64M"], 2, "disk size"),
        (&["resize", "web", "+16T"], 2, "16 TiB"),
        (&["resize", "web", "+100"], 2, "multiple of 512"),
    ] {
        let why = rig.fails(words, code);
        assert!(why.contains(named), "{words:?}: {why}");
    }
    let nowhere = rig.make_dir("empty");
    for size in ["128M", "48M"] {
        let said = rig.command(&["resize", "web", size]).env("PATH", &nowhere).output().unwrap();
        let err = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && err.contains("in the package e2fsprogs"), "{err}");
        rig.assert_sound("no tool");
    }
    assert_eq!(size(&rig, "web"), 64 * MIB);
    // No change in anything but the journal and the times of its mounts.
    assert!(ext4_size(&rig, "web") == 64 * MIB && rig.raw("web").len() == before.len());
    rig.assert_sound("refused");
}
