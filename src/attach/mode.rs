//! In which way an image becomes a block device, and how that is chosen.
//!
//! Refuses to know how each is made. Invariant: a mode that was asked for is taken or refused, never exchanged for another.

use super::AttachError;
use crate::ids::clip;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// What an attached image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One device-mapper table for the whole chain.
    Flat,
    /// One dm-snapshot per delta, one upon the other.
    Stack,
    /// A FUSE file, and a loop device on it.
    User,
}

/// A mode, and why it is this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub mode: Mode,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mode \"{text}\": want flat, stack or user")]
pub struct ModeError {
    text: String,
}

/// `kernel`: why device-mapper cannot be used here, if it cannot.
pub fn choose(asked: Option<Mode>, kernel: impl FnOnce() -> Result<(), String>) -> Result<Choice, AttachError> {
    let (mode, why) = match (asked, asked.is_none_or(Mode::is_kernel).then(kernel)) {
        (Some(mode), Some(Err(why))) => return Err(AttachError::NoDeviceMapper { mode, why }),
        (Some(mode), _) => (mode, "asked for".into()),
        (None, Some(Err(why))) => (Mode::User, format!("no device-mapper: {why}")),
        (None, _) => (Mode::Flat, "this kernel has device-mapper".into()),
    };
    Ok(Choice { mode, why })
}

impl Mode {
    /// Whether nothing of ours has to run while it is attached.
    pub fn is_kernel(self) -> bool {
        self != Mode::User
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Flat => "flat",
            Mode::Stack => "stack",
            Mode::User => "user",
        })
    }
}

impl FromStr for Mode {
    type Err = ModeError;
    fn from_str(text: &str) -> Result<Mode, ModeError> {
        match text {
            "flat" => Ok(Mode::Flat),
            "stack" => Ok(Mode::Stack),
            "user" => Ok(Mode::User),
            other => Err(ModeError { text: clip(other) }),
        }
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_what_was_asked_for_or_what_the_kernel_can() {
        let no = || Err("it is not there".to_string());
        let mode = |asked, kernel: fn() -> Result<(), String>| choose(asked, kernel).map(|choice| choice.mode);
        assert_eq!(mode(None, || Ok(())).unwrap(), Mode::Flat);
        assert_eq!(mode(Some(Mode::Stack), || Ok(())).unwrap(), Mode::Stack);
        assert_eq!(mode(Some(Mode::User), || panic!("nobody has to ask")).unwrap(), Mode::User);
        let chosen = choose(None, no).unwrap();
        assert_eq!((chosen.mode, &*chosen.why), (Mode::User, "no device-mapper: it is not there"));
        let error = choose(Some(Mode::Flat), no).unwrap_err();
        assert!(error.to_string().ends_with("it is not there"), "{error}");
    }

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in [Mode::Flat, Mode::Stack, Mode::User] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("Flat".parse::<Mode>().is_err() && "".parse::<Mode>().is_err());
    }
}
