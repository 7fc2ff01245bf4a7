//! A tree, entry by entry, in an order that depends on its names only.
//!
//! Knows neither archives nor destinations. Invariant: a directory comes before what it holds, and the first name of a file before
//! its hard links.

use super::beneath::{Beneath, magic_path, stat};
use super::meta::{Kind, Meta, Time};
use super::{FilesError, Stats};
use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, lgetxattr, llistxattr, major, minor, openat, readlinkat, seek};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Linux's limit on the value of an attribute, and on the list of names.
const MAX_XATTR: usize = 64 << 10;
/// Where ext4 keeps its `lost+found`.
const LOST_AND_FOUND_INODE: u64 = 11;

pub struct Walk<'a> {
    from: Beneath<'a>,
    /// Paths still to come, the next at the end.
    todo: Vec<Vec<u8>>,
    /// First names of files with several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// A directory to leave out: where the copy goes.
    pub avoid: Option<(u64, u64)>,
    /// Leave out the empty directory that mkfs makes.
    pub skip_lost_and_found: bool,
    buffer: Vec<u8>,
}

pub struct Node {
    /// Relative, without "."; empty for the root.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
    stat: Stat,
    parent: Rc<OwnedFd>,
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a OwnedFd, crosses_mounts: bool) -> Walk<'a> {
        Walk {
            from: Beneath::reader(root, crosses_mounts),
            todo: vec![Vec::new()],
            names: HashMap::new(),
            avoid: None,
            skip_lost_and_found: false,
            buffer: vec![0; MAX_XATTR],
        }
    }

    pub fn next(&mut self, stats: &mut Stats) -> Result<Option<Node>, FilesError> {
        while let Some(path) = self.todo.pop() {
            let (parent, name) = self
                .from
                .parent(&path)
                .map_err(FilesError::step(&path, "its directory cannot be opened"))?;
            let stat = stat(&*parent, name).map_err(FilesError::step(&path, "it cannot be looked at"))?;
            let identity = (stat.st_dev, stat.st_ino);
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Socket => {
                    stats.sockets_skipped += 1;
                    continue;
                }
                FileType::Directory => {
                    if self.avoid == Some(identity) || !self.enter(&path, &parent, name, &stat)? {
                        continue;
                    }
                    Kind::Directory
                }
                _ if self.names.contains_key(&identity) => Kind::Hardlink(self.names[&identity].clone()),
                FileType::RegularFile => Kind::File,
                FileType::Symlink => {
                    let target = readlinkat(&*parent, name, Vec::new());
                    Kind::Symlink(target.map_err(FilesError::step(&path, "the link cannot be read"))?.into_bytes())
                }
                FileType::CharacterDevice => Kind::CharDevice {
                    major: major(stat.st_rdev),
                    minor: minor(stat.st_rdev),
                },
                FileType::BlockDevice => Kind::BlockDevice {
                    major: major(stat.st_rdev),
                    minor: minor(stat.st_rdev),
                },
                FileType::Fifo => Kind::Fifo,
                FileType::Unknown => return Err(FilesError::refused(&path, "a file of unknown type")),
            };
            if stat.st_nlink > 1 && !matches!(kind, Kind::Directory | Kind::Hardlink(_)) {
                self.names.insert(identity, path.clone());
            }
            let xattrs = if matches!(kind, Kind::Hardlink(_)) {
                BTreeMap::new()
            } else {
                self.xattrs(&parent, name, &path)?
            };
            let meta = Meta {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: Time {
                    seconds: stat.st_mtime,
                    nanos: stat.st_mtime_nsec as u32,
                },
                atime: None,
                xattrs,
            };
            stats.entries += 1;
            return Ok(Some(Node {
                path,
                kind,
                meta,
                stat,
                parent,
            }));
        }
        Ok(None)
    }

    /// Queues what a directory holds; `false` if it is to be left out.
    fn enter(&mut self, path: &[u8], parent: &OwnedFd, name: &[u8], stat: &Stat) -> Result<bool, FilesError> {
        let failed = |error: Errno| FilesError::step(path, "the directory cannot be read")(error);
        let fd = openat(
            parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        if self.skip_lost_and_found && path == b"lost+found" && stat.st_ino == LOST_AND_FOUND_INODE && names.is_empty() {
            return Ok(false);
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.todo.extend(names.iter().map(|name| child_path(path, name)));
        Ok(true)
    }

    fn xattrs(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, FilesError> {
        let failed = |error: Errno| FilesError::step(path, "its attributes cannot be read")(error);
        let place = magic_path(parent, name);
        let length = match llistxattr(place.as_slice(), self.buffer.as_mut_slice()) {
            Err(Errno::NOTSUP) | Ok(0) => return Ok(BTreeMap::new()),
            other => other.map_err(failed)?,
        };
        let keys: Vec<Vec<u8>> = self.buffer[..length]
            .split(|&b| b == 0)
            .filter(|key| !key.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let mut xattrs = BTreeMap::new();
        for key in keys {
            let length = lgetxattr(place.as_slice(), key.as_slice(), self.buffer.as_mut_slice()).map_err(failed)?;
            xattrs.insert(key, self.buffer[..length].to_vec());
        }
        Ok(xattrs)
    }
}

impl Node {
    pub fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// Opens a regular file; another file that took its name meanwhile is an error.
    pub fn open(&self) -> Result<File, FilesError> {
        let name = self.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&*self.parent, name, flags, Mode::empty()).map_err(FilesError::step(&self.path, "it cannot be opened"))?;
        let now = fstat(&fd).map_err(FilesError::step(&self.path, "it cannot be looked at"))?;
        if (now.st_dev, now.st_ino) != (self.stat.st_dev, self.stat.st_ino) {
            return Err(FilesError::refused(&self.path, "it was replaced while it was read"));
        }
        Ok(File::from(fd))
    }

    /// The runs of data between the holes, in order, within [`Node::size`].
    pub fn data_parts(&self, file: &File) -> io::Result<Vec<(u64, u64)>> {
        let size = self.size();
        if u64::try_from(self.stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size {
            return Ok(if size == 0 { Vec::new() } else { vec![(0, size)] });
        }
        let mut parts = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match seek(file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => return Ok(vec![(0, size)]),
                other => other?,
            };
            let end = seek(file, SeekFrom::Hole(start))?.min(size);
            if end <= start {
                break;
            }
            parts.push((start, end - start));
            at = end;
        }
        Ok(parts)
    }
}

/// `name` in `directory`, where an empty directory is the root of all paths.
pub fn child_path(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}
