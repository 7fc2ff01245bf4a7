//! The command line: clap's definitions, and what a reply looks like on a terminal.
//!
//! Refuses to know how a verb is carried out, and whether a daemon or this process does it.
//! Invariant: results go to stdout, everything else to stderr; the exit code comes from one `match`.

pub mod args;
mod bars;
pub mod daemon;
mod exit;
mod run;
mod show;
mod table;
mod warnings;

pub use exit::{Exit, exit_of_error, exit_of_reply};
pub use run::main;
pub use show::{human, json_lines};
