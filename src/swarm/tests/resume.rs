//! A fetch that was killed goes on where it was.

use super::*;
use crate::swarm::believed;
use std::os::unix::fs::FileExt;
use std::process::Command;

const LEN: usize = (64 << 20) + 4096;
const MOST_AGAIN: u64 = 16 << 20;

/// Kills its own process once so many bytes are there.
struct KillAt(u64);

impl Watcher for KillAt {
    fn step(&self, step: Step) {
        if let Step::Fetching { have, .. } = step
            && have.0 >= self.0
        {
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
}

/// What the killed process runs; does nothing in an ordinary test run.
#[test]
fn killed_child() {
    let Ok(plan) = std::env::var("BLOCKBT_TEST_RESUME") else { return };
    let [dir, seed, at] = plan.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let node = Node::start(&[]);
    let mut item = Object::noise(LEN).item(Path::new(dir));
    item.peers = vec![seed.parse().unwrap()];
    node.swarm.fetch_object(item, Arc::new(KillAt(at.parse().unwrap()))).unwrap();
    panic!("it should have been killed");
}

#[test]
fn a_killed_fetch_goes_on_and_fetches_little_again() {
    let a = Node::start(&[]);
    let object = Object::noise(LEN);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    for percent in [30, 60, 95] {
        let dir = tempfile::tempdir().unwrap();
        let at = LEN as u64 * percent / 100;
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "swarm::tests::resume::killed_child", "--nocapture"])
            // Its own directory is in ours: the killed cannot tidy up.
            .env("TMPDIR", dir.path())
            .env("BLOCKBT_TEST_RESUME", format!("{}\n{}\n{at}", dir.path().display(), a.addr()))
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status.status);
        assert_eq!(signal, Some(9), "{}", String::from_utf8_lossy(&status.stderr));
        // What was recorded is true of the file.
        let bitmap = dir.path().join(format!("{}.units", object.digest));
        let units = believed::load(&bitmap, object.digest, Bytes(LEN as u64), object.units.len());
        let part = std::fs::File::open(dir.path().join(format!("{}.part", object.digest))).unwrap();
        for unit in (0..object.units.len()).filter(|unit| units.get(*unit)) {
            let start = unit * verity::UNIT as usize;
            let mut data = vec![0; (verity::UNIT as usize).min(LEN - start)];
            part.read_exact_at(&mut data, start as u64).unwrap();
            assert_eq!(verity::unit_hash(&data), object.units[unit], "unit {unit} was believed too early");
        }
        let b = Node::start(&[]);
        let mut item = object.item(dir.path());
        item.peers = vec![a.addr()];
        let fetched = b.swarm.fetch_object(item, Arc::new(())).unwrap();
        println!(
            "{percent} %: {} units recorded, {} fetched after the kill",
            units.ones(),
            fetched.fetched
        );
        assert!(
            fetched.fetched.0 <= LEN as u64 - at + MOST_AGAIN,
            "{percent} %: {}",
            fetched.fetched
        );
        assert!(std::fs::read(fetched.path).unwrap() == object.data);
    }
}

#[test]
fn a_rotten_part_and_a_bitmap_that_boasts_do_no_harm() {
    let (a, b) = (Node::start(&[]), Node::start(&[]));
    let object = Object::noise(4 << 20);
    a.swarm.seed(&object.info, &object.store(a.dir())).unwrap();
    let mut part = object.data.clone();
    part[3 << 19] ^= 1;
    part.truncate(3 << 20);
    std::fs::write(b.dir().join(format!("{}.part", object.digest)), &part).unwrap();
    let mut all = believed::Units::none(object.units.len());
    (0..object.units.len()).for_each(|unit| all.set(unit, true));
    let boast = believed::encode(object.digest, Bytes(4 << 20), &all);
    std::fs::write(b.dir().join(format!("{}.units", object.digest)), boast).unwrap();
    let mut item = object.item(b.dir());
    item.peers = vec![a.addr()];
    let fetched = b.swarm.fetch_object(item, Arc::new(())).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == object.data);
    // A quarter was not there, and one piece of the rest was bad.
    let missing = (1 << 20) + (256 << 10);
    assert!((missing..2 * missing).contains(&fetched.fetched.0), "{}", fetched.fetched);
}
