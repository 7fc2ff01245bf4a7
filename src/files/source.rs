//! What the user gave to import: a directory, an archive in some compression, or a raw disk. Told by content; but what is called an archive
//! is never taken for a raw disk.
//!
//! Knows nothing of where it goes. Invariant: a stream's error names its file, and a compressed stream that ends early is an error.

use super::header::{BLOCK, looks_like_tar};
use crate::units::{Bytes, SECTOR};
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub enum Source {
    Dir(PathBuf),
    Tar(TarStream),
    Raw(RawDisk),
}

pub struct TarStream {
    /// The archive, uncompressed.
    pub reader: Box<dyn Read + Send>,
    /// Size of the file as it lies there; `None` for a pipe.
    pub len: Option<Bytes>,
    /// How much of the file has been read, for progress: `len` is its end.
    pub consumed: Arc<AtomicU64>,
}

pub struct RawDisk {
    pub file: File,
    pub size: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {what}", path.display())]
    NotUsable { path: PathBuf, what: String },
}

/// Wraps an error of a stream, so that it names the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: the {kind} stream is damaged or cut short", path.display())]
struct StreamError {
    path: PathBuf,
    kind: &'static str,
    #[source]
    source: io::Error,
}

/// Formats that are told by how they begin and that we do not read, each with what to do.
const OTHERS: [(&[u8], &str); 15] = [
    (b"QFI\xfb", "a qcow2 disk: convert it with `qemu-img convert -O raw`"),
    (b"KDMV", "a VMDK disk: convert it with `qemu-img convert -O raw`"),
    (
        b"# Disk DescriptorFile",
        "a VMDK description: convert it with `qemu-img convert -O raw`",
    ),
    (b"vhdxfile", "a VHDX disk: convert it with `qemu-img convert -O raw`"),
    (b"conectix", "a VHD disk: convert it with `qemu-img convert -O raw`"),
    (
        b"WithoutFreeSpace",
        "a ploop disk: convert it with `qemu-img convert -f parallels -O raw`",
    ),
    (
        b"WithouFreSpacExt",
        "a ploop disk: convert it with `qemu-img convert -f parallels -O raw`",
    ),
    (b"SnAp", "a delta file, which belongs into a store"),
    (b"BZh", "bzip2, which is not read: unpack it, or use gzip, zstd or xz"),
    (b"PK\x03\x04", "a zip archive, which cannot hold a root file system: make a tar"),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive, which cannot hold a root file system: make a tar",
    ),
    (b"hsqs", "a squashfs: mount it and import the directory"),
    (b"070701", "a cpio archive: unpack it and import the directory"),
    (b"070707", "a cpio archive: unpack it and import the directory"),
    (b"\x04\x22\x4d\x18", "lz4, which is not read: unpack it, or use gzip, zstd or xz"),
];

enum Compression {
    Gzip,
    Zstd,
    Xz,
}

/// Looks at what `path` is and opens it.
pub fn open(path: &Path) -> Result<Source, SourceError> {
    let failed = |source| SourceError::Io { path: path.into(), source };
    let not_usable = |what: &str| {
        Err(SourceError::NotUsable {
            path: path.into(),
            what: what.into(),
        })
    };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(Source::Dir(path.into()));
    }
    if !kind.is_file() && !kind.is_block_device() && !kind.is_fifo() {
        return not_usable("neither a directory, a file, a pipe nor a block device");
    }
    let size = if kind.is_fifo() {
        None
    } else {
        Some(
            file.seek(SeekFrom::End(0))
                .and_then(|size| file.rewind().map(|()| size))
                .map_err(failed)?,
        )
    };
    let head = read_head(&mut file).map_err(failed)?;
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return not_usable(what);
    }
    let compression = compression_of(&head);
    let is_named = is_archive_name(path);
    let is_tar = |head: &[u8]| is_tar(head) || is_named && is_empty_tar(head);
    if compression.is_none() && !is_tar(&head) {
        return match size {
            None => not_usable("what comes out of this pipe is not a tar archive"),
            Some(0) => not_usable("it is empty"),
            _ if is_named => not_usable("its name says archive, and what is in it is none, or damaged from the start"),
            Some(size) if !size.is_multiple_of(SECTOR) => not_usable(&format!(
                "neither a tar archive nor a raw disk: its size of {size} bytes is not a multiple of 512"
            )),
            Some(size) => {
                file.rewind().map_err(failed)?;
                Ok(Source::Raw(RawDisk { file, size: Bytes(size) }))
            }
        };
    }
    let consumed = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: Cursor::new(head).chain(file),
        count: consumed.clone(),
    };
    let (decoder, kind) = decoder(compression, counted).map_err(failed)?;
    let mut named = Named {
        inner: decoder,
        path: path.into(),
        kind,
    };
    let first = read_head(&mut named).map_err(failed)?;
    if kind != PLAIN && !is_tar(&first) {
        return not_usable(&format!(
            "{kind}, but what is in it is not a tar archive; unpack a disk before importing it"
        ));
    }
    Ok(Source::Tar(TarStream {
        reader: Box::new(Cursor::new(first).chain(named)),
        len: size.map(Bytes),
        consumed,
    }))
}

const PLAIN: &str = "tar";

fn is_tar(head: &[u8]) -> bool {
    head.first_chunk::<BLOCK>().is_some_and(looks_like_tar)
}

/// An archive of nothing begins with the zeros that end every archive, as many a disk does.
fn is_empty_tar(head: &[u8]) -> bool {
    head.len() == BLOCK && head.iter().all(|byte| *byte == 0)
}

fn is_archive_name(path: &Path) -> bool {
    const ENDINGS: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2"];
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn compression_of(head: &[u8]) -> Option<Compression> {
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    match head {
        _ if head.starts_with(&[0x1f, 0x8b, 8]) => Some(Compression::Gzip),
        _ if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable => Some(Compression::Zstd),
        _ if head.starts_with(b"\xfd7zXZ\0") => Some(Compression::Xz),
        _ => None,
    }
}

/// Each takes several members, or frames, one after the other.
fn decoder(compression: Option<Compression>, input: impl Read + Send + 'static) -> io::Result<(Box<dyn Read + Send>, &'static str)> {
    let buffered = BufReader::with_capacity(256 << 10, input);
    Ok(match compression {
        None => (Box::new(buffered), PLAIN),
        Some(Compression::Gzip) => (Box::new(flate2::bufread::MultiGzDecoder::new(buffered)), "gzip"),
        Some(Compression::Zstd) => (Box::new(zstd::Decoder::with_buffer(buffered)?), "zstd"),
        Some(Compression::Xz) => (Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(buffered)), "xz"),
    })
}

/// The first block, or less where the input is shorter.
fn read_head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(BLOCK);
    input.by_ref().take(BLOCK as u64).read_to_end(&mut head)?;
    Ok(head)
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct Named<R> {
    inner: R,
    path: PathBuf,
    kind: &'static str,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|source| match source.kind() {
            io::ErrorKind::Interrupted => source,
            kind => io::Error::new(
                kind,
                StreamError {
                    path: self.path.clone(),
                    kind: self.kind,
                    source,
                },
            ),
        })
    }
}
