//! A mounted file system as a POSIX (PAX) tar archive that GNU tar and Python read back whole.
//!
//! Refuses to know where the tree came from. Invariant: the bytes depend on the tree alone: names in order, no clock, no user names.

use super::header::{self, BLOCK, Fields, MAX_LARGE, MAX_NAME, MAX_SMALL};
use super::meta::{Kind, Time};
use super::pax;
use super::sparse::Map;
use super::walk::{Node, Walk};
use super::{FilesError, Stats};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

const BUFFER: usize = 1 << 20;

/// Writes everything beneath `root`, which is one file system; what is mounted below it is an error.
///
/// Shape: `progress` is told the bytes of file content and the entries written so far. Sockets and an empty `lost+found` of mkfs are
/// left out; the sockets are counted.
pub fn export(root: &OwnedFd, writer: &mut dyn Write, progress: &mut dyn FnMut(u64, u64)) -> Result<Stats, FilesError> {
    let mut walk = Walk::new(root, false);
    walk.skip_lost_and_found = true;
    let mut out = Output {
        to: BufWriter::with_capacity(BUFFER, writer),
        buffer: vec![0; BUFFER],
    };
    let mut stats = Stats::default();
    while let Some(node) = walk.next(&mut stats)? {
        match node.kind {
            Kind::File => out.file(&node, &mut stats, progress)?,
            _ => out.header(&node, 0, &[])?,
        }
        progress(stats.bytes, stats.entries);
    }
    out.write(&[0; 2 * BLOCK])?;
    out.to.flush().map_err(|source| FilesError::Write { source })?;
    Ok(stats)
}

struct Output<'a> {
    to: BufWriter<&'a mut dyn Write>,
    buffer: Vec<u8>,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.to.write_all(bytes).map_err(|source| FilesError::Write { source })
    }

    fn pad(&mut self, written: u64) -> Result<(), FilesError> {
        let missing = written.next_multiple_of(BLOCK as u64) - written;
        self.write(&[0; BLOCK][..missing as usize])
    }

    fn file(&mut self, node: &Node, stats: &mut Stats, progress: &mut dyn FnMut(u64, u64)) -> Result<(), FilesError> {
        let unreadable = |error: std::io::Error| FilesError::step(&node.path, "it cannot be read")(error);
        let size = node.size();
        if size == 0 {
            return self.header(node, 0, &[]);
        }
        let file = node.open()?;
        let mut parts = node.data_parts(&file).map_err(unreadable)?;
        if parts.last().is_none_or(|(offset, length)| offset + length < size) {
            // GNU tar gives a file the size at which its last part ends.
            parts.push((size, 0));
        }
        let map = Map { parts, size };
        let stored = map.stored();
        if stored == size {
            self.header(node, size, &[])?;
        } else {
            let text = map.to_text();
            let mut records = Vec::new();
            pax::push(&mut records, b"GNU.sparse.major", b"1");
            pax::push(&mut records, b"GNU.sparse.minor", b"0");
            pax::push(&mut records, b"GNU.sparse.name", &node.path);
            pax::push(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
            self.header(node, stored + text.len() as u64, &records)?;
            self.write(&text)?;
        }
        for (offset, length) in map.parts {
            let mut at = offset;
            while at < offset + length {
                let want = usize::try_from(offset + length - at).unwrap_or(usize::MAX).min(self.buffer.len());
                match file.read_at(&mut self.buffer[..want], at) {
                    Ok(0) => return Err(FilesError::refused(&node.path, "it shrank while it was read")),
                    Ok(count) => {
                        self.to
                            .write_all(&self.buffer[..count])
                            .map_err(|source| FilesError::Write { source })?;
                        at += count as u64;
                        stats.bytes += count as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(unreadable(error)),
                }
                progress(stats.bytes, stats.entries);
            }
        }
        self.pad(stored)
    }

    /// The header of one entry and, before it, the records for what a ustar header cannot hold.
    fn header(&mut self, node: &Node, size: u64, sparse: &[u8]) -> Result<(), FilesError> {
        let (typeflag, link, device) = match &node.kind {
            Kind::File => (b'0', &[][..], (0, 0)),
            Kind::Directory => (b'5', &[][..], (0, 0)),
            Kind::Hardlink(target) => (b'1', target.as_slice(), (0, 0)),
            Kind::Symlink(target) => (b'2', target.as_slice(), (0, 0)),
            Kind::CharDevice { major, minor } => (b'3', &[][..], (*major, *minor)),
            Kind::BlockDevice { major, minor } => (b'4', &[][..], (*major, *minor)),
            Kind::Fifo => (b'6', &[][..], (0, 0)),
        };
        let mut path = if node.path.is_empty() { b".".to_vec() } else { node.path.clone() };
        if node.kind == Kind::Directory {
            path.push(b'/');
        }
        let shown = if sparse.is_empty() {
            path.clone()
        } else {
            [b"GNUSparseFile.0/", path.as_slice()].concat()
        };
        let meta = &node.meta;
        let mut records = Vec::new();
        if path.len() > MAX_NAME && sparse.is_empty() {
            pax::push(&mut records, b"path", &path);
        }
        if link.len() > MAX_NAME {
            pax::push(&mut records, b"linkpath", link);
        }
        if size > MAX_LARGE {
            pax::push(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], meta.uid), (b"gid", meta.gid)] {
            if u64::from(id) > MAX_SMALL {
                pax::push(&mut records, key, id.to_string().as_bytes());
            }
        }
        if !fits(meta.mtime) {
            pax::push_time(&mut records, b"mtime", meta.mtime);
        }
        for (name, value) in &meta.xattrs {
            pax::push_xattr(&mut records, name, value);
        }
        records.extend_from_slice(sparse);
        let mut fields = Fields {
            path: &shown,
            link,
            typeflag,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            size,
            mtime: meta.mtime.seconds,
            major: device.0,
            minor: device.1,
        };
        let own = header::build(&fields);
        if !records.is_empty() {
            let pax_path = [b"PaxHeaders/", path.as_slice()].concat();
            fields = Fields {
                path: &pax_path,
                link: &[],
                typeflag: b'x',
                size: records.len() as u64,
                major: 0,
                minor: 0,
                ..fields
            };
            let extended = header::build(&fields);
            self.write(&extended)?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.write(&own)
    }
}

fn fits(time: Time) -> bool {
    time.nanos == 0 && u64::try_from(time.seconds).is_ok_and(|seconds| seconds <= MAX_LARGE)
}
