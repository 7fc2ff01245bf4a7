//! A link: what one person gives another so that they can pull an image.
//!
//! Refuses to know what a manifest says. Invariant: the SHA-256 of the manifest is in it, unless the user gave that up by name.

use crate::ids::{IdError, InfoHash, Sha256, clip};
use std::fmt;
use std::net::SocketAddr;

/// The longest link that is read.
pub const MAX_LINK: usize = 8192;
const MAX_EXTRAS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub info_hash: InfoHash,
    /// The manifest's. `None` only where [`Link::parse_insecure`] was asked for.
    pub sha256: Option<Sha256>,
    /// For people; never trusted.
    pub name: Option<String>,
    pub trackers: Vec<String>,
    pub peers: Vec<SocketAddr>,
    pub web_seeds: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("link \"{text}\": want magnet:?xt=urn:btih:<info-hash>&x.bbt=<SHA-256>")]
    NotALink { text: String },
    #[error("link of {len} bytes: want at most {MAX_LINK}")]
    TooLong { len: usize },
    #[error("link: {key} is given twice")]
    Twice { key: &'static str },
    #[error("link: more than {MAX_EXTRAS} trackers, peers and web seeds")]
    TooMany,
    #[error("link: {key}=\"{text}\" is not percent-encoded text")]
    Encoding { key: String, text: String },
    #[error("link: peer \"{text}\": want address:port")]
    Peer { text: String },
    #[error("link: bad number")]
    Id(#[from] IdError),
    #[error("link: no x.bbt, so nothing but SHA-1 would vouch for the image (--insecure-sha1 accepts that)")]
    NoSha256,
}

impl Link {
    /// Reads a link with an `x.bbt`.
    pub fn parse(text: &str) -> Result<Link, LinkError> {
        let link = Link::parse_insecure(text)?;
        if link.sha256.is_none() {
            return Err(LinkError::NoSha256);
        }
        Ok(link)
    }

    /// Reads any magnet link with a v1 info-hash: what `--insecure-sha1` stands for.
    pub fn parse_insecure(text: &str) -> Result<Link, LinkError> {
        if text.len() > MAX_LINK {
            return Err(LinkError::TooLong { len: text.len() });
        }
        let not_a_link = || LinkError::NotALink { text: clip(text) };
        let query = text.strip_prefix("magnet:?").ok_or_else(not_a_link)?;
        let (mut info_hash, mut sha256, mut name) = (None, None, None);
        let (mut trackers, mut peers, mut web_seeds) = (Vec::new(), Vec::new(), Vec::new());
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, raw) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(key, raw)?;
            match key {
                "xt" => {
                    if let Some(hash) = value.strip_prefix("urn:btih:") {
                        set(&mut info_hash, hash.to_ascii_lowercase().parse()?, "xt")?;
                    }
                }
                "x.bbt" => set(&mut sha256, value.parse()?, "x.bbt")?,
                "dn" => set(&mut name, clip(&value), "dn")?,
                "tr" => trackers.push(value),
                "ws" => web_seeds.push(value),
                "x.pe" => peers.push(value.parse().map_err(|_| LinkError::Peer { text: clip(&value) })?),
                _ => {}
            }
            if trackers.len() + peers.len() + web_seeds.len() > MAX_EXTRAS {
                return Err(LinkError::TooMany);
            }
        }
        Ok(Link {
            info_hash: info_hash.ok_or_else(not_a_link)?,
            sha256,
            name,
            trackers,
            peers,
            web_seeds,
        })
    }
}

fn set<T>(slot: &mut Option<T>, value: T, key: &'static str) -> Result<(), LinkError> {
    if slot.replace(value).is_some() {
        return Err(LinkError::Twice { key });
    }
    Ok(())
}

fn decode(key: &str, raw: &str) -> Result<String, LinkError> {
    let bad = || LinkError::Encoding {
        key: clip(key),
        text: clip(raw),
    };
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let pair = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
                let mut value = [0];
                hex::decode_to_slice(pair, &mut value).map_err(|_| bad())?;
                value[0]
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| bad())
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    let one = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(one).collect()
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt=urn:btih:{}", self.info_hash)?;
        if let Some(sha256) = &self.sha256 {
            write!(f, "&x.bbt={sha256}")?;
        }
        if let Some(name) = &self.name {
            write!(f, "&dn={}", encode(name))?;
        }
        self.trackers.iter().try_for_each(|url| write!(f, "&tr={}", encode(url)))?;
        self.peers.iter().try_for_each(|peer| write!(f, "&x.pe={peer}"))?;
        self.web_seeds.iter().try_for_each(|url| write!(f, "&ws={}", encode(url)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &str = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    const BBT: &str = "&x.bbt=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_link_prints_as_it_was_read() {
        let text = format!("{PLAIN}{BBT}&dn=my%20web&tr=http://t.example/a%3Fb&x.pe=10.0.0.1:4240&x.pe=[::1]:1&ws=http://w.example/");
        let link = Link::parse(&text).unwrap();
        assert_eq!(link.name.as_deref(), Some("my web"));
        assert_eq!(link.peers.len(), 2);
        assert_eq!(link.trackers, ["http://t.example/a?b"]);
        assert_eq!(link.to_string(), text);
    }

    #[test]
    fn a_link_without_its_sha256_is_refused_unless_asked_for() {
        assert_eq!(Link::parse(PLAIN), Err(LinkError::NoSha256));
        assert_eq!(Link::parse_insecure(PLAIN).unwrap().sha256, None);
    }

    #[test]
    fn hostile_links_are_named_errors() {
        for (text, what) in [
            ("", "nothing"),
            ("http://x", "another scheme"),
            ("magnet:?", "no hash"),
            ("magnet:?xt=urn:btmh:1220", "only v2"),
            ("magnet:?xt=urn:btih:zz", "not hex"),
            (&format!("{PLAIN}&xt=urn:btih:{}", "1".repeat(40)), "two hashes"),
            (&format!("{PLAIN}{BBT}{BBT}"), "two SHA-256"),
            (&format!("{PLAIN}&x.bbt=00"), "a short SHA-256"),
            (&format!("{PLAIN}{BBT}&dn=%zz"), "bad percent"),
            (&format!("{PLAIN}{BBT}&dn=%f"), "half a percent"),
            (&format!("{PLAIN}{BBT}&dn=%ff"), "not UTF-8"),
            (&format!("{PLAIN}{BBT}&x.pe=host"), "no port"),
            (&format!("{PLAIN}{BBT}&x.pe=1.2.3.4:99999"), "port too large"),
            (&format!("{PLAIN}{BBT}{}", "&tr=x".repeat(65)), "too many"),
            (&format!("{PLAIN}{BBT}&dn={}", "x".repeat(MAX_LINK)), "too long"),
        ] {
            assert!(Link::parse(text).is_err(), "{what}");
        }
    }

    #[test]
    fn a_name_from_a_link_cannot_drive_a_terminal() {
        let link = Link::parse(&format!("{PLAIN}{BBT}&dn=%1b[2J")).unwrap();
        assert!(!link.name.unwrap().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_not_a_panic(text in "\\PC{0,80}") {
            let _ = Link::parse(&text);
            let _ = Link::parse(&format!("{PLAIN}{BBT}&{text}"));
        }
    }
}
