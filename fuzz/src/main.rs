//! One target for each parser of what others made; `BLOCKBT_FUZZ` names it.
//!
//! Refuses to judge what is parsed, but for one thing: what was understood is understood the same when it is written down and read again. Else the
//! claim is that no input panics, overflows, hangs or takes memory that it did not bring.
#![no_main]

use blockbt::bencode;
use blockbt::blockio::MemoryIo;
use blockbt::files::tar_read::Archive;
use blockbt::format::check::{self, Kind};
use blockbt::format::head::Head;
use blockbt::format::manifest::Manifest;
use blockbt::format::meta::Meta;
use blockbt::format::sealed::Sealed;
use blockbt::kernel::dm::{SnapshotStatus, Table};
use blockbt::service::Request;
use blockbt::store::{Description, ImageRecord, Intent};
use blockbt::swarm::link::Link;
use blockbt::swarm::torrent::{Limits, parse_info};
use blockbt::units::Bytes;
use std::path::Path;
use std::sync::OnceLock;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 9] = [
    ("delta", delta),
    ("sealed", sealed),
    ("meta", meta),
    ("manifest", manifest),
    ("link", link),
    ("bencode", bencode),
    ("tar", tar),
    ("json", json),
    ("dm", dm),
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    let choose = || {
        let wanted = std::env::var("BLOCKBT_FUZZ").expect("BLOCKBT_FUZZ names a target");
        TARGETS.iter().find(|(name, _)| *name == wanted).expect("a target of the list").1
    };
    CHOSEN.get_or_init(choose)(bytes);
});

/// Header and areas, as of a head that somebody's kernel wrote.
fn delta(bytes: &[u8]) {
    check::check(&MemoryIo::new(bytes.to_vec()), Kind::Head, &mut |_| ());
    let Ok(seen) = Head::open_read_only(MemoryIo::new(bytes.to_vec())) else { return };
    let tidied = Head::open(MemoryIo::new(bytes.to_vec())).expect("what can be read can be tidied");
    assert_eq!(seen.exceptions(), tidied.exceptions());
    let again = Head::open_read_only(MemoryIo::new(tidied.io().bytes())).expect("what was tidied can be read");
    assert_eq!(seen.exceptions(), again.exceptions());
}

/// A sealed delta with its trailer, whose CRCs are made right: they are no secret.
fn sealed(bytes: &[u8]) {
    const BLOCK: usize = 4096;
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK).max(3 * BLOCK), 0);
    let footer = bytes.len() - BLOCK;
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    for entry in (footer + 40..footer + 424).step_by(24) {
        let (start, len) = (word(&bytes, entry + 8), word(&bytes, entry + 16));
        let end = start.checked_add(len).filter(|end| *end <= footer as u64);
        if let Some(end) = end {
            let crc = crc32fast::hash(&bytes[start as usize..end as usize]);
            bytes[entry + 4..entry + 8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = crc32fast::hash(&bytes[footer..footer + BLOCK - 4]);
    bytes[footer + BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
    let file = MemoryIo::new(bytes);
    if let Ok(table) = Sealed::open(&file) {
        assert_eq!(table.exceptions().count() as u64, table.exception_count());
    }
    check::check(&file, Kind::Sealed, &mut |_| ());
}

/// With its CRC made right.
fn meta(bytes: &[u8]) {
    let Some(body) = bytes.len().checked_sub(4) else { return };
    let mut bytes = bytes.to_vec();
    let crc = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(meta) = Meta::parse(&bytes) {
        assert_eq!(Meta::parse(&meta.encode()).expect("what we write we read"), meta);
    }
}

fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let written = manifest.encode().expect("what was read can be written");
        assert_eq!(written, bytes, "there is one form");
    }
}

fn link(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (strict, lax) = (Link::parse(text), Link::parse_insecure(text));
    assert!(strict.is_err() || lax.is_ok());
    if let Ok(link) = lax {
        assert_eq!(Link::parse_insecure(&link.to_string()).expect("what we print we read"), link);
    }
}

fn bencode(bytes: &[u8]) {
    if let Ok(value) = bencode::decode(bytes) {
        assert_eq!(bencode::encode(&value), bytes, "there is one form");
    }
    let limits = Limits {
        max_len: Bytes(1 << 40),
        name: None,
    };
    if let Ok(info) = parse_info(bytes, None, limits) {
        assert_eq!(parse_info(&info.info_dict(), None, limits).expect("what we write we read"), info);
    }
}

fn tar(bytes: &[u8]) {
    let mut archive = Archive::new(bytes);
    while let Ok(Some(_)) = archive.next_entry() {
        loop {
            match archive.data(u64::MAX).map(<[u8]>::len) {
                Ok(0) | Err(_) => break,
                Ok(count) => archive.consume(count),
            }
        }
    }
}

/// The store's own files, which another host's root may have written, and what comes over the socket.
fn json(bytes: &[u8]) {
    if let Ok(record) = ImageRecord::parse(Path::new("image.json"), bytes) {
        let written = serde_json::to_vec(&record).expect("a record has only JSON's own types");
        assert_eq!(ImageRecord::parse(Path::new("image.json"), &written).expect("what we write we read"), record);
    }
    let _ = serde_json::from_slice::<Intent>(bytes);
    let _ = serde_json::from_slice::<Description>(bytes);
    if let Some((first, rest)) = bytes.split_first() {
        let _ = Request::from_json(Request::VERBS[usize::from(*first) % Request::VERBS.len()], rest);
    }
}

/// What the kernel says, or a person typed.
fn dm(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = text.parse::<SnapshotStatus>();
    if let Ok(table) = text.parse::<Table>() {
        assert_eq!(table.to_string().parse::<Table>().expect("what we print we read"), table);
    }
}
