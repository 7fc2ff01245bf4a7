//! Makes nodes beneath one directory and nowhere else. Knows no archive.
//!
//! A path's parent is found by the kernel with `RESOLVE_BENEATH`: relative links inside the tree are followed (`lib -> usr/lib`), but
//! an absolute link, or one that climbs out, is an error. The last component is never followed: it is replaced.
//! Invariant: every call takes a descriptor found that way and a name without a slash.

use super::meta::{Kind, Meta, Time};
use super::walk::child_path;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Nsecs, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

const CACHED: usize = 16;
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What a directory gets when everything has been put into it.
struct Later {
    mode: u32,
    mtime: Time,
    atime: Option<Time>,
    default_acl: Option<Vec<u8>>,
}

pub struct Beneath<'a> {
    root: &'a OwnedFd,
    resolve: ResolveFlags,
    /// Directories used last, newest at the end.
    cache: Vec<(Vec<u8>, Rc<OwnedFd>)>,
    later: HashMap<Vec<u8>, Later>,
}

type Result<T> = std::result::Result<T, Errno>;

impl<'a> Beneath<'a> {
    /// For writing: relative links are followed as long as they stay inside, mounts are not entered.
    pub fn new(root: &'a OwnedFd) -> Beneath<'a> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Beneath {
            root,
            resolve,
            cache: Vec::new(),
            later: HashMap::new(),
        }
    }

    /// For reading a tree by names that a walk found: no link is followed at all.
    pub fn reader(root: &'a OwnedFd, crosses_mounts: bool) -> Beneath<'a> {
        let mounts = if crosses_mounts {
            ResolveFlags::empty()
        } else {
            ResolveFlags::NO_XDEV
        };
        Beneath {
            resolve: ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | mounts,
            ..Beneath::new(root)
        }
    }

    /// Opens the directory that holds `path`'s last component; that component is returned beside it ("." for the root).
    pub fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(Rc<OwnedFd>, &'p [u8])> {
        let (directory, name) = split(path);
        Ok((self.directory(directory)?, if name.is_empty() { b"." } else { name }))
    }

    /// The same, making directories that the archive has not named (0755, as GNU tar does under the usual umask).
    fn parent_or_make<'p>(&mut self, path: &'p [u8]) -> Result<(Rc<OwnedFd>, &'p [u8])> {
        match self.parent(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (directory, _) = split(path);
        let ends = directory
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(i, _)| i)
            .chain([directory.len()]);
        for end in ends {
            let (parent, name) = self.parent(&directory[..end])?;
            match mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
                // Once more, as the process's umask may have taken bits away.
                Ok(()) => chmodat(&*parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        self.parent(path)
    }

    fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        if let Some(at) = self.cache.iter().rposition(|(cached, _)| cached == path) {
            self.cache[at..].rotate_left(1);
            return Ok(self.cache[self.cache.len() - 1].1.clone());
        }
        let name = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = Rc::new(self.open(name, flags)?);
        if self.cache.len() == CACHED {
            self.cache.remove(0);
        }
        self.cache.push((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    /// The kernel answers EAGAIN when it could not rule out that a rename elsewhere moved the path out; a few times is bad luck.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let mut tries = 0;
        loop {
            match openat2(self.root, path, flags, Mode::empty(), self.resolve) {
                Err(Errno::AGAIN) if tries < 100 => tries += 1,
                other => return other,
            }
        }
    }

    /// A new, empty file, open for writing; what had its name is gone. Finish it with [`finish_file`].
    pub fn create(&mut self, path: &[u8]) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (parent, name) = self.parent_or_make(path)?;
        self.replacing(&parent, name, path, |dir, name| {
            openat(dir, name, flags, Mode::from_raw_mode(0o600))
        })
        .map(File::from)
    }

    /// Any node with its owner, mode, attributes and times; a regular file is empty.
    pub fn node(&mut self, path: &[u8], kind: &Kind, meta: &Meta) -> Result<()> {
        let (parent, name) = self.parent_or_make(path)?;
        let mode = Mode::from_raw_mode(0o600);
        let special = |kind, dev| move |dir: &OwnedFd, name: &[u8]| mknodat(dir, name, kind, mode, dev);
        match kind {
            Kind::File => return finish_file(&self.create(path)?, meta),
            Kind::Directory => return self.make_directory(path, &parent, name, meta),
            Kind::Hardlink(target) => return self.link(path, target),
            Kind::Symlink(target) => self.replacing(&parent, name, path, |dir, name| symlinkat(target.as_slice(), dir, name))?,
            Kind::Fifo => self.replacing(&parent, name, path, special(FileType::Fifo, 0))?,
            Kind::CharDevice { major, minor } => {
                self.replacing(&parent, name, path, special(FileType::CharacterDevice, makedev(*major, *minor)))?
            }
            Kind::BlockDevice { major, minor } => {
                self.replacing(&parent, name, path, special(FileType::BlockDevice, makedev(*major, *minor)))?
            }
        }
        let (uid, gid) = owner(meta);
        chownat(&*parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if !matches!(kind, Kind::Symlink(_)) {
            // Follows links, but this name is one that was made above, and it is not one.
            chmodat(&*parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
        }
        for (key, value) in &meta.xattrs {
            lsetxattr(magic_path(&parent, name).as_slice(), key.as_slice(), value, XattrFlags::empty())?;
        }
        utimensat(&*parent, name, &times(meta.mtime, meta.atime), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Makes the directory, or takes the one that is there; its mode, times and default ACL wait for [`Beneath::finish`].
    fn make_directory(&mut self, path: &[u8], parent: &OwnedFd, name: &[u8], meta: &Meta) -> Result<()> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) => match FileType::from_raw_mode(stat(parent, name)?.st_mode) {
                FileType::Directory => {}
                // GNU tar follows it or replaces it, depending on an option; guessing wrong loses files.
                FileType::Symlink => return Err(Errno::NOTDIR),
                _ => self.replacing(parent, name, path, |dir, name| mkdirat(dir, name, Mode::from_raw_mode(0o700)))?,
            },
            other => other?,
        }
        let fd = openat(
            parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (uid, gid) = owner(meta);
        fchown(&fd, uid, gid)?;
        for (key, value) in meta.xattrs.iter().filter(|(key, _)| *key != DEFAULT_ACL) {
            fsetxattr(&fd, key.as_slice(), value, XattrFlags::empty())?;
        }
        let default_acl = meta.xattrs.get(DEFAULT_ACL).cloned();
        self.later.insert(
            path.to_vec(),
            Later {
                mode: meta.mode,
                mtime: meta.mtime,
                atime: meta.atime,
                default_acl,
            },
        );
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (from, from_name) = self.parent(target)?;
        let (parent, name) = self.parent_or_make(path)?;
        if let (Ok(a), Ok(b)) = (stat(&from, from_name), stat(&parent, name))
            && (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
        {
            return Ok(());
        }
        self.replacing(&parent, name, path, |dir, name| {
            linkat(&*from, from_name, dir, name, AtFlags::empty())
        })
    }

    /// Runs `make`; when something has that name already, removes it first, as tar does: the last entry wins.
    fn replacing<T>(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], make: impl Fn(&OwnedFd, &[u8]) -> Result<T>) -> Result<T> {
        match make(dir, name) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        if name == b"." {
            return Err(Errno::ISDIR);
        }
        match unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => unlinkat(dir, name, AtFlags::REMOVEDIR)?,
            other => other?,
        }
        self.cache.clear();
        self.later.remove(path);
        make(dir, name)
    }

    /// Gives the directories their modes, times and default ACLs, deepest first. The error names the directory.
    pub fn finish(&mut self) -> std::result::Result<(), (Vec<u8>, Errno)> {
        let mut later: Vec<_> = self.later.drain().collect();
        later.sort_by(|a, b| b.0.cmp(&a.0));
        self.cache.clear();
        for (path, what) in later {
            self.finish_directory(&path, &what).map_err(|error| (path, error))?;
        }
        Ok(())
    }

    fn finish_directory(&mut self, path: &[u8], what: &Later) -> Result<()> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        // A later entry may have put something else in its place.
        let fd = match openat(
            &*parent,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        if let Some(acl) = &what.default_acl {
            fsetxattr(&fd, DEFAULT_ACL, acl, XattrFlags::empty())?;
        }
        fchmod(&fd, Mode::from_raw_mode(what.mode))?;
        futimens(&fd, &times(what.mtime, what.atime))
    }
}

/// Owner, mode, attributes, times, in this order: a change of owner clears setuid and capabilities, and any change moves the times.
pub fn finish_file(file: &File, meta: &Meta) -> Result<()> {
    let (uid, gid) = owner(meta);
    fchown(file, uid, gid)?;
    fchmod(file, Mode::from_raw_mode(meta.mode))?;
    for (key, value) in &meta.xattrs {
        fsetxattr(file, key.as_slice(), value, XattrFlags::empty())?;
    }
    futimens(file, &times(meta.mtime, meta.atime))
}

pub fn stat(dir: impl AsFd, name: &[u8]) -> Result<rustix::fs::Stat> {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// A path for the calls that take no descriptor and name: through `/proc`, where only the descriptor's own link is followed.
pub fn magic_path(dir: &OwnedFd, name: &[u8]) -> Vec<u8> {
    child_path(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes(), name)
}

/// Opens the directory that everything else is beneath; a link to it is followed, as it is the user who named it.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter()
        .rposition(|&b| b == b'/')
        .map_or((&[], path), |at| (&path[..at], &path[at + 1..]))
}

fn owner(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

fn times(mtime: Time, atime: Option<Time>) -> Timestamps {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: Nsecs::from(time.nanos),
    };
    let last_access = atime.map_or(
        Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        spec,
    );
    Timestamps {
        last_access,
        last_modification: spec(mtime),
    }
}
