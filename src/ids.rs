//! Names of things: digests, info-hashes, images, stores.
//!
//! Knows no paths. Invariant: an [`ImageName`] that exists has passed its check.

use aws_lc_rs::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{kind} \"{text}\": want {digits} hexadecimal digits", digits = len * 2)]
    Hex { kind: &'static str, text: String, len: usize },
    #[error("image name \"{name}\": {why}")]
    Name { name: String, why: &'static str },
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(IdError::Hex { kind: $kind, text: clip(text), len: $len }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// An object's identity: the fs-verity digest (SHA-256, 4 KiB blocks, no salt) of the whole file.
    Digest, 32, "digest"
);
hex_id!(
    /// A plain SHA-256, of a manifest or of a `.meta`.
    Sha256, 32, "SHA-256"
);
hex_id!(
    /// A BitTorrent v1 info-hash: SHA-1 of the info dict.
    InfoHash, 20, "info-hash"
);
hex_id!(
    /// A store's random name, made with the store.
    StoreId, 8, "store id"
);
hex_id!(
    /// An image's directory: the first half of the SHA-256 of its name, so that a name is found, and claimed by a rename, without an index.
    ImageId, 16, "image id"
);

hex_id!(
    /// A run of deltas from the base up: the first half of the SHA-256 over their digests, oldest first.
    ChainId, 16, "chain id"
);

impl ChainId {
    pub fn of(chain: &[Digest]) -> ChainId {
        let bytes: Vec<u8> = chain.iter().flat_map(|digest| digest.0).collect();
        let mut id = [0; 16];
        id.copy_from_slice(&Sha256::of(&bytes).0[..16]);
        ChainId(id)
    }
}

impl Digest {
    /// The parent of a base.
    pub const NONE: Digest = Digest([0; 32]);
}

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Sha256 {
        let mut out = [0; 32];
        out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Sha256(out)
    }
}

impl ImageId {
    pub fn of(name: &ImageName) -> ImageId {
        let mut id = [0; 16];
        id.copy_from_slice(&Sha256::of(name.as_str().as_bytes()).0[..16]);
        ImageId(id)
    }
}

/// What people call an image: data, never a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ImageName(String);

impl ImageName {
    pub const MAX_LEN: usize = 255;

    /// Checks a name: 1 to 255 bytes of UTF-8 without control characters; slashes and inner blanks are fine (containerd's
    /// keys have them), but not what could be read as a path outside, an option, or nothing at all.
    pub fn new(name: &str) -> Result<ImageName, IdError> {
        let why = if name.is_empty() {
            "it is empty"
        } else if name.len() > Self::MAX_LEN {
            "it is longer than 255 bytes"
        } else if name.chars().any(char::is_control) {
            "it has control characters"
        } else if name.trim() != name {
            "it begins or ends with a blank"
        } else if name.starts_with('-') {
            "it begins with a dash"
        } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            "it has an empty part, \".\" or \"..\" between slashes"
        } else {
            return Ok(ImageName(name.into()));
        };
        Err(IdError::Name { name: clip(name), why })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        ImageName::new(name)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        ImageName::new(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// At most 64 characters of text from outside, control characters escaped, for an error message.
pub fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(|c| c.escape_debug()).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mislead_are_refused() {
        let long = "x".repeat(256);
        for bad in [
            "",
            "../x",
            "x/../y",
            "/x",
            "x/",
            "a//b",
            ".",
            "..",
            "-rf",
            " x",
            "x ",
            "a\nb",
            "a\0b",
            "\u{1b}[2J",
            &long,
        ] {
            assert!(ImageName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["web", "k8s.io/12/sha256:abc def", "ü", "a.b", "...", &long[1..]] {
            assert!(ImageName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn an_error_shows_no_control_character() {
        let error = ImageName::new("a\u{1b}[2Jb").unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn ids_are_hex_both_ways() {
        let id: StoreId = "00112233445566ff".parse().unwrap();
        assert_eq!(id.to_string(), "00112233445566ff");
        for bad in ["", "00", "00112233445566fg", "00112233445566ff00"] {
            assert!(bad.parse::<StoreId>().is_err(), "{bad}");
        }
    }
}
