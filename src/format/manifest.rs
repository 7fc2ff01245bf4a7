//! A manifest: what a published image is made of, in canonical bencode.
//!
//! Refuses to know signatures, trackers and magnet links. Invariant: equal manifests have equal bytes, and other bytes of the same
//! meaning are refused. Table of keys: `kernel-notes/manifest.md`.

use super::facts::FileSystem;
use crate::bencode::{self, BencodeError, Value};
use crate::ids::{Digest, IdError, ImageName, InfoHash, Sha256};
use crate::units::{Bytes, UnitError};
use std::collections::{BTreeMap, BTreeSet};

/// The largest manifest that is read or written.
pub const MAX_MANIFEST: usize = 1 << 20;
pub const MAX_DELTAS: usize = 4096;
/// Bytes of a label's key, and of its value.
pub const MAX_LABEL: usize = 4096;
const FORMAT: &[u8] = b"blockbt manifest";
const VERSION: i64 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: ImageName,
    pub virtual_size: Bytes,
    pub file_system: FileSystem,
    pub labels: BTreeMap<String, String>,
    /// Oldest first.
    pub deltas: Vec<ManifestDelta>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestDelta {
    pub digest: Digest,
    pub len: Bytes,
    pub info_hash: InfoHash,
    pub meta_sha256: Sha256,
    pub meta_len: Bytes,
    pub meta_info_hash: InfoHash,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest of {len} bytes, at most {MAX_MANIFEST} are allowed")]
    Length { len: usize },
    #[error("not a manifest: no canonical bencode")]
    Bencode(#[from] BencodeError),
    #[error("not a manifest: its \"format\" is not \"blockbt manifest\"")]
    NotOurs,
    #[error("manifest written by something newer: version {found}, known is {VERSION}")]
    Newer { found: i64 },
    #[error("manifest: {place}{key:?} is absent, or not {want}")]
    Key {
        place: String,
        key: &'static str,
        want: &'static str,
    },
    #[error("manifest: unknown key \"{key}\" {place}")]
    Unknown { place: String, key: String },
    #[error("manifest: {found} deltas, want 1 to {MAX_DELTAS}")]
    Count { found: usize },
    #[error("manifest: delta {digest} for the second time")]
    Twice { digest: Digest },
    #[error("manifest: delta {index}: {what} of {found} bytes")]
    Size { index: usize, what: &'static str, found: u64 },
    #[error("name in a manifest")]
    Name(#[from] IdError),
    #[error("virtual size in a manifest")]
    VirtualSize(#[from] UnitError),
}

impl Manifest {
    /// Errors: what `parse` would refuse is not written.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let int = |bytes: Bytes| Value::Int(i64::try_from(bytes.0).unwrap_or(i64::MAX));
        let delta = |delta: &ManifestDelta| {
            Value::dict([
                ("digest", Value::bytes(delta.digest.0)),
                ("info hash", Value::bytes(delta.info_hash.0)),
                ("length", int(delta.len)),
                ("meta info hash", Value::bytes(delta.meta_info_hash.0)),
                ("meta length", int(delta.meta_len)),
                ("meta sha256", Value::bytes(delta.meta_sha256.0)),
            ])
        };
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), Value::bytes(value)));
        let bytes = bencode::encode(&Value::dict([
            ("deltas", Value::List(self.deltas.iter().map(delta).collect())),
            ("file system", Value::bytes(self.file_system.name())),
            ("format", Value::bytes(FORMAT)),
            ("labels", Value::Dict(labels.collect())),
            ("name", Value::bytes(self.name.as_str())),
            ("version", Value::Int(VERSION)),
            ("virtual size", int(self.virtual_size)),
        ]));
        Manifest::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a manifest: every key that there is must be known, every known key must be there, and sizes must be possible.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > MAX_MANIFEST {
            return Err(ManifestError::Length { len: bytes.len() });
        }
        let value = bencode::decode(bytes)?;
        if value.get("format").and_then(Value::as_bytes) != Some(FORMAT) {
            return Err(ManifestError::NotOurs);
        }
        let fields = Fields {
            dict: &value,
            place: String::new(),
        };
        match fields.int("version")? {
            VERSION => {}
            found => return Err(ManifestError::Newer { found }),
        }
        fields.only(&["deltas", "file system", "format", "labels", "name", "version", "virtual size"])?;
        let list = value
            .get("deltas")
            .and_then(Value::as_list)
            .ok_or_else(|| fields.wrong("deltas", "a list"))?;
        if list.is_empty() || list.len() > MAX_DELTAS {
            return Err(ManifestError::Count { found: list.len() });
        }
        let deltas = list
            .iter()
            .enumerate()
            .map(|(index, value)| parse_delta(index, value))
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen = BTreeSet::new();
        if let Some(delta) = deltas.iter().find(|delta| !seen.insert(delta.digest)) {
            return Err(ManifestError::Twice { digest: delta.digest });
        }
        Ok(Manifest {
            name: ImageName::new(fields.text("name")?)?,
            virtual_size: fields.size("virtual size")?.as_disk_size()?,
            file_system: FileSystem::from_name(fields.text("file system")?)
                .ok_or_else(|| fields.wrong("file system", "\"none\", \"ext4\", \"xfs\" or \"other\""))?,
            labels: parse_labels(&fields)?,
            deltas,
        })
    }
}

fn parse_delta(index: usize, value: &Value) -> Result<ManifestDelta, ManifestError> {
    let fields = Fields {
        dict: value,
        place: format!("delta {index}: "),
    };
    fields.only(&["digest", "info hash", "length", "meta info hash", "meta length", "meta sha256"])?;
    let delta = ManifestDelta {
        digest: Digest(fields.hash("digest")?),
        len: fields.size("length")?,
        info_hash: InfoHash(fields.hash("info hash")?),
        meta_sha256: Sha256(fields.hash("meta sha256")?),
        meta_len: fields.size("meta length")?,
        meta_info_hash: InfoHash(fields.hash("meta info hash")?),
    };
    // Header, areas and data of a full disk of the largest size stay far below twice that size.
    if delta.len.0 < 3 * 4096 || !delta.len.0.is_multiple_of(4096) || delta.len.0 > 2 * crate::units::MAX_DISK.0 {
        return Err(ManifestError::Size {
            index,
            what: "a delta",
            found: delta.len.0,
        });
    }
    if delta.meta_len.0 == 0 || delta.meta_len.0 > super::meta::MAX_META {
        return Err(ManifestError::Size {
            index,
            what: "a .meta",
            found: delta.meta_len.0,
        });
    }
    Ok(delta)
}

fn parse_labels(fields: &Fields) -> Result<BTreeMap<String, String>, ManifestError> {
    let wrong = || fields.wrong("labels", "a dict of texts of 1 to 4096 bytes without control characters");
    let dict = fields.dict.get("labels").and_then(Value::as_dict).ok_or_else(wrong)?;
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?;
        (text.len() <= MAX_LABEL && !text.chars().any(char::is_control)).then(|| text.to_owned())
    };
    let pair = |(key, value): (&Vec<u8>, &Value)| Some((text(key).filter(|key| !key.is_empty())?, text(value.as_bytes()?)?));
    dict.iter().map(|entry| pair(entry).ok_or_else(wrong)).collect()
}

/// A dict, and what to call it in an error.
struct Fields<'a> {
    dict: &'a Value,
    place: String,
}

impl<'a> Fields<'a> {
    fn wrong(&self, key: &'static str, want: &'static str) -> ManifestError {
        ManifestError::Key {
            place: self.place.clone(),
            key,
            want,
        }
    }

    fn only(&self, known: &[&str]) -> Result<(), ManifestError> {
        let keys = self.dict.as_dict().into_iter().flat_map(BTreeMap::keys);
        match keys
            .map(|key| String::from_utf8_lossy(key))
            .find(|key| !known.contains(&key.as_ref()))
        {
            Some(key) => Err(ManifestError::Unknown {
                place: self.place.clone(),
                key: crate::ids::clip(&key),
            }),
            None => Ok(()),
        }
    }

    fn int(&self, key: &'static str) -> Result<i64, ManifestError> {
        self.dict
            .get(key)
            .and_then(Value::as_int)
            .ok_or_else(|| self.wrong(key, "a number"))
    }

    fn size(&self, key: &'static str) -> Result<Bytes, ManifestError> {
        u64::try_from(self.int(key)?).map(Bytes).map_err(|_| self.wrong(key, "a size"))
    }

    fn bytes(&self, key: &'static str) -> Result<&'a [u8], ManifestError> {
        self.dict
            .get(key)
            .and_then(Value::as_bytes)
            .ok_or_else(|| self.wrong(key, "a text"))
    }

    fn text(&self, key: &'static str) -> Result<&'a str, ManifestError> {
        std::str::from_utf8(self.bytes(key)?).map_err(|_| self.wrong(key, "UTF-8"))
    }

    fn hash<const N: usize>(&self, key: &'static str) -> Result<[u8; N], ManifestError> {
        self.bytes(key)?
            .try_into()
            .map_err(|_| self.wrong(key, "a hash of the right length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Manifest {
        Manifest {
            name: ImageName::new("web").unwrap(),
            virtual_size: Bytes(10 << 30),
            file_system: FileSystem::Ext4,
            labels: BTreeMap::from([("a".into(), "ü".into())]),
            deltas: vec![ManifestDelta {
                digest: Digest([b'D'; 32]),
                len: Bytes(12288),
                info_hash: InfoHash([b'I'; 20]),
                meta_sha256: Sha256([b'M'; 32]),
                meta_len: Bytes(200),
                meta_info_hash: InfoHash([b'J'; 20]),
            }],
        }
    }

    const PINNED: &str = "d6:deltasld6:digest32:DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD9:info hash20:IIIIIIIIIIIIIIIIIIII6:lengthi12288e\
        14:meta info hash20:JJJJJJJJJJJJJJJJJJJJ11:meta lengthi200e11:meta sha25632:MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMee\
        11:file system4:ext46:format16:blockbt manifest6:labelsd1:a2:\u{fc}e4:name3:web7:versioni1e12:virtual sizei10737418240ee";

    #[test]
    fn the_bytes_of_a_manifest_are_pinned() {
        assert_eq!(String::from_utf8(example().encode().unwrap()).unwrap(), PINNED);
        assert_eq!(Manifest::parse(PINNED.as_bytes()).unwrap(), example());
    }

    #[test]
    fn what_cannot_be_an_image_is_refused() {
        for (from, to) in [
            ("i12288e", "i0e"),
            ("i12288e", "i-4096e"),
            ("i12288e", "i12289e"),
            ("i12288e", "i1152921504606846976e"),
            ("i200e", "i0e"),
            ("i200e", "i268435457e"),
            ("3:web", "6:../web"),
            ("3:web", "0:"),
            ("3:web", "3:\u{1b}we"),
            ("4:ext4", "4:ntfs"),
            ("i10737418240e", "i10737418241e"),
            ("i10737418240e", "i1152921504606846976e"),
            ("7:versioni1e", "7:versioni2e"),
            ("7:versioni1e", "7:versioni1e4:viahi0e"),
            ("d1:a2:\u{fc}e", "d0:2:\u{fc}e"),
            ("d1:a2:\u{fc}e", "d1:ai1ee"),
            ("d1:a2:\u{fc}e", "d1:a2:\n\ne"),
            ("32:DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD", "31:DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD"),
            ("16:blockbt manifest", "16:blockbt manifesT"),
        ] {
            assert!(PINNED.contains(from));
            assert!(Manifest::parse(PINNED.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
        assert!(matches!(
            Manifest::parse(PINNED.replace("versioni1e", "versioni2e").as_bytes()),
            Err(ManifestError::Newer { found: 2 })
        ));
        assert!(matches!(Manifest::parse(b"de"), Err(ManifestError::NotOurs)));
        assert!(matches!(
            Manifest::parse(&vec![b'l'; MAX_MANIFEST + 1]),
            Err(ManifestError::Length { .. })
        ));
        let mut two = example();
        two.deltas.push(two.deltas[0].clone());
        assert!(matches!(two.encode(), Err(ManifestError::Twice { .. })));
        two.deltas.clear();
        assert!(matches!(two.encode(), Err(ManifestError::Count { found: 0 })));
    }

    #[test]
    fn a_chain_of_the_greatest_length_fits() {
        let mut long = example();
        let one = long.deltas[0].clone();
        long.deltas = (0..MAX_DELTAS as u32)
            .map(|i| {
                let mut delta = one.clone();
                delta.digest.0[..4].copy_from_slice(&i.to_be_bytes());
                delta
            })
            .collect();
        assert_eq!(Manifest::parse(&long.encode().unwrap()).unwrap(), long);
        long.deltas.push(one);
        assert!(matches!(long.encode(), Err(ManifestError::Count { .. })));
    }

    proptest! {
        #[test]
        fn a_changed_manifest_is_refused_or_another_one(at in 0..PINNED.len(), byte in any::<u8>()) {
            let mut bytes = PINNED.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(manifest) = Manifest::parse(&bytes) {
                prop_assert_eq!(manifest.encode().unwrap(), bytes);
            }
        }
    }
}
