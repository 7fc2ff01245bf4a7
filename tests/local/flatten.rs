//! Long chains made short: what is shown stays, siblings stay, and what is made can be published.

use super::rig::{Rig, noise, text};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes to an image's disk, by its device.
fn write(rig: &Rig, name: &str, at: u64, bytes: &[u8]) {
    let device = rig.ok(&["attach", name]);
    let disk = File::options().write(true).open(device.trim()).unwrap();
    disk.write_all_at(bytes, at).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    rig.ok(&["detach", name]);
}

/// An image of `deltas` deltas, each with something new and something over what was there.
fn chain(rig: &Rig, name: &str, deltas: u64) {
    rig.ok(&["create", name, "--size", "16M", "--fs", "none"]);
    for n in 0..deltas {
        write(rig, name, (n * 300_000) / 512 * 512, &noise(n + 1, 500_000));
        if n % 3 == 2 {
            write(rig, name, 0, &vec![0; 700_000]);
        }
        rig.ok(&["commit", name]);
    }
}

fn deltas(rig: &Rig, name: &str) -> Vec<String> {
    let info = rig.json(&["info", name]);
    let digest = |delta: &serde_json::Value| delta["digest"].as_str().unwrap().to_string();
    info["chain"].as_array().unwrap().iter().map(digest).collect()
}

#[test]
fn a_long_chain_becomes_short_and_shows_the_same() {
    let rig = Rig::new();
    chain(&rig, "web", 31);
    rig.ok(&["clone", "web", "old"]);
    rig.ok(&["clone", "web", "twin"]);
    write(&rig, "web", 8 << 20, &noise(40, 10_000));
    let commit = rig.json(&["commit", "web"]);
    assert_eq!(
        (&commit["deltas"], &commit["flatten_proposed"]),
        (&32.into(), &true.into()),
        "{commit}"
    );
    write(&rig, "web", 9 << 20, &noise(41, 10_000));
    let said = rig.ok(&["commit", "web"]);
    assert!(
        said.contains("chain has 33 deltas: blockbt-ctl flatten web would make it attach faster"),
        "{said}"
    );
    write(&rig, "web", 100 << 10, &noise(42, 10_000));
    let (before, chain) = (rig.raw("web"), deltas(&rig, "web"));
    let flat = rig.json(&["flatten", "web", "--keep", "2"]);
    assert_eq!((&flat["replaced_deltas"], &flat["deltas"]), (&31.into(), &3.into()), "{flat}");
    let now = deltas(&rig, "web");
    assert!(now[1..] == chain[31..] && !chain.contains(&now[0]), "{now:?}");
    assert!(rig.raw("web") == before, "with its head, the image shows the same");
    rig.assert_sound("flatten --keep");

    // The same chain gives the same delta; the head of one that was used goes on; a sibling on the old chain notices nothing.
    let old = rig.raw("old");
    let twin = rig.json(&["flatten", "twin"]);
    assert_eq!(twin["digest"], flat["digest"], "31 deltas, here and there");
    write(&rig, "twin", 0, &[1; 512]);
    rig.ok(&["commit", "twin"]);
    assert!(rig.raw("old") == old);
    write(&rig, "old", 0, &[1; 512]);
    rig.ok(&["commit", "old"]);
    assert!(
        rig.raw("old") == rig.raw("twin"),
        "the same change on the old chain and on the new one"
    );
    let tree = rig.ok(&["tree"]);
    assert!(tree.contains("web") && tree.contains("twin") && tree.contains("old"), "{tree}");

    rig.ok(&["rm", "old"]);
    rig.ok(&["gc"]);
    assert!(rig.raw("web") == before, "without the old deltas, too");
    let tree = rig.ok(&["tree"]);
    assert_eq!(
        tree.lines().filter(|line| !line.contains("└─")).count(),
        1,
        "all lies on the new base: {tree}"
    );
    rig.ok(&["commit", "web"]);
    let last = rig.json(&["flatten", "web"]);
    assert_eq!((&last["replaced_deltas"], &last["deltas"]), (&4.into(), &1.into()), "{last}");
    assert!(rig.raw("web") == before);
    for words in [
        &["flatten", "web"][..],
        &["flatten", "twin", "--keep", "1"],
        &["flatten", "twin", "--keep", "99"],
    ] {
        let said = rig.ok(words);
        assert!(said.contains("nothing to flatten, chain has"), "{said}");
    }
    let info = rig.ok(&["info", "web"]);
    assert!(info.contains("flatten  4 deltas into"), "{info}");
    rig.assert_sound("flatten");
}

#[test]
fn what_has_rotted_is_not_made_part_of_a_new_delta() {
    let rig = Rig::new();
    chain(&rig, "web", 3);
    let before = deltas(&rig, "web");
    let path = rig
        .root()
        .join("objects")
        .join(&before[1][..2])
        .join(format!("{}.delta", before[1]));
    let delta = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    delta.read_exact_at(&mut byte, 70_000).unwrap();
    delta.write_all_at(&[byte[0] ^ 1], 70_000).unwrap();
    let why = rig.fails(&["flatten", "web"], 5);
    assert!(why.contains(text(&path)) && why.contains("CRC"), "{why}");
    assert_eq!(deltas(&rig, "web"), before);
    delta.write_all_at(&byte, 70_000).unwrap();
    rig.assert_sound("mended");
}

#[test]
fn who_looks_at_an_image_while_it_is_flattened_sees_one_chain_or_the_other() {
    let rig = Rig::new();
    chain(&rig, "web", 12);
    rig.ok(&["clone", "web", "same"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for words in [&["info", "web"][..], &["diff", "web", "same"], &["check", "web"], &["clone", "web"]] {
            let (rig, done) = (&rig, &done);
            scope.spawn(move || {
                for n in 0.. {
                    let fresh = format!("{n}");
                    match words {
                        ["clone", "web"] => rig.ok(&["clone", "web", &fresh]),
                        other => rig.ok(other),
                    };
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for keep in [8, 5, 3, 0] {
            rig.ok(&["flatten", "web", "--keep", &keep.to_string()]);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(deltas(&rig, "web").len(), 1);
    let want = rig.raw("same");
    for name in rig.names() {
        assert!(rig.raw(&name) == want, "{name}");
    }
    rig.assert_sound("looking on");
}

#[test]
fn deltas_of_any_chunk_size_lie_on_each_other() {
    let rig = Rig::new();
    rig.ok(&["create", "web", "--size", "16M", "--fs", "none"]);
    let mut want = vec![0; 16 << 20];
    for (n, size) in ["4K", "1M", "64K", "8K", "512KiB", "4096"].iter().enumerate() {
        let (at, bytes) = (n * 900_096, noise(n as u64 + 1, 1_000_448));
        write(&rig, "web", at as u64, &bytes);
        want[at..at + bytes.len()].copy_from_slice(&bytes);
        rig.ok(&["commit", "web", "--chunk-size", size]);
        assert!(rig.raw("web") == want, "{size}");
    }
    let info = rig.json(&["info", "web"]);
    let sizes: Vec<u64> = info["chain"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["chunk_size_bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(sizes, [4096, 1 << 20, 65536, 8192, 512 << 10, 4096]);
    rig.ok(&["flatten", "web", "--keep", "2"]);
    assert!(rig.raw("web") == want);
    for size in ["2K", "12K", "2M", "0", "x"] {
        let said = rig.ctl(&["commit", "web", "--chunk-size", size]);
        assert!(said.code == Some(2) && said.err.contains("chunk"), "{size}: {said:?}");
    }
    rig.assert_sound("chunk sizes");
}
