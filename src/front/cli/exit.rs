//! Exit codes, the one place they come from.
//!
//! Refuses to know texts. Invariant: 0 is said only when all that was asked is done and nothing was found damaged.

use crate::service::{ErrorKind, Reply};
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    InUse = 4,
    Damaged = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

pub fn exit_of_error(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Failed => Exit::Failed,
        ErrorKind::Usage => Exit::Usage,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::InUse => Exit::InUse,
        ErrorKind::Damaged => Exit::Damaged,
    }
}

/// A check that found something is done, and yet not well.
pub fn exit_of_reply(reply: &Reply) -> Exit {
    match reply {
        Reply::Check(check) if check.findings.iter().any(|finding| !finding.repaired) => Exit::Damaged,
        Reply::List(list) if !list.unreadable.is_empty() => Exit::Damaged,
        _ => Exit::Done,
    }
}
