//! The plain path: publish here, pull there.

use crate::rig::*;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// A directory to import: noise, a link and a hole.
fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(dir.join("noise"), noise(20 << 20, 1)).unwrap();
    std::os::unix::fs::symlink("../noise", dir.join("etc/link")).unwrap();
    File::create(dir.join("hole")).unwrap().set_len(5 << 20).unwrap();
}

/// Bytes of all files below `dir`, each inode once. Not their blocks: when a file system gives those is its own affair.
fn bytes(dir: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--bytes", text(dir)]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn same_bytes(a: &Path, b: &Path) {
    let status = Command::new("cmp").args([a, b]).status().unwrap();
    assert!(status.success(), "{a:?} and {b:?} differ");
}

fn same_trees(a: &Path, b: &Path) {
    let output = Command::new("rsync")
        .args(["-aHAXn", "--delete", "--checksum", "-i"])
        .args([format!("{}/", text(a)), format!("{}/", text(b))])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let differs = said.lines().any(|line| !line.contains("lost+found"));
    assert!(output.status.success() && !differs, "{said}");
}

#[test]
fn an_image_travels_by_the_dht_alone_and_goes_on_from_there() {
    let mut boot = Host::new(&Net::Dht(&[]));
    boot.start();
    let mut a = Host::new(&Net::Dht(&[&boot]));
    let mut b = Host::new(&Net::Dht(&[&boot]));
    let mut c = Host::new(&Net::Dht(&[&boot]));
    a.start();
    b.start();
    let source = a.dir().join("tree");
    tree(&source);
    a.ok(&["import", "debian", text(&source), "--size", "256M"]);
    let before = bytes(&a.root);
    let link = a.publish("debian");
    let published = a.ok(&["publish", "debian"]);
    assert_eq!(published["link"].as_str(), Some(&*link), "a second time is the same link");
    assert_eq!(published["seeding"], true);
    let grown = bytes(&a.root).saturating_sub(before);
    assert!(grown < 512 << 10, "publishing takes {grown} bytes of disk");

    let pulled = b.ok(&["pull", &link]);
    let base = a.chain("debian");
    let size = a.object(&base[0]).metadata().unwrap().len();
    let at_most = bytes(&a.root).saturating_sub(before);
    assert!(at_most < 512 << 10, "seeding takes {at_most} bytes of disk");
    assert_eq!((number(&pulled["deltas"]), number(&pulled["skipped_deltas"])), (1, 0));
    assert_eq!(number(&pulled["total_bytes"]), size);
    assert!(number(&pulled["fetched_bytes"]) >= size, "{pulled}");
    assert_eq!(b.chain("debian"), base);
    same_bytes(&a.object(&base[0]), &b.object(&base[0]));
    let object = b.object(&base[0]).metadata().unwrap();
    let delta = b.store().delta_path(&"debian".parse().unwrap(), 0).metadata().unwrap();
    assert_eq!((object.ino(), object.nlink()), (delta.ino(), 2), "one file with two names");
    b.assert_tidy();
    let dir = b.dir().join("mnt");
    fs::create_dir(&dir).unwrap();
    b.ok(&["mount", "debian", text(&dir), "--read-only"]);
    same_trees(&source, &dir);
    b.ok(&["umount", "debian"]);

    let peers = b.ok(&["peers"]);
    let object = delta_of(&peers, &base[0].to_string());
    // In a long pull the publisher looks for peers as well: some may have come over a connection that it made.
    let all = object["peers"].as_array().unwrap();
    let of_a = format!("127.0.0.1:{}", a.port);
    assert!(
        all.iter().any(|peer| peer["address"] == *of_a && peer["found_by"] == "dht"),
        "{peers}"
    );
    let sum = |field: &str| all.iter().map(|peer| number(&peer[field])).sum::<u64>();
    assert!(
        sum("received_bytes") >= size && sum("pieces") == size.div_ceil(256 << 10),
        "{peers}"
    );
    until("the publisher's count", || {
        number(&delta_of(&a.ok(&["peers"]), &base[0].to_string())["sent_bytes"]) >= size
    });

    let again = b.ok(&["pull", &link]);
    assert_eq!((number(&again["skipped_deltas"]), number(&again["fetched_bytes"])), (1, 0));
    let other = b.ok(&["pull", &link, "--name", "other"]);
    assert_eq!((number(&other["skipped_deltas"]), number(&other["fetched_bytes"])), (1, 0));

    a.ok(&["clone", "debian", "web"]);
    a.ok(&["mount", "web", text(&dir)]);
    let mut file = File::create(dir.join("more")).unwrap();
    file.write_all(&noise(3 << 20, 2)).unwrap();
    drop(file);
    fs::remove_file(dir.join("hole")).unwrap();
    a.ok(&["umount", "web"]);
    a.ok(&["commit", "web"]);
    let link = a.publish("web");
    let pulled = b.ok(&["pull", &link]);
    let fetched = number(&pulled["fetched_bytes"]);
    assert_eq!((number(&pulled["deltas"]), number(&pulled["skipped_deltas"])), (2, 1));
    assert!((3 << 20..10 << 20).contains(&fetched), "{pulled}");

    // What was pulled is given on: the publisher is not needed any more.
    a.stop();
    c.start();
    c.ok(&["pull", &link]);
    assert_eq!(c.chain("web"), b.chain("web"));
    c.ok(&["mount", "web", text(&dir), "--read-only"]);
    assert!(fs::read(dir.join("more")).unwrap() == noise(3 << 20, 2) && !dir.join("hole").exists());
    c.ok(&["umount", "web"]);
    for host in [&b, &c] {
        host.assert_sound();
        host.assert_tidy();
    }
}

fn delta_of<'a>(peers: &'a serde_json::Value, id: &str) -> &'a serde_json::Value {
    let objects = peers["objects"].as_array().unwrap().iter();
    let mut deltas = objects.filter(|object| object["kind"] == "delta" && object["id"] == id);
    deltas.next().unwrap_or_else(|| panic!("no delta {id} in {peers}"))
}

#[test]
fn two_daemons_that_bootstrap_on_each_other_are_enough() {
    let mut a = Host::new(&Net::Dht(&[]));
    let mut b = Host::new(&Net::Dht(&[&a]));
    a.configure(true, &[b.port]);
    a.start();
    a.import_noise("data", 8, 3);
    let link = a.publish("data");
    b.start();
    b.ok(&["pull", &link]);
    assert_eq!(a.chain("data"), b.chain("data"));
}

#[test]
fn without_a_daemon_what_is_published_is_seeded_from_the_daemons_start_and_a_command_pulls_with_a_swarm_of_its_own() {
    let mut boot = Host::new(&Net::Dht(&[]));
    boot.start();
    let mut a = Host::new(&Net::Dht(&[&boot]));
    a.import_noise("data", 8, 4);
    let published = a.ok(&["publish", "data"]);
    assert_eq!(published["seeding"], false);
    let link = published["link"].as_str().unwrap();
    a.start();
    let mut b = Host::new(&Net::Dht(&[]));
    let node = format!("127.0.0.1:{}", boot.port);
    b.ok(&["pull", link, "--bootstrap", &node]);
    assert_eq!(a.chain("data"), b.chain("data"));
    b.assert_tidy();
    b.assert_sound();
    let again = b.ok(&["pull", link]);
    assert_eq!(number(&again["fetched_bytes"]), 0, "nobody is asked for what is here");

    b.configure(true, &[boot.port]);
    b.start();
    a.kill();
    let c = Host::new(&Net::Dht(&[]));
    c.ok(&["pull", link, "--bootstrap", &node]);
    let unknown = format!("magnet:?xt=urn:btih:{}&x.bbt={}", "1".repeat(40), "2".repeat(64));
    let (code, said) = b.fails(&["pull", &unknown, "--bootstrap", &node]);
    assert!(code == 2 && said.contains("--bootstrap"), "{said}");
}

#[test]
fn an_object_that_is_seeded_is_never_written_to() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 8, 5);
    let object = a.object(&a.chain("data")[0]);
    let link = Host::with_peer(&a.publish("data"), a.port);
    let before = object.metadata().unwrap();
    a.start();
    let b = Host::new(&Net::Link);
    b.ok(&["pull", &link]);
    let after = object.metadata().unwrap();
    assert_eq!(
        (before.mtime_nsec(), before.ctime_nsec(), before.mode() & 0o777),
        (after.mtime_nsec(), after.ctime_nsec(), 0o400)
    );
}

#[test]
fn a_flattened_image_is_published_anew_and_travels_with_what_was_made_before_and_after() {
    let mut a = Host::new(&Net::Link);
    a.start();
    a.import_noise("data", 4, 6);
    for n in 0..3 {
        change(&a, "data", 1 << 20 >> n, 7 + n);
    }
    let old_link = Host::with_peer(&a.publish("data"), a.port);
    let b = Host::new(&Net::Link);
    b.ok(&["pull", &old_link, "--name", "old"]);
    let flat = a.ok(&["flatten", "data", "--keep", "1"]);
    assert_eq!((number(&flat["deltas"]), flat["unpublished"].as_bool()), (2, Some(true)), "{flat}");
    assert!(a.ok(&["info", "data"])["published"].is_null());
    change(&a, "data", 5000, 20);
    let link = a.publish("data");
    assert!(!old_link.starts_with(&link), "another chain is another link");

    // B has the delta that was kept from the old chain; it needs the new base and the new top.
    let pulled = b.ok(&["pull", &Host::with_peer(&link, a.port)]);
    assert_eq!((number(&pulled["deltas"]), number(&pulled["skipped_deltas"])), (3, 1), "{pulled}");
    assert_eq!(b.chain("data"), a.chain("data"));
    let raw = |host: &Host, image: &str| {
        let target = host.dir().join("out.raw");
        host.ok(&["export", image, text(&target)]);
        fs::read(&target).unwrap()
    };
    assert!(raw(&b, "data") == raw(&a, "data"));
    let again = b.ok(&["flatten", "old", "--keep", "1"]);
    assert_eq!(
        again["digest"], flat["digest"],
        "the same chain is flattened to the same delta on every host"
    );
    a.ok(&["gc"]);
    for host in [&a, &b] {
        host.assert_sound();
        host.assert_tidy();
    }
}
