//! `kill -9` at every stop point of `pull`: the next start tidies up, and the next pull brings the image.

use crate::rig::*;
use blockbt::store::stop::STOP_POINTS;
use std::os::unix::process::ExitStatusExt;

/// A publisher of an image with two deltas.
fn publisher() -> (Host, String) {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 2, 7);
    change(&a, "data", 1 << 20, 8);
    let link = Host::with_peer(&a.publish("data"), a.port);
    a.start();
    (a, link)
}

fn points() -> impl Iterator<Item = &'static str> {
    STOP_POINTS.iter().copied().filter(|point| point.starts_with("pull."))
}

fn is_whole(point: &str) -> bool {
    matches!(point, "pull.renamed" | "pull.done")
}

/// The image is whole now, and nothing else is there.
fn is_well(a: &Host, b: &Host, link: &str, point: &str) {
    assert_eq!(b.images().len(), usize::from(is_whole(point)), "{point}");
    let is_empty = |dir: &str| std::fs::read_dir(b.root.join(dir)).unwrap().count() == 0;
    until(point, || is_empty("tmp") && is_empty("journal"));
    let pulled = b.ok(&["pull", link]);
    let fetched = number(&pulled["fetched_bytes"]);
    match point {
        "pull.renamed" | "pull.done" | "pull.prepared" | "pull.manifest" => assert_eq!(fetched, 0, "{point}"),
        // The first delta had arrived.
        "pull.object" | "pull.sidecars" => assert!(fetched < 2 << 20, "{point}: {fetched}"),
        _ => assert!(fetched > 3 << 20, "{point}: {fetched}"),
    }
    assert_eq!(a.chain("data"), b.chain("data"), "{point}");
    b.assert_tidy();
    b.assert_sound();
}

#[test]
fn a_command_killed_at_any_step_of_a_pull_leaves_nothing_in_the_way() {
    let (a, link) = publisher();
    for point in points() {
        let b = Host::new(&Net::Link);
        let died = b.spawn(&["pull", &link], &[("BLOCKBT_STOP_AT", point)]).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&died.stderr);
        assert_eq!(died.status.signal(), Some(9), "{point}: {said}");
        is_well(&a, &b, &link, point);
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_a_pull_seeds_the_image_after_the_next() {
    let (mut a, link) = publisher();
    let mut last = None;
    for point in points() {
        let mut b = Host::new(&Net::Link);
        b.start_with(&[("BLOCKBT_STOP_AT", point)]);
        let (code, said) = b.fails(&["pull", &link]);
        assert_eq!(code, 1, "{said}");
        b.wait_dead();
        b.start();
        // It makes the torrents' files of an image that it has found: of the manifest, and of two deltas and their metas.
        let seeded = || b.ok(&["peers"])["objects"].as_array().unwrap().len();
        until(point, || !is_whole(point) || seeded() == 5);
        is_well(&a, &b, &link, point);
        assert!(!b.log().contains("panicked"), "{}", b.log());
        if point == "pull.object" {
            last = Some(b);
        }
    }
    a.stop();
    let b = last.unwrap();
    let c = Host::new(&Net::Link);
    c.ok(&["pull", &Host::with_peer(&link, b.port)]);
    assert_eq!(b.chain("data"), c.chain("data"));
}
