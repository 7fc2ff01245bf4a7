//! The first attach of a chain.

use super::Bench;
use super::table::{Goal, Row, median};
use super::tool::{self, ms};
use devicemapper::{DM, DevId, DmFlags, DmOptions};
use std::time::Duration;

const ROUNDS: usize = 7;
const CHAINS: [(&str, usize, &str); 8] = [
    ("c1", 1, "layers, 1 GiB"),
    ("c8", 8, "layers, 1 GiB"),
    ("c32", 32, "layers, 1 GiB"),
    ("c128", 128, "layers, 1 GiB"),
    ("r8", 8, "random 4 KiB, 1 GiB"),
    ("r32", 32, "random 4 KiB, 1 GiB"),
    ("r128", 128, "random 4 KiB, 1 GiB"),
    ("w32", 32, "layers, 64 GiB"),
];

pub fn rows(bench: &Bench) -> Vec<Row> {
    let mut took = CHAINS.map(|_| Vec::new());
    let mut away = CHAINS.map(|_| Vec::new());
    let mut targets = [0; CHAINS.len()];
    for _ in 0..=ROUNDS {
        for (number, (image, ..)) in CHAINS.iter().enumerate() {
            // What the last detach left for later is nobody's first attach.
            tool::settle();
            std::thread::sleep(Duration::from_millis(50));
            took[number].push(ms(|| bench.ours.attach(image, true)));
            targets[number] = count_targets();
            away[number].push(ms(|| bench.ours.detach(image)));
        }
    }
    let one = |number: usize| {
        let (_, depth, kind) = CHAINS[number];
        // The first brings the pages in.
        let (took, away) = (median(took[number][1..].to_vec()), median(away[number][1..].to_vec()));
        let limit = 3.0 + depth as f64 + 0.002 * targets[number] as f64;
        Row {
            what: format!("first attach, {kind}"),
            deltas: Some(depth),
            ours: format!("{took:.1} ms ({} targets; detach {away:.1} ms)", targets[number]),
            beside: String::new(),
            goal: Goal::at_most(took / limit, 1.0, &format!("x {limit:.1} ms (3 + 1 a delta + 0.002 a target)")),
        }
    };
    (0..CHAINS.len()).map(one).collect()
}

/// Of all lower devices of ours that there are: one is attached.
fn count_targets() -> usize {
    let dm = DM::new().expect("the guest has device-mapper");
    let all = dm.list_devices().expect("devices can be listed");
    let ours = all.iter().filter(|(name, ..)| name.to_string().contains("-lower-"));
    let table = |name| dm.table_status(&DevId::Name(name), DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE));
    ours.map(|(name, ..)| table(name).expect("a device has a table").1.len()).sum()
}
