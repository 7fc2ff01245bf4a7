//! One 512-byte tar header: numbers, names and the checksum. Knows nothing of what follows it.
//!
//! Covers old (v7), POSIX ustar and GNU headers. Invariant: a [`Header`] that exists has a right checksum.
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar 1.34 `src/tar.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const BLOCK: usize = 512;

#[repr(C)]
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawHeader {
    name: [u8; 100],
    mode: [u8; 8],
    uid: [u8; 8],
    gid: [u8; 8],
    size: [u8; 12],
    mtime: [u8; 12],
    checksum: [u8; 8],
    typeflag: u8,
    linkname: [u8; 100],
    magic: [u8; 8],
    uname: [u8; 32],
    gname: [u8; 32],
    major: [u8; 8],
    minor: [u8; 8],
    /// ustar: 155 bytes of name prefix. GNU: times, sparse map and real size.
    tail: [u8; 167],
}
const _: () = assert!(size_of::<RawHeader>() == BLOCK);
const _: () = assert!(std::mem::offset_of!(RawHeader, magic) == 257);
const _: () = assert!(std::mem::offset_of!(RawHeader, tail) == 345);

const GNU_SPARSE: usize = 386 - 345;
const GNU_EXTENDED: usize = 482 - 345;
const GNU_REAL_SIZE: usize = 483 - 345;
/// Where an extension block of a GNU sparse map says that another follows.
const EXTENSION_MORE: usize = 504;

/// Offsets and lengths, and whether an extension block with more follows.
pub type SparseSlots = (Vec<(i64, i64)>, bool);

pub struct Header(RawHeader);

impl Header {
    /// Checks the checksum, in the signed form of some old archivers as well. `None`: not a header.
    pub fn parse(block: &[u8; BLOCK]) -> Option<Header> {
        let raw = RawHeader::read_from_bytes(block).ok()?;
        let want = number(&raw.checksum).ok()?;
        let rest = || block[..148].iter().chain(&block[156..]);
        let unsigned: i64 = rest().map(|&b| i64::from(b)).sum::<i64>() + 8 * 32;
        let signed: i64 = rest().map(|&b| i64::from(b.cast_signed())).sum::<i64>() + 8 * 32;
        (want == unsigned || want == signed).then_some(Header(raw))
    }

    pub fn typeflag(&self) -> u8 {
        self.0.typeflag
    }

    pub fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0.name);
        let prefix = until_nul(&self.0.tail[..155]);
        if self.0.magic.starts_with(b"ustar\0") && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub fn link_name(&self) -> &[u8] {
        until_nul(&self.0.linkname)
    }

    pub fn mode(&self) -> Result<i64, &'static str> {
        number(&self.0.mode)
    }
    pub fn uid(&self) -> Result<i64, &'static str> {
        number(&self.0.uid)
    }
    pub fn gid(&self) -> Result<i64, &'static str> {
        number(&self.0.gid)
    }
    pub fn size(&self) -> Result<i64, &'static str> {
        number(&self.0.size)
    }
    pub fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.0.mtime)
    }
    pub fn major(&self) -> Result<i64, &'static str> {
        number(&self.0.major)
    }
    pub fn minor(&self) -> Result<i64, &'static str> {
        number(&self.0.minor)
    }

    pub fn gnu_real_size(&self) -> Result<i64, &'static str> {
        number(&self.0.tail[GNU_REAL_SIZE..GNU_REAL_SIZE + 12])
    }

    /// The sparse map's first four slots, and whether extension blocks follow.
    pub fn gnu_sparse(&self) -> Result<SparseSlots, &'static str> {
        let slots = sparse_slots(&self.0.tail[GNU_SPARSE..GNU_SPARSE + 4 * 24])?;
        Ok((slots, self.0.tail[GNU_EXTENDED] != 0))
    }
}

/// An extension block of a GNU sparse map: up to 21 slots, and whether another block follows.
pub fn gnu_sparse_extension(block: &[u8; BLOCK]) -> Result<SparseSlots, &'static str> {
    Ok((sparse_slots(&block[..EXTENSION_MORE])?, block[EXTENSION_MORE] != 0))
}

fn sparse_slots(bytes: &[u8]) -> Result<Vec<(i64, i64)>, &'static str> {
    bytes
        .chunks_exact(24)
        .take_while(|slot| slot[0] != 0)
        .map(|slot| Ok((number(&slot[..12])?, number(&slot[12..])?)))
        .collect()
}

/// True for a block that only a tar archive begins with.
pub fn looks_like_tar(block: &[u8; BLOCK]) -> bool {
    &block[257..262] == b"ustar" || (block[0] != 0 && Header::parse(block).is_some())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A numeric field: octal text, or GNU's base 256 in two's complement when the top bit is set. An empty field is zero.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    const TOO_BIG: &str = "a number in its header is too big";
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, &byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| TOO_BIG);
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or(TOO_BIG),
        _ => Err("a number in its header is not octal"),
    })
}

/// What [`build`] puts into a header; what does not fit is left zero and travels in PAX records.
pub struct Fields<'a> {
    pub path: &'a [u8],
    pub link: &'a [u8],
    pub typeflag: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    pub major: u32,
    pub minor: u32,
}

/// The largest numbers of an 8 and a 12 byte octal field.
pub const MAX_SMALL: u64 = 0o7777777;
pub const MAX_LARGE: u64 = 0o77777777777;
pub const MAX_NAME: usize = 100;

/// A POSIX ustar header. Names are cut to what fits.
pub fn build(fields: &Fields) -> [u8; BLOCK] {
    let mut raw = RawHeader::read_from_bytes(&[0; BLOCK]).expect("a block is as long as a header");
    put_name(&mut raw.name, fields.path);
    put_name(&mut raw.linkname, fields.link);
    put_number(&mut raw.mode, u64::from(fields.mode));
    put_number(&mut raw.uid, u64::from(fields.uid));
    put_number(&mut raw.gid, u64::from(fields.gid));
    put_number(&mut raw.size, fields.size);
    put_number(&mut raw.mtime, u64::try_from(fields.mtime).unwrap_or(0));
    put_number(&mut raw.major, u64::from(fields.major));
    put_number(&mut raw.minor, u64::from(fields.minor));
    raw.typeflag = fields.typeflag;
    raw.magic = *b"ustar\x0000";
    raw.checksum = [b' '; 8];
    let sum: u64 = raw.as_bytes().iter().map(|&b| u64::from(b)).sum();
    put_number(&mut raw.checksum[..7], sum);
    let mut block = [0; BLOCK];
    block.copy_from_slice(raw.as_bytes());
    block
}

fn put_name(field: &mut [u8], name: &[u8]) {
    let len = name.len().min(field.len());
    field[..len].copy_from_slice(&name[..len]);
}

fn put_number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let most = 1u64.checked_shl(3 * digits as u32).unwrap_or(0).wrapping_sub(1);
    let text = format!("{:0digits$o}", if value > most { 0 } else { value });
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
}
