//! A chain of many deltas made into one, beside an import of the same disk: both read, hash and write it all.

use crate::tool::{self, Store};
use crate::{Goal, Row, in_turns};
use serde_json::Value;
use std::time::Instant;

const DELTAS: usize = 32;
/// Of each delta.
const MIB: usize = 8;

pub fn rows() -> Vec<Row> {
    let store = Store::new();
    store.ctl(&["create", "deep", "--size", "1G"]);
    for n in 1..DELTAS {
        store.write("deep", |dir| {
            std::fs::write(dir.join(format!("{}", n % 12)), tool::random(MIB << 20))
        });
        store.ctl(&["commit", "deep"]);
    }
    let raw = store.dir().join("deep.raw");
    let raw = raw.to_str().expect("our own path is text");
    store.ctl(&["export", "deep", raw]);
    let timed = |words: &[&str], reply: &mut Value| {
        tool::settle();
        let start = Instant::now();
        *reply = store.ctl(words);
        let seconds = start.elapsed().as_secs_f64();
        store.ctl(&["rm", "copy"]);
        store.ctl(&["gc"]);
        seconds
    };
    let (mut flat, mut imported) = (Value::Null, Value::Null);
    let [flatten, import] = in_turns([
        &mut || {
            store.ctl(&["clone", "deep", "copy"]);
            timed(&["flatten", "copy"], &mut flat)
        },
        &mut || timed(&["import", "copy", raw], &mut imported),
    ]);
    let attach_ms = |name: &str| {
        let reply = store.ctl(&["attach", name]);
        store.ctl(&["detach", name]);
        reply["took_ms"].as_f64().expect("attach says how long it took")
    };
    store.ctl(&["clone", "deep", "flat"]);
    store.ctl(&["flatten", "flat"]);
    let [deep_ms, flat_ms] = in_turns([&mut || attach_ms("deep"), &mut || attach_ms("flat")]);
    let mib = |reply: &Value, field: &str| reply[field].as_f64().expect("the reply has its sizes") / f64::from(1 << 20);
    let detail = format!(
        "{:.0} MiB in {DELTAS} deltas to {:.0} MiB in one: {flatten:.2} s; import {import:.2} s; attach {deep_ms:.0} ms before, {flat_ms:.0} after",
        mib(&flat, "replaced_bytes"),
        mib(&flat, "delta_bytes")
    );
    vec![Row {
        name: "flatten 32 deltas, to a raw disk's import".into(),
        value: flatten / import,
        unit: "x",
        // It verifies what it reads, which an import cannot.
        goal: Goal::AtMost(2.5),
        detail,
    }]
}
