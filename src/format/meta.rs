//! A `.meta`: what must be known of a sealed delta before its first byte arrives.
//!
//! Refuses to know torrents. Invariant: facts, extents, lengths and the number of hashes of a [`Meta`] that was parsed fit together;
//! whether they are a certain delta's says `digest`. Byte table: `kernel-notes/meta.md`.

use super::Extent;
use super::facts::{Facts, RAW_FACTS};
use super::trailer::{RAW_EXTENT, TrailerError, check_shape, extents_bytes, parse_extents};
use super::verity::{Hash, digest_of_units, unit_count};
use crate::ids::Digest;
use crate::units::Bytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The largest `.meta` that is read or written: of deltas up to some 3 TiB.
pub const MAX_META: u64 = 256 << 20;
pub const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"BlkBtMta";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub facts: Facts,
    pub file_len: Bytes,
    pub data_len: Bytes,
    pub extents: Vec<Extent>,
    /// One per 512 KiB of the file.
    pub units: Vec<Hash>,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawMeta {
    magic: [u8; 8],
    version: U32,
    incompat: U32,
    ro_compat: U32,
    reserved: U32,
    file_len: U64,
    data_len: U64,
    extents: U64,
    units: U64,
}
const RAW_META: usize = size_of::<RawMeta>();
const _: () = assert!(RAW_META == 56);
const CRC: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error(".meta of {len} bytes: want {} to {MAX_META}", RAW_META + RAW_FACTS + CRC)]
    Length { len: u64 },
    #[error("blank .meta")]
    Blank,
    #[error("not a .meta: magic {}, want {}", hex::encode(found), hex::encode(MAGIC))]
    NotOurs { found: [u8; 8] },
    #[error("damaged .meta: CRC {found:#010x}, want {want:#010x}")]
    Crc { found: u32, want: u32 },
    #[error(".meta written by something newer: version {found}, known is {VERSION}")]
    Newer { found: u32 },
    #[error(".meta written by something newer: incompatible feature bits {bits:#x}")]
    Incompatible { bits: u32 },
    #[error("damaged .meta: {what} {found}, want {want}")]
    Damaged { what: &'static str, found: u64, want: u64 },
    #[error("contents of a .meta")]
    Contents(#[from] TrailerError),
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawMeta {
            magic: MAGIC,
            version: U32::new(VERSION),
            incompat: U32::new(0),
            ro_compat: U32::new(0),
            reserved: U32::new(0),
            file_len: U64::new(self.file_len.0),
            data_len: U64::new(self.data_len.0),
            extents: U64::new(self.extents.len() as u64),
            units: U64::new(self.units.len() as u64),
        };
        let mut bytes = [
            raw.as_bytes(),
            &self.facts.to_bytes(),
            &extents_bytes(&self.extents),
            self.units.as_bytes(),
        ]
        .concat();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a `.meta`.
    ///
    /// Errors: blank, not ours, damaged and newer are told apart. Nothing is allocated beyond the input's size.
    pub fn parse(bytes: &[u8]) -> Result<Meta, MetaError> {
        if bytes.len() < RAW_META + RAW_FACTS + CRC || bytes.len() as u64 > MAX_META {
            return Err(MetaError::Length { len: bytes.len() as u64 });
        }
        let (body, crc) = bytes.split_at(bytes.len() - CRC);
        let (raw, rest) = RawMeta::ref_from_prefix(body).expect("the length was checked");
        check_envelope(raw, body, crc)?;
        let (facts, rest) = rest.split_at(RAW_FACTS);
        let (extents, units) = (raw.extents.get(), raw.units.get());
        let want = extents
            .checked_mul(RAW_EXTENT)
            .and_then(|extents| units.checked_mul(32)?.checked_add(extents));
        if want != Some(rest.len() as u64) {
            return Err(MetaError::Damaged {
                what: "bytes of extents and hashes",
                found: rest.len() as u64,
                want: want.unwrap_or(u64::MAX),
            });
        }
        let (extents, units) = rest.split_at((extents * RAW_EXTENT) as usize);
        let mut meta = Meta {
            facts: Facts::parse(facts)?,
            file_len: Bytes(raw.file_len.get()),
            data_len: Bytes(raw.data_len.get()),
            extents: Vec::new(),
            units: units
                .chunks_exact(32)
                .map(|hash| hash.try_into().expect("chunks_exact gives 32 bytes"))
                .collect(),
        };
        parse_extents(extents, &mut meta.extents);
        check_shape(&meta.facts, &meta.extents, meta.data_len, meta.file_len)?;
        if meta.units.len() as u64 != unit_count(meta.file_len) {
            let (found, want) = (meta.units.len() as u64, unit_count(meta.file_len));
            return Err(MetaError::Damaged {
                what: "hashes",
                found,
                want,
            });
        }
        Ok(meta)
    }

    /// The digest of the delta that has these hashes and this length. Only if it is the wanted one, the hashes can be believed.
    /// Extents and facts are believed with the `.meta`'s own SHA-256, or when they are compared with the arrived trailer.
    pub fn digest(&self) -> Digest {
        digest_of_units(&self.units, self.file_len)
    }
}

fn check_envelope(raw: &RawMeta, body: &[u8], crc: &[u8]) -> Result<(), MetaError> {
    if raw.magic != MAGIC {
        let blank = body.iter().all(|byte| *byte == 0);
        return Err(if blank {
            MetaError::Blank
        } else {
            MetaError::NotOurs { found: raw.magic }
        });
    }
    let found = u32::from_le_bytes(crc.try_into().expect("it was split off with 4 bytes"));
    let want = crc32fast::hash(body);
    if found != want {
        return Err(MetaError::Crc { found, want });
    }
    if raw.version.get() != VERSION {
        return Err(MetaError::Newer { found: raw.version.get() });
    }
    if raw.incompat.get() != 0 {
        return Err(MetaError::Incompatible { bits: raw.incompat.get() });
    }
    if raw.reserved.get() != 0 {
        return Err(MetaError::Damaged {
            what: "reserved word",
            found: raw.reserved.get().into(),
            want: 0,
        });
    }
    Ok(())
}
