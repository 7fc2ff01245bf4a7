//! A pull that was killed goes on where it was.

use crate::rig::*;
use crate::throttle::Throttle;
use blockbt::format::meta::Meta;
use blockbt::format::verity::{UNIT, unit_hash};
use blockbt::ids::Digest;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const MEGABYTES: usize = 64;
/// What may come twice.
const AGAIN: u64 = 16 << 20;
/// The manifest, the `.meta` and the protocol's own bytes, and what each connection has passed on in its last step.
const AROUND: u64 = 1 << 20;

/// Counts the units that the killed process has recorded as believed; each is right in what it left.
fn believed(a: &Host, b: &Host, digest: &Digest) -> usize {
    let meta = Meta::parse(&a.store().meta(digest).unwrap()).unwrap();
    let incoming = b.store().incoming_dir();
    // 52 bytes of header, and then a bit for each unit.
    let bitmap = fs::read(incoming.join(format!("{digest}.units"))).unwrap_or_default();
    let bits = bitmap.get(52..).unwrap_or_default();
    let part = File::open(incoming.join(format!("{digest}.part"))).unwrap();
    let mut count = 0;
    for (unit, hash) in meta.units.iter().enumerate() {
        if bits.get(unit / 8).is_some_and(|byte| byte & (1 << (unit % 8)) != 0) {
            let at = unit as u64 * UNIT;
            let mut data = vec![0; UNIT.min(meta.file_len.0 - at) as usize];
            part.read_exact_at(&mut data, at).unwrap();
            assert!(unit_hash(&data) == *hash, "unit {unit} is believed, and wrong");
            count += 1;
        }
    }
    count
}

fn goes_on_after_a_kill(with_daemon: bool) {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", MEGABYTES, 6);
    let link = a.publish("data");
    let digest = a.chain("data")[0];
    let size = a.object(&digest).metadata().unwrap().len();
    a.start();
    for percent in [30, 60, 95] {
        let passed = size * percent / 100;
        let throttle = Throttle::start(a.port, passed);
        let link = Host::with_peer(&link, throttle.port);
        let mut b = Host::new(&Net::Link);
        if with_daemon {
            b.start();
        }
        let mut pull = b.spawn(&["pull", &link], &[]);
        until("the throttle", || throttle.holds());
        match with_daemon {
            true => b.kill(),
            false => pull.kill().unwrap(),
        }
        assert!(!pull.wait().unwrap().success());
        let units = believed(&a, &b, &digest);
        throttle.open();
        if with_daemon {
            b.start();
        }
        let again = b.ok(&["pull", &link]);
        let fetched = number(&again["fetched_bytes"]);
        println!("{percent} %: {units} units believed, {fetched} of {size} bytes fetched after the kill");
        assert!(
            passed + fetched <= size + AGAIN + AROUND,
            "{percent} %: {passed} and {fetched} of {size}"
        );
        assert!(passed + fetched + AROUND >= size, "{percent} %: it cannot have come otherwise");
        assert!(fs::read(b.object(&digest)).unwrap() == fs::read(a.object(&digest)).unwrap());
        b.assert_tidy();
    }
}

#[test]
fn a_pull_goes_on_after_its_daemon_was_killed() {
    goes_on_after_a_kill(true);
}

#[test]
fn a_pull_goes_on_after_its_command_was_killed() {
    goes_on_after_a_kill(false);
}
