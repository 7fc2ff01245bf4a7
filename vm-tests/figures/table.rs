//! The table of figures, and what is made of many measurements.

use std::fmt::Write;

/// One line.
pub struct Row {
    pub what: String,
    pub deltas: Option<usize>,
    pub ours: String,
    pub beside: String,
    pub goal: Option<Goal>,
}

/// A limit of a ratio, or of whatever `text` says, and whether it is kept.
pub struct Goal {
    pub text: String,
    pub value: f64,
    pub reached: bool,
}

impl Goal {
    pub fn at_most(value: f64, limit: f64, of: &str) -> Option<Goal> {
        Some(Goal {
            text: format!("at most {limit}{of}"),
            value,
            reached: value <= limit,
        })
    }

    pub fn at_least(value: f64, limit: f64, of: &str) -> Option<Goal> {
        Some(Goal {
            text: format!("at least {limit}{of}"),
            value,
            reached: value >= limit,
        })
    }
}

#[derive(Default)]
pub struct Table {
    lines: String,
    goals: usize,
    missed: Vec<String>,
}

impl Table {
    pub fn add(&mut self, rows: Vec<Row>) {
        for row in rows {
            let deltas = row.deltas.map(|count| count.to_string()).unwrap_or_default();
            let (goal, reached) = match &row.goal {
                None => (String::new(), String::new()),
                Some(goal) => (
                    goal.text.clone(),
                    format!("{:.2}: {}", goal.value, if goal.reached { "yes" } else { "**no**" }),
                ),
            };
            if let Some(goal) = &row.goal {
                self.goals += 1;
                if !goal.reached {
                    self.missed.push(format!("{} {deltas}", row.what));
                }
            }
            let line = format!("| {} | {deltas} | {} | {} | {goal} | {reached} |", row.what, row.ours, row.beside);
            println!("{line}");
            writeln!(self.lines, "{line}").expect("a String takes all");
        }
    }

    pub fn text(&self) -> String {
        let head = "| | deltas | blockbt | beside it, in the same run | goal | reached |\n|---|---|---|---|---|---|\n";
        let verdict = match &self.missed[..] {
            [] => format!("All {} goals are reached.", self.goals),
            missed => format!("{} of {} goals are missed: {}.", missed.len(), self.goals, missed.join(", ")),
        };
        format!("{head}{}\n{verdict}\n", self.lines)
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures all of `what` in turns, so that a busy moment hits each of them; the median of each.
pub fn in_turns<const N: usize>(rounds: usize, mut what: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut values = [(); N].map(|()| Vec::new());
    for _ in 0..rounds {
        for (measure, values) in what.iter_mut().zip(&mut values) {
            values.push(measure());
        }
    }
    values.map(median)
}
