//! Verbs whose time must not depend on an image's size or depth.

use crate::tool::{self, Store};
use crate::{Goal, Row, in_turns};

pub fn rows() -> Vec<Row> {
    let store = Store::new();
    store.chain("small", "1G", 1);
    store.chain("large", "10G", 20);
    let clone_ms = |of: &str| {
        tool::settle();
        let took_us = store.ctl(&["clone", of, "copy"])["took_us"]
            .as_f64()
            .expect("clone says how long it took");
        store.ctl(&["rm", "copy"]);
        took_us / 1e3
    };
    let [small, large] = in_turns([&mut || clone_ms("small"), &mut || clone_ms("large")]);
    let dir = store.mounted();
    let [mount] = in_turns([&mut || {
        let reply = store.ctl(&["mount", "large", dir.to_str().expect("our own path is text")]);
        store.ctl(&["umount", "large"]);
        reply["took_ms"].as_f64().expect("mount says how long it took")
    }]);
    let detail = format!("10 GiB, 20 deltas {large:.2} ms; 1 GiB, 1 delta {small:.2} ms");
    vec![
        Row {
            name: "clone, inside the verb".into(),
            value: large,
            unit: "ms",
            goal: Goal::AtMost(10.0),
            detail,
        },
        Row {
            name: "mount, user mode".into(),
            value: mount,
            unit: "ms",
            goal: Goal::AtMost(150.0),
            detail: "10 GiB, 20 deltas, inside the verb".into(),
        },
    ]
}
