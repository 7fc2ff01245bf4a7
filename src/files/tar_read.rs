//! A tar stream as entries: long names, PAX records and sparse maps already applied. Knows no file system.
//!
//! Invariant: what is allocated is bounded by what was read and by fixed caps, never by a number in a header.
//! Source: POSIX.1-2017 `pax`; GNU tar 1.34 `src/list.c` (`read_header`) and `src/sparse.c`.

use super::error::{FilesError, shown};
use super::header::{self, BLOCK, Header};
use super::meta::{Kind, Meta, Time};
use super::pax::{MAX_RECORDS, Pax, SparseRecords};
use super::sparse::{self, Map};
use crate::units::MAX_DISK;
use std::io::{BufRead, BufReader, ErrorKind, Read};

/// How much is read, and handed on, at once.
const BUFFER: usize = 1 << 20;

pub struct Entry {
    /// As the archive has it: not yet checked against escapes.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
    /// Which parts of the file follow as data; whole and from 0 for an ordinary file, empty for anything else.
    pub map: Map,
    /// Attribute records that were in a form we do not read.
    pub skipped: u64,
}

pub struct Archive<R> {
    input: BufReader<R>,
    offset: u64,
    /// Data of the current entry that has not been read, then its padding.
    left: u64,
    padding: u64,
    /// The current entry, for messages.
    name: String,
    globals: Pax,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Archive<R> {
        Archive {
            input: BufReader::with_capacity(BUFFER, input),
            offset: 0,
            left: 0,
            padding: 0,
            name: String::new(),
            globals: Pax::default(),
        }
    }

    /// The next entry; what was left of the one before is skipped. After `None` the stream has been read to its end,
    /// so that a decompressor has checked its checksum.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, FilesError> {
        self.skip_rest()?;
        let mut pax = self.globals.clone();
        let (mut long_path, mut long_link) = (None, None);
        let mut pending = false;
        // Told when the entry's own name is known: the record's header has a made-up one.
        let mut malformed = None;
        loop {
            let Some(header) = self.next_header(pending)? else {
                return Ok(None);
            };
            match header.typeflag() {
                b'x' | b'X' => {
                    let records = self.long_record(&header)?;
                    malformed = malformed.or(pax.read(&records).err());
                }
                b'g' => {
                    let records = self.long_record(&header)?;
                    self.globals.read(&records).map_err(|why| self.refuse(&header, why))?;
                    if !self.globals.may_be_global() {
                        return Err(self.refuse(&header, "a global PAX header may not name, resize or map the files after it"));
                    }
                    pax.read(&records).map_err(|why| self.refuse(&header, why))?;
                }
                b'L' => long_path = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                b'V' => {
                    self.start_data(&header, header.size().unwrap_or(0).max(0).cast_unsigned());
                    self.skip_rest()?;
                }
                _ => {
                    let path = pax
                        .sparse
                        .name
                        .clone()
                        .or(pax.path.take())
                        .or(long_path)
                        .unwrap_or_else(|| header.path());
                    let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link_name().to_vec());
                    self.name = shown(&path);
                    if let Some(why) = malformed {
                        return Err(FilesError::refused(&path, why));
                    }
                    return self.entry(&header, pax, path, link).map(Some);
                }
            }
            pending = true;
        }
    }

    /// Up to a buffer of the entry's data, at most `most`; empty only when `most` is 0 or the entry has been read.
    pub fn data(&mut self, most: u64) -> Result<&[u8], FilesError> {
        let want = most.min(self.left);
        if want == 0 {
            return Ok(&[]);
        }
        let available = self.fill()?;
        if available == 0 {
            return Err(FilesError::Truncated { entry: self.name.clone() });
        }
        let take = usize::try_from(want).unwrap_or(usize::MAX).min(available);
        Ok(&self.input.buffer()[..take])
    }

    /// Marks `count` bytes of what [`Archive::data`] gave as used.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.offset += count as u64;
        self.left -= count as u64;
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn fill(&mut self) -> Result<usize, FilesError> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => return Ok(bytes.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(FilesError::Read {
                        offset: self.offset,
                        last: self.name.clone(),
                        source,
                    });
                }
            }
        }
    }

    fn skip_rest(&mut self) -> Result<(), FilesError> {
        self.left = self.left.saturating_add(std::mem::take(&mut self.padding));
        while self.left > 0 {
            let count = self.data(u64::MAX)?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// `None` at a clean end of the stream. A stream may end without the two zero blocks, as it may for GNU tar, but not inside
    /// a block.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, FilesError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let available = self.fill()?;
            if available == 0 {
                return if have == 0 {
                    Ok(None)
                } else {
                    Err(FilesError::Truncated { entry: self.name.clone() })
                };
            }
            let take = available.min(BLOCK - have);
            block[have..have + take].copy_from_slice(&self.input.buffer()[..take]);
            self.input.consume(take);
            self.offset += take as u64;
            have += take;
        }
        Ok(Some(block))
    }

    /// `pending`: records were read that belong to an entry, so the archive may not end here.
    fn next_header(&mut self, pending: bool) -> Result<Option<Header>, FilesError> {
        let at = self.offset;
        let bad = |why, last: &str| FilesError::Header {
            offset: at,
            why,
            last: last.into(),
        };
        let block = match self.block()? {
            Some(block) if block != [0; BLOCK] => block,
            _ if pending => return Err(FilesError::Truncated { entry: self.name.clone() }),
            None => return Ok(None),
            Some(_) => {
                if self.block()?.is_some_and(|second| second != [0; BLOCK]) {
                    return Err(bad("a single block of zeros, and more behind it", &self.name));
                }
                while self.fill()? > 0 {
                    let count = self.input.buffer().len();
                    self.input.consume(count);
                    self.offset += count as u64;
                }
                return Ok(None);
            }
        };
        match Header::parse(&block) {
            Some(header) => Ok(Some(header)),
            None => Err(bad("its checksum is wrong", &self.name)),
        }
    }

    fn refuse(&self, header: &Header, why: &str) -> FilesError {
        FilesError::refused(&header.path(), why)
    }

    fn start_data(&mut self, header: &Header, size: u64) {
        self.name = shown(&header.path());
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn long_record(&mut self, header: &Header) -> Result<Vec<u8>, FilesError> {
        let size = header.size().map_err(|why| self.refuse(header, why))?;
        let size = u64::try_from(size).ok().filter(|&size| size <= MAX_RECORDS);
        let size = size.ok_or_else(|| self.refuse(header, "its name or PAX records are longer than 1 MiB"))?;
        self.start_data(header, size);
        let mut records = Vec::new();
        while self.left > 0 {
            let part = self.data(u64::MAX)?;
            records.extend_from_slice(part);
            let count = part.len();
            self.consume(count);
        }
        self.skip_rest()?;
        Ok(records)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, FilesError> {
        let mut name = self.long_record(header)?;
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn entry(&mut self, header: &Header, pax: Pax, path: Vec<u8>, link: Vec<u8>) -> Result<Entry, FilesError> {
        let refused = |why: &'static str| FilesError::refused(&path, why);
        let small = |value: Result<i64, &'static str>| {
            value
                .and_then(|v| u32::try_from(v).map_err(|_| "a number in its header is out of range"))
                .map_err(refused)
        };
        let id = |pax: Option<u64>, header: Result<i64, &'static str>| {
            let value = pax
                .map_or_else(|| header.and_then(|v| u64::try_from(v).map_err(|_| "a negative id")), Ok)
                .map_err(refused)?;
            u32::try_from(value)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| refused("a user or group id past 4294967294"))
        };
        let header_size = header
            .size()
            .and_then(|size| u64::try_from(size).map_err(|_| "its size is negative"));
        let size = pax.size.map_or(header_size, Ok).map_err(refused)?;
        if size > MAX_DISK.0 {
            return Err(FilesError::refused(
                &path,
                format!("its size of {size} bytes is more than any disk holds"),
            ));
        }
        let device = || Ok::<_, FilesError>((small(header.major())?, small(header.minor())?));
        let plain_file = if path.ends_with(b"/") { Kind::Directory } else { Kind::File };
        let kind = match header.typeflag() {
            b'0' | 0 | b'7' => plain_file,
            b'S' => Kind::File,
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'M' => return Err(refused("it goes on from another volume")),
            other => {
                return Err(FilesError::refused(
                    &path,
                    format!("entries of type {:?} are not known", char::from(other)),
                ));
            }
        };
        let mode = header.mode().map_err(refused)?;
        let mtime = pax
            .mtime
            .map_or_else(|| header.mtime().map(|seconds| Time { seconds, nanos: 0 }), Ok)
            .map_err(refused)?;
        let (uid, gid) = (id(pax.uid, header.uid())?, id(pax.gid, header.gid())?);
        let meta = Meta {
            mode: (mode & 0o7777) as u32,
            uid,
            gid,
            mtime,
            atime: pax.atime,
            xattrs: pax.xattrs,
        };
        // A hard link has no data of its own, whatever its size says: some archivers put the file's there.
        let stored = if matches!(kind, Kind::Hardlink(_)) { 0 } else { size };
        self.start_data(header, stored);
        self.name = shown(&path);
        let map = match kind {
            Kind::File if header.typeflag() == b'S' => self.gnu_map(header, &path, stored)?,
            Kind::File if pax.sparse != SparseRecords::default() => self.pax_map(pax.sparse, &path, stored)?,
            Kind::File => Map {
                parts: vec![(0, stored)],
                size: stored,
            },
            _ => Map {
                parts: Vec::new(),
                size: 0,
            },
        };
        if map.size > MAX_DISK.0 {
            return Err(FilesError::refused(
                &path,
                format!("its size of {} bytes is more than any disk holds", map.size),
            ));
        }
        Ok(Entry {
            path,
            kind,
            meta,
            map,
            skipped: pax.skipped,
        })
    }

    /// The extension blocks come before the data and are not part of its size.
    fn gnu_map(&mut self, header: &Header, path: &[u8], stored: u64) -> Result<Map, FilesError> {
        let refused = |why: &'static str| FilesError::refused(path, why);
        let (mut slots, mut more) = header.gnu_sparse().map_err(refused)?;
        while more {
            let block = self.block()?.ok_or_else(|| FilesError::Truncated { entry: self.name.clone() })?;
            let (next, again) = header::gnu_sparse_extension(&block).map_err(refused)?;
            slots.extend(next);
            sparse::check_count(slots.len()).map_err(refused)?;
            more = again;
        }
        let pair = |(offset, length)| Ok((u64::try_from(offset)?, u64::try_from(length)?));
        let negative = |_: std::num::TryFromIntError| refused("its sparse map has a negative number");
        let parts = slots.into_iter().map(pair).collect::<Result<Vec<_>, _>>().map_err(negative)?;
        let size = u64::try_from(header.gnu_real_size().map_err(refused)?).map_err(negative)?;
        Map::check(parts, size, stored).map_err(refused)
    }

    fn pax_map(&mut self, records: SparseRecords, path: &[u8], stored: u64) -> Result<Map, FilesError> {
        let refused = |why: &'static str| FilesError::refused(path, why);
        let size = records.size.ok_or_else(|| refused("a sparse file without its real size"))?;
        let parts = match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
            (0, _) => records.map,
            (1, 0) => {
                let mut text = sparse::TextReader::default();
                while !text.feed(&self.map_block()?).map_err(refused)? {}
                text.parts()
            }
            (major, minor) => {
                return Err(FilesError::refused(
                    path,
                    format!("sparse files of version {major}.{minor} are not known"),
                ));
            }
        };
        let stored = if records.major == Some(1) { self.left } else { stored };
        Map::check(parts, size, stored).map_err(refused)
    }

    /// One block of a PAX 1.0 map: part of the entry's data.
    fn map_block(&mut self) -> Result<[u8; BLOCK], FilesError> {
        let short = self.left < BLOCK as u64;
        match self.block()? {
            Some(block) if !short => {
                self.left -= BLOCK as u64;
                Ok(block)
            }
            _ => Err(FilesError::Truncated { entry: self.name.clone() }),
        }
    }
}
