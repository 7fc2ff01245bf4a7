//! The one error that leaves `service`: a kind to act on, and text to read.
//!
//! Refuses to know exit codes and HTTP statuses: each front end has one `match` for that.
//! Invariant: no text holds a control character, wherever it came from.

use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request itself is wrong.
    Usage,
    NotFound,
    /// Attached, mounted, locked, or already there.
    InUse,
    /// Bytes are not what they must be.
    Damaged,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceError {
    pub kind: ErrorKind,
    pub message: String,
    /// From the nearest cause to the first.
    #[serde(default)]
    pub causes: Vec<String>,
}

impl ServiceError {
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> ServiceError {
        ServiceError {
            kind,
            message: plain(&message.to_string()),
            causes: Vec::new(),
        }
    }

    /// Takes message and causes from `error` and what is under it.
    pub fn from_error(kind: ErrorKind, error: &(dyn Error + 'static)) -> ServiceError {
        ServiceError::new(kind, error).because(error.source())
    }

    /// Says what it is about; what was said so far becomes the nearest cause.
    pub fn of(mut self, what: impl fmt::Display) -> ServiceError {
        let cause = std::mem::replace(&mut self.message, plain(&what.to_string()));
        self.causes.insert(0, cause);
        self
    }

    /// Adds `cause` and what is under it.
    pub fn because(mut self, cause: Option<&(dyn Error + 'static)>) -> ServiceError {
        let mut next = cause;
        while let Some(cause) = next {
            let text = plain(&cause.to_string());
            // Some libraries print their cause in their own message, too.
            if self.causes.last().unwrap_or(&self.message) != &text {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }
}

impl fmt::Display for ServiceError {
    /// `message: cause: cause`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for ServiceError {}

/// `text` with its control characters escaped, so that it can be shown on a terminal.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("write of {path}")]
    struct Outer {
        path: &'static str,
        #[source]
        cause: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Echo(#[source] io::Error);

    #[test]
    fn a_cause_that_says_the_same_again_is_left_out() {
        let error = ServiceError::from_error(ErrorKind::Failed, &Echo(io::Error::from(io::ErrorKind::StorageFull)));
        assert_eq!(error.to_string(), "no storage space");
    }

    #[test]
    fn causes_are_listed_and_control_characters_escaped() {
        let outer = Outer {
            path: "a\u{1b}[2Jb",
            cause: io::Error::from(io::ErrorKind::StorageFull),
        };
        let error = ServiceError::from_error(ErrorKind::Failed, &outer);
        assert_eq!(error.to_string(), "write of a\\u{1b}[2Jb: no storage space");
    }
}
