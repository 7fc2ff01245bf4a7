//! PAX extended headers: `length key=value\n` records, read and written. Values may hold any byte, newlines too.
//!
//! Knows the keys we act on and skips the others. Invariant: a malformed record is an error, never a guess.
//! Source: POSIX.1-2017 `pax`, "pax Extended Header"; GNU tar 1.34 `src/xheader.c` for `GNU.sparse.*` and the `%3D` in attribute names.

use super::meta::Time;
use std::collections::BTreeMap;

/// The longest PAX or long-name record that is read.
pub const MAX_RECORDS: u64 = 1 << 20;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the records said; a later record wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub atime: Option<Time>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: SparseRecords,
    /// Attributes in a form we do not read.
    pub skipped: u64,
    /// Bytes in `xattrs`, which several headers may fill.
    held: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseRecords {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// Versions 0.0 and 0.1: the map itself.
    pub map: Vec<(u64, u64)>,
    offset: Option<u64>,
}

impl Pax {
    /// Reads records over what is there already (the global ones).
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() && bytes[0] != 0 {
            let (key, value, rest) = record(bytes).ok_or("a PAX record is malformed")?;
            self.apply(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    /// True when nothing here would rename, resize or retype the entries of a whole archive.
    pub fn may_be_global(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none() && self.sparse == SparseRecords::default()
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let sparse = &mut self.sparse;
        match key {
            b"path" => self.path = text(value),
            b"linkpath" => self.link = text(value),
            b"size" => self.size = maybe_number(value)?,
            b"uid" => self.uid = maybe_number(value)?,
            b"gid" => self.gid = maybe_number(value)?,
            b"mtime" => self.mtime = maybe_time(value)?,
            b"atime" => self.atime = maybe_time(value)?,
            b"GNU.sparse.major" => sparse.major = maybe_number(value)?,
            b"GNU.sparse.minor" => sparse.minor = maybe_number(value)?,
            b"GNU.sparse.name" => sparse.name = text(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = maybe_number(value)?,
            b"GNU.sparse.offset" => sparse.offset = maybe_number(value)?,
            b"GNU.sparse.numbytes" => {
                let offset = sparse.offset.take().ok_or("a sparse length without an offset")?;
                sparse.map.push((offset, number(value)?));
                super::sparse::check_count(sparse.map.len())?;
            }
            b"GNU.sparse.map" => sparse.map = map(value)?,
            _ if key.starts_with(XATTR) && key.len() > XATTR.len() => {
                let name = decode(&key[XATTR.len()..]);
                self.held += (name.len() + value.len()) as u64;
                if let Some(old) = self.xattrs.insert(name.clone(), value.to_vec()) {
                    self.held -= (name.len() + old.len()) as u64;
                }
                if self.held > MAX_RECORDS {
                    return Err("its attributes are longer than 1 MiB");
                }
            }
            _ if key.starts_with(b"SCHILY.acl.") || key == b"RHT.security.selinux" => self.skipped += 1,
            _ => {}
        }
        Ok(())
    }
}

/// Splits off the first record: key, value, rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(8).position(|&b| b == b' ')?;
    let length = usize::try_from(number(&bytes[..blank]).ok()?).ok()?;
    let body = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

fn text(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn maybe_number(value: &[u8]) -> Result<Option<u64>, &'static str> {
    if value.is_empty() { Ok(None) } else { number(value).map(Some) }
}

/// Decimal digits and nothing else.
pub fn number(text: &[u8]) -> Result<u64, &'static str> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let parsed = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|t| t.parse().ok());
    parsed.ok_or("a number in a PAX record is not one, is negative or is too big")
}

fn map(value: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    let numbers: Vec<u64> = value.split(|&b| b == b',').map(number).collect::<Result<_, _>>()?;
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err("a sparse map with an offset but no length");
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

fn maybe_time(value: &[u8]) -> Result<Option<Time>, &'static str> {
    const BAD: &str = "a time in a PAX record is not one";
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, digits) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(number(parts.next().unwrap_or_default()).map_err(|_| BAD)?).map_err(|_| BAD)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let nanos = (0..9).fold(0u32, |n, i| n * 10 + fraction.get(i).map_or(0, |d| u32::from(d - b'0')));
    Ok(Some(match (negative, nanos) {
        (false, _) => Time { seconds: whole, nanos },
        (true, 0) => Time { seconds: -whole, nanos },
        (true, _) => Time {
            seconds: -whole - 1,
            nanos: 1_000_000_000 - nanos,
        },
    }))
}

fn decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, next) = match rest.get(..3) {
            Some(b"%3D") => (b'=', &rest[3..]),
            Some(b"%25") => (b'%', &rest[3..]),
            _ => (first, tail),
        };
        out.push(byte);
        rest = next;
    }
    out
}

/// Appends one record.
pub fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

pub fn push_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let mut key = XATTR.to_vec();
    for &byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            _ => key.push(byte),
        }
    }
    push(out, &key, value);
}

pub fn push_time(out: &mut Vec<u8>, key: &[u8], time: Time) {
    let text = match (time.seconds < 0, time.nanos) {
        (_, 0) => time.seconds.to_string(),
        (false, nanos) => format!("{}.{nanos:09}", time.seconds),
        (true, nanos) => format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - nanos),
    };
    push(out, key, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_whatever_the_value_holds() {
        for len in [0, 1, 5, 90, 91, 92, 93, 984, 985, 986, 9980] {
            let value: Vec<u8> = (0..len).map(|i| if i % 7 == 0 { b'\n' } else { i as u8 }).collect();
            let mut bytes = Vec::new();
            push_xattr(&mut bytes, b"user.a=b%3D", &value);
            push_time(
                &mut bytes,
                b"mtime",
                Time {
                    seconds: -2,
                    nanos: 500_000_000,
                },
            );
            let mut pax = Pax::default();
            pax.read(&bytes).unwrap();
            assert_eq!(pax.xattrs.get(&b"user.a=b%3D"[..]), Some(&value), "{len}");
            assert_eq!(
                pax.mtime,
                Some(Time {
                    seconds: -2,
                    nanos: 500_000_000
                })
            );
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"999999 path=x\n",
            b"0 path=x\n",
            b"-1 path=x\n",
            b"99999999999999999999 path=x\n",
            b"10 size=-1\n",
            b"20 GNU.sparse.map=1\n\n",
            b"path=x\n",
            b"11 mtime=x\n",
            b"9 pathx=\xff",
            b"26 GNU.sparse.numbytes=12\n",
        ] {
            assert!(Pax::default().read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_record_length_counts_itself() {
        let mut bytes = Vec::new();
        push(&mut bytes, b"path", b"abc");
        assert_eq!(bytes, b"12 path=abc\n");
    }
}
