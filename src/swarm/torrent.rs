//! One object as a single-file torrent: piece hashes, the info dict, its info-hash.
//!
//! Refuses to know who has it and how it travels. Invariant: the same bytes under the same name give the same info-hash on every
//! host, and a [`TorrentInfo`] that was parsed obeys the same rules as one that was built.

use crate::bencode::{self, BencodeError, Value};
use crate::blockio::ReadAt;
use crate::ids::{InfoHash, clip};
use crate::units::Bytes;
use aws_lc_rs::digest;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest piece.
pub const MIN_PIECE: u32 = 256 << 10;
/// librqbit's picker is quadratic in pieces, and the info dict grows by 20 bytes with each.
pub const MAX_PIECES: u64 = 16_384;
/// The largest info dict: [`MAX_PIECES`] hashes and some room for the name.
pub const MAX_INFO: u64 = MAX_PIECES * 20 + 4096;
const MAX_NAME: usize = 255;
const SLICE: usize = 256 << 10;

/// Everything that the info dict says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentInfo {
    pub name: String,
    pub len: Bytes,
    pub piece_len: u32,
    pub pieces: Vec<[u8; 20]>,
}

/// What an info dict from outside may say.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    pub max_len: Bytes,
    /// The only name that is right, where it is known.
    pub name: Option<&'a str>,
}

#[derive(Debug, thiserror::Error)]
pub enum TorrentError {
    #[error("a torrent of no bytes: want at least one")]
    Empty,
    #[error("a torrent of {len} bytes: want at most {max}")]
    TooLong { len: u64, max: u64 },
    #[error("torrent name \"{name}\": {why}")]
    Name { name: String, why: &'static str },
    #[error("torrent name \"{found}\", want \"{want}\"")]
    OtherName { found: String, want: String },
    #[error("info dict of {len} bytes: want at most {MAX_INFO}")]
    TooBig { len: usize },
    #[error("the info dict is not canonical bencode")]
    Bencode(#[from] BencodeError),
    #[error("info dict: {field} is missing or of the wrong kind")]
    Field { field: &'static str },
    #[error("info dict: unknown key \"{key}\"")]
    UnknownKey { key: String },
    #[error("info dict: length {found}, want 1 or more")]
    Length { found: i64 },
    #[error("info dict: piece length {found}, want {want} for {len} bytes")]
    PieceLength { found: i64, want: u32, len: u64 },
    #[error("info dict: {found} bytes of piece hashes, want {want} ({pieces} of 20)")]
    Pieces { found: usize, want: u64, pieces: u64 },
    #[error("info-hash {found}, want {want}")]
    InfoHash { found: InfoHash, want: InfoHash },
    #[error("reading \"{name}\" at byte {at}")]
    Read {
        name: String,
        at: u64,
        #[source]
        cause: io::Error,
    },
}

/// The piece length of a file of `len` bytes: the smallest power of two of at least 256 KiB that gives at most 16,384 pieces.
pub fn piece_len(len: Bytes) -> Result<u32, TorrentError> {
    if len == Bytes::ZERO {
        return Err(TorrentError::Empty);
    }
    let max = (1 << 31) * MAX_PIECES;
    if len.0 > max {
        return Err(TorrentError::TooLong { len: len.0, max });
    }
    let mut piece = MIN_PIECE;
    while len.0.div_ceil(u64::from(piece)) > MAX_PIECES {
        piece *= 2;
    }
    Ok(piece)
}

pub fn sha1(bytes: &[u8]) -> [u8; 20] {
    finish(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes))
}

fn finish(hash: digest::Digest) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(hash.as_ref());
    out
}

impl TorrentInfo {
    /// Hashes all of `io`, with two threads. `progress` hears how many bytes are done.
    pub fn build(name: &str, io: &dyn ReadAt, progress: &(dyn Fn(Bytes) + Sync)) -> Result<TorrentInfo, TorrentError> {
        check_name(name)?;
        let read_error = |at, cause| TorrentError::Read {
            name: clip(name),
            at,
            cause,
        };
        let len = io.size().map_err(|cause| read_error(0, cause))?;
        let piece_len = piece_len(len)?;
        let count = len.0.div_ceil(u64::from(piece_len));
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let pieces = Mutex::new(vec![[0; 20]; count as usize]);
        let worker = || -> Result<(), TorrentError> {
            let mut slice = vec![0; SLICE];
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= count {
                    return Ok(());
                }
                let start = piece * u64::from(piece_len);
                let end = (start + u64::from(piece_len)).min(len.0);
                let hash = hash_range(io, start, end, &mut slice).map_err(|(at, cause)| read_error(at, cause))?;
                pieces.lock().expect("no thread panics while it holds this lock")[piece as usize] = hash;
                progress(Bytes(done.fetch_add(end - start, Ordering::Relaxed) + end - start));
            }
        };
        std::thread::scope(|scope| {
            let second = (count > 1).then(|| scope.spawn(worker));
            worker()?;
            second.map_or(Ok(()), |thread| thread.join().expect("the hashing thread does not panic"))
        })?;
        Ok(TorrentInfo {
            name: name.into(),
            len,
            piece_len,
            pieces: pieces.into_inner().expect("no thread panics while it holds this lock"),
        })
    }

    /// The info dict: `length`, `name`, `piece length`, `pieces`, and nothing else.
    pub fn info_dict(&self) -> Vec<u8> {
        bencode::encode(&Value::dict([
            ("length", Value::Int(self.len.0 as i64)),
            ("name", Value::bytes(&self.name)),
            ("piece length", Value::Int(i64::from(self.piece_len))),
            ("pieces", Value::Bytes(self.pieces.concat())),
        ]))
    }

    pub fn info_hash(&self) -> InfoHash {
        InfoHash(sha1(&self.info_dict()))
    }

    /// A whole `.torrent` file, without trackers.
    pub fn torrent_file(&self) -> Vec<u8> {
        let mut out = b"d4:info".to_vec();
        out.extend(self.info_dict());
        out.push(b'e');
        out
    }

    /// The bytes of piece `index`, as a range of the file.
    pub fn piece_range(&self, index: u32) -> std::ops::Range<u64> {
        let start = u64::from(index).saturating_mul(u64::from(self.piece_len)).min(self.len.0);
        start..start.saturating_add(u64::from(self.piece_len)).min(self.len.0)
    }
}

fn hash_range(io: &dyn ReadAt, start: u64, end: u64, slice: &mut [u8]) -> Result<[u8; 20], (u64, io::Error)> {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    let mut at = start;
    while at < end {
        let part = (end - at).min(slice.len() as u64) as usize;
        io.read_at(&mut slice[..part], Bytes(at)).map_err(|cause| (at, cause))?;
        hash.update(&slice[..part]);
        at += part as u64;
    }
    Ok(finish(hash.finish()))
}

/// Reads an info dict from a peer or a file.
///
/// Errors: [`TorrentError`]; everything is checked, so that no engine sees a length, count or name that could surprise it.
pub fn parse_info(bytes: &[u8], expected: Option<InfoHash>, limits: Limits<'_>) -> Result<TorrentInfo, TorrentError> {
    if bytes.len() as u64 > MAX_INFO {
        return Err(TorrentError::TooBig { len: bytes.len() });
    }
    let found = InfoHash(sha1(bytes));
    if let Some(want) = expected.filter(|want| *want != found) {
        return Err(TorrentError::InfoHash { found, want });
    }
    let info = bencode::decode(bytes)?;
    let keys = info.as_dict().ok_or(TorrentError::Field { field: "the dict itself" })?;
    if let Some(key) = keys
        .keys()
        .find(|key| !matches!(key.as_slice(), b"length" | b"name" | b"piece length" | b"pieces"))
    {
        return Err(TorrentError::UnknownKey {
            key: clip(&String::from_utf8_lossy(key)),
        });
    }
    let len = parse_len(&info, limits.max_len)?;
    let piece_len = parse_piece_len(&info, len)?;
    let count = len.0.div_ceil(u64::from(piece_len));
    let hashes = field(&info, "pieces", Value::as_bytes)?;
    if hashes.len() as u64 != count * 20 {
        return Err(TorrentError::Pieces {
            found: hashes.len(),
            want: count * 20,
            pieces: count,
        });
    }
    let name = parse_name(&info, limits.name)?;
    let pieces = hashes
        .chunks_exact(20)
        .map(|hash| hash.try_into().expect("a chunk has 20 bytes"))
        .collect();
    Ok(TorrentInfo {
        name,
        len,
        piece_len,
        pieces,
    })
}

fn field<'a, T>(info: &'a Value, name: &'static str, kind: impl Fn(&'a Value) -> Option<T>) -> Result<T, TorrentError> {
    info.get(name).and_then(kind).ok_or(TorrentError::Field { field: name })
}

fn parse_len(info: &Value, max: Bytes) -> Result<Bytes, TorrentError> {
    let found = field(info, "length", Value::as_int)?;
    match u64::try_from(found) {
        Ok(len) if len > max.0 => Err(TorrentError::TooLong { len, max: max.0 }),
        Ok(len) if len > 0 => Ok(Bytes(len)),
        _ => Err(TorrentError::Length { found }),
    }
}

fn parse_piece_len(info: &Value, len: Bytes) -> Result<u32, TorrentError> {
    let found = field(info, "piece length", Value::as_int)?;
    let want = piece_len(len)?;
    if found != i64::from(want) {
        return Err(TorrentError::PieceLength { found, want, len: len.0 });
    }
    Ok(want)
}

fn parse_name(info: &Value, want: Option<&str>) -> Result<String, TorrentError> {
    let bytes = field(info, "name", Value::as_bytes)?;
    let name = std::str::from_utf8(bytes).map_err(|_| TorrentError::Name {
        name: clip(&String::from_utf8_lossy(bytes)),
        why: "it is not UTF-8",
    })?;
    check_name(name)?;
    if let Some(want) = want.filter(|want| *want != name) {
        return Err(TorrentError::OtherName {
            found: clip(name),
            want: clip(want),
        });
    }
    Ok(name.into())
}

fn check_name(name: &str) -> Result<(), TorrentError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it is longer than 255 bytes"
    } else if name.contains(['/', '\\', '\0']) {
        "it has a slash or a NUL"
    } else if name == "." || name == ".." {
        "it is a directory"
    } else if name.chars().any(char::is_control) {
        "it has control characters"
    } else {
        return Ok(());
    };
    Err(TorrentError::Name { name: clip(name), why })
}

#[cfg(test)]
mod tests;
