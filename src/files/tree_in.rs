//! A directory tree of the host into a mounted, new file system, as `cp -a` would copy it.
//!
//! Knows no archive. Invariant: the source is read through descriptors that follow no link, so that a change meanwhile can
//! make an error but not make us read another file.

use super::beneath::{Beneath, finish_file, open_root};
use super::meta::Kind;
use super::walk::{Node, Walk};
use super::{FilesError, Stats};
use rustix::fs::{copy_file_range, fstat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BUFFER: usize = 1 << 20;

/// Copies what is in `source`, and the directory's own mode, owner and times, to `root`. Mounts below it are entered; sockets, and
/// `root` itself if it is in there, are left out.
///
/// Shape: `progress` is told the bytes and entries copied so far.
pub fn import(source: &Path, root: &OwnedFd, progress: &mut dyn FnMut(u64, u64)) -> Result<Stats, FilesError> {
    let name = source.as_os_str().as_bytes();
    let from = open_root(source).map_err(FilesError::step(name, "the directory cannot be opened"))?;
    let target = fstat(root).map_err(FilesError::step(b".", "the new file system cannot be looked at"))?;
    let mut walk = Walk::new(&from, true);
    walk.avoid = Some((target.st_dev, target.st_ino));
    let mut to = Beneath::new(root);
    let mut copier = Copier {
        in_kernel: true,
        buffer: vec![0; BUFFER],
    };
    let mut stats = Stats::default();
    while let Some(node) = walk.next(&mut stats)? {
        match &node.kind {
            Kind::File => copier.file(&node, &mut to, &mut stats, progress)?,
            kind => to
                .node(&node.path, kind, &node.meta)
                .map_err(FilesError::step(&node.path, "it cannot be made"))?,
        }
        progress(stats.bytes, stats.entries);
    }
    to.finish()
        .map_err(|(path, error)| FilesError::step(&path, "its mode and times cannot be set")(error))?;
    Ok(stats)
}

struct Copier {
    /// Until the kernel says that it cannot copy between these file systems.
    in_kernel: bool,
    buffer: Vec<u8>,
}

impl Copier {
    fn file(&mut self, node: &Node, to: &mut Beneath, stats: &mut Stats, progress: &mut dyn FnMut(u64, u64)) -> Result<(), FilesError> {
        let from = node.open()?;
        let file = to.create(&node.path).map_err(FilesError::step(&node.path, "it cannot be made"))?;
        let parts = node.data_parts(&from).map_err(FilesError::step(&node.path, "it cannot be read"))?;
        let mut end = 0;
        for (offset, length) in parts {
            end = offset;
            while end < offset + length {
                let count = self
                    .copy(&from, &file, end, offset + length - end)
                    .map_err(|error| copy_error(node, error))?;
                end += count;
                stats.bytes += count;
                progress(stats.bytes, stats.entries);
            }
        }
        if end < node.size() {
            file.set_len(node.size())
                .map_err(FilesError::step(&node.path, "it cannot be given its size"))?;
        }
        finish_file(&file, &node.meta).map_err(FilesError::step(&node.path, "its owner, mode, attributes or times cannot be set"))
    }

    /// Copies some of `most` bytes at `at`, and says how many.
    fn copy(&mut self, from: &File, to: &File, at: u64, most: u64) -> io::Result<u64> {
        let want = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        if self.in_kernel {
            let (mut source, mut target) = (at, at);
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
                Ok(count) if count > 0 => return Ok(count as u64),
                // Some file systems answer 0 where there is data; a plain read tells the end of the file apart.
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => self.in_kernel = false,
                Err(error) => return Err(error.into()),
            }
        }
        let count = loop {
            match from.read_at(&mut self.buffer[..want], at) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&self.buffer[..count], at)?;
        Ok(count as u64)
    }
}

fn copy_error(node: &Node, error: io::Error) -> FilesError {
    match error.kind() {
        ErrorKind::UnexpectedEof => FilesError::refused(&node.path, "it shrank while it was read"),
        _ => FilesError::step(&node.path, "it cannot be copied")(error),
    }
}
