//! `make bench`: the figures that blockbt promises, in one table, `target/bench.md`.
//!
//! What is compared is measured in turns in one run on one machine, nine times each, and the medians are set against each other; where a row
//! says "x", it is a ratio to the other tool's time or speed. `make bench ROWS="map clone"` measures only rows whose name has one of the words.

mod flatten;
mod import;
mod map;
mod reads;
mod seeding;
mod tool;
mod transfer;
mod verbs;

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

/// How often everything is measured.
pub const ROUNDS: usize = 9;

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
pub struct Row {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub goal: Goal,
    /// The numbers that the value comes from.
    pub detail: String,
}

impl Row {
    fn reached(&self) -> bool {
        match self.goal {
            Goal::AtMost(limit) => self.value <= limit,
            Goal::AtLeast(limit) => self.value >= limit,
        }
    }

    fn line(&self) -> String {
        let goal = match self.goal {
            Goal::AtMost(limit) => format!("at most {limit}"),
            Goal::AtLeast(limit) => format!("at least {limit}"),
        };
        let reached = if self.reached() { "yes" } else { "**no**" };
        format!(
            "| {} | {:.2} {} | {goal} | {reached} | {} |",
            self.name, self.value, self.unit, self.detail
        )
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures all of `what` in turns, so that a busy moment hits each of them; the median of each.
pub fn in_turns<const N: usize>(mut what: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut values = [(); N].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        for (measure, values) in what.iter_mut().zip(&mut values) {
            values.push(measure());
        }
    }
    values.map(median)
}

/// Uniform numbers, the same in each run (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

type Group = (&'static str, fn() -> Vec<Row>);

const GROUPS: &[Group] = &[
    ("clone mount", verbs::rows),
    ("import", import::rows),
    ("flatten", flatten::rows),
    ("map", map::rows),
    ("reads", reads::rows),
    ("transfer", transfer::rows),
    ("seeding", seeding::rows),
];

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let groups = GROUPS
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())));
    let mut table = String::from("| figure | here | goal | reached | from |\n|---|---|---|---|---|\n");
    let (mut rows, mut missed) = (0, 0);
    let load = tool::load();
    print!("{table}");
    for (_, measure) in groups {
        for row in measure() {
            println!("{}", row.line());
            writeln!(table, "{}", row.line()).expect("a String takes all");
            rows += 1;
            missed += usize::from(!row.reached());
        }
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let note = format!(
        "\nMedians of {ROUNDS}, in turns. {cores} cores; load average {load} at the start, {} at the end.",
        tool::load()
    );
    println!("{note}");
    writeln!(table, "{note}").expect("a String takes all");
    let path = tool::target().join("bench.md");
    if let Err(error) = std::fs::write(&path, table) {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    println!("\n{rows} figures, {missed} missed; written to {}", shown(&path));
    ExitCode::SUCCESS
}

fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
