//! A thousand attached clones of one chain.

use super::Bench;
use super::bare::{self, Heads};
use super::table::{Goal, Row, median};
use super::tool::{self, ms};

const CLONES: usize = 1000;
const PART: usize = 100;
const DEPTH: usize = 32;
/// Of the head's COW device: 1 GiB in chunks of 16 KiB.
const CHUNKS: f64 = 65536.0;

pub fn rows(bench: &Bench) -> Vec<Row> {
    let image = format!("c{DEPTH}");
    bench.ours.clone_of(&image, "keeper");
    bench.ours.attach("keeper", false);
    let mut took = [Vec::new(), Vec::new()];
    let mut free = vec![free_kib()];
    for number in 0..CLONES {
        let name = format!("many{number}");
        took[0].push(ms(|| bench.ours.clone_of(&image, &name)));
        took[1].push(ms(|| drop(bench.ours.attach(&name, false))));
        if (number + 1) % PART == 0 {
            free.push(free_kib());
        }
    }
    let mut gone = Vec::new();
    for number in 0..CLONES {
        let name = format!("many{number}");
        gone.push(ms(|| {
            bench.ours.detach(&name);
            bench.ours.remove(&name);
        }));
    }
    // The same beside it by hand, over the same chain.
    let mut heads = Heads::new(bench.dir("heads"));
    let mut parts = bare::PARTS.map(|_| Vec::new());
    for _ in 0..CLONES {
        heads.add().iter().zip(&mut parts).for_each(|(took, part)| part.push(*took));
    }
    let mut bare_gone = Vec::new();
    while let Some(took) = heads.take() {
        bare_gone.push(took);
    }
    drop(heads);
    bench.ours.detach("keeper");
    bench.ours.remove("keeper");
    let each = bare::PARTS.iter().zip(&parts).map(|(name, part)| {
        let [first, last] = ends(part);
        format!("{name} {first:.1} {last:.1}")
    });
    println!("bare heads, ms, first and last {PART}: {}", each.collect::<Vec<_>>().join(", "));
    let memory: Vec<f64> = free.windows(2).map(|pair| (pair[0] - pair[1]) / PART as f64).collect();
    let all_memory = (free[0] - free[free.len() - 1]) / CLONES as f64;
    let [cloned, attached] = took.each_ref().map(|took| ends(took));
    let whole = sums(&took);
    let ([first, last], [gone_first, gone_last]) = (ends(&whole), ends(&gone));
    let bare = sums(&parts);
    let ([bare_first, bare_last], [bare_gone_first, bare_gone_last]) = (ends(&bare), ends(&bare_gone));
    // The head's 0.75 MiB, 9 bytes a chunk, three chunks, and the loop's 74 KiB.
    let formula = 768.0 + 9.0 * CHUNKS / 1024.0 + 3.0 * 16.0 + 74.0;
    let (memory_first, memory_last) = (memory[0], memory[memory.len() - 1]);
    vec![
        Row {
            what: format!("{CLONES} clones, made and attached: time for each"),
            deltas: Some(DEPTH),
            ours: format!(
                "{:.1} ms; first {PART} {first:.1} (clone {:.1}, attach {:.1}), last {PART} {last:.1} ({:.1}, {:.1}); detach and rm: with all \
                 {gone_first:.1}, with few {gone_last:.1}",
                median(whole),
                cloned[0],
                attached[0],
                cloned[1],
                attached[1]
            ),
            beside: format!(
                "bare ioctls {:.1} ms; first {PART} {bare_first:.1}, last {PART} {bare_last:.1} ({:.2}x); removed: {bare_gone_first:.1}, {bare_gone_last:.1}",
                median(bare),
                bare_last / bare_first
            ),
            goal: Goal::at_most(last / first, 1.25, "x the first hundred"),
        },
        Row {
            what: format!("{CLONES} clones: kernel memory of each"),
            deltas: Some(DEPTH),
            ours: format!("{all_memory:.0} KiB; first {PART} {memory_first:.0}, last {PART} {memory_last:.0}"),
            beside: format!("formula {formula:.0} KiB (1 GiB virtual)"),
            goal: Goal::at_most(all_memory / formula, 1.15, "x the formula"),
        },
    ]
}

/// Of the first and of the last hundred.
fn ends(values: &[f64]) -> [f64; 2] {
    [&values[..PART], &values[CLONES - PART..]].map(|values| median(values.to_vec()))
}

fn sums(parts: &[Vec<f64>]) -> Vec<f64> {
    (0..CLONES).map(|number| parts.iter().map(|part| part[number]).sum()).collect()
}

fn free_kib() -> f64 {
    tool::drop_caches();
    tool::memory("MemFree")
}
