//! The file system: a root directory and the disk.
//!
//! Knows inode numbers and errno, not bytes. Invariant: sizes and attributes never change while it is mounted, so the kernel may keep them
//! for ever; loop's status call then works even when the server is dead.

use super::FILE;
use super::ahead::Ahead;
use crate::blockio::BlockDevice;
use crate::units::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const ROOT: INodeNo = INodeNo(1);
const DISK: INodeNo = INodeNo(2);
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The largest request: what loop asks for at once, and 256 pages, the most that every kernel grants.
const MAX_REQUEST: u32 = 1 << 20;

pub struct DiskFs {
    disk: Arc<dyn BlockDevice>,
    started: SystemTime,
    ahead: Ahead,
}

thread_local! {
    /// Each server thread's answer; as large as its largest request, never freed, so that reads fault no pages in.
    static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DiskFs {
    pub fn new(disk: Arc<dyn BlockDevice>) -> DiskFs {
        DiskFs {
            disk,
            started: SystemTime::now(),
            ahead: Ahead::default(),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match inode {
            ROOT => (FileType::Directory, 0o500, 0, 2),
            DISK if self.disk.read_only() => (FileType::RegularFile, 0o400, self.disk.size().0, 1),
            DISK => (FileType::RegularFile, 0o600, self.disk.size().0, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            crtime: self.started,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn done(&self, what: &'static str, at: u64, len: u64, result: io::Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(answer(what, at, len, &error)),
        }
    }
}

/// The errno that stands for `error`. It is logged here, as only its number travels on.
fn answer(what: &'static str, at: u64, len: u64, error: &io::Error) -> Errno {
    tracing::error!(what, at, len, %error, "disk request failed");
    if let Some(code) = error.raw_os_error() {
        return Errno::from_i32(code);
    }
    match error.kind() {
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::QuotaExceeded => Errno::EDQUOT,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::EROFS,
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        io::ErrorKind::OutOfMemory => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

impl Filesystem for DiskFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is an offer: what this kernel grants less of, it says itself.
        let _granted = config.set_max_write(MAX_REQUEST);
        let _granted = config.set_max_readahead(MAX_REQUEST);
        let _granted = config.set_max_background(64);
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _granted = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(DISK) {
            Some(attributes) if parent == ROOT && name == FILE => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match inode {
            // Nothing is cached above us: loop's device has a page cache of its own, and the delta files have theirs.
            DISK => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH,
            ),
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn read(&self, _: &Request, _: INodeNo, _: FileHandle, at: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        let len = u64::from(size).min(self.disk.size().0.saturating_sub(at)) as usize;
        ANSWER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            match self.disk.read(Bytes(at), &mut buffer[..len]) {
                Ok(()) => reply.data(&buffer[..len]),
                Err(error) => reply.error(answer("read", at, len as u64, &error)),
            }
        });
        // The answer is on its way; while it is used, the disk beneath need not rest.
        if let Some((at, len)) = self.ahead.after_read(at, len as u64) {
            self.disk.will_need(Bytes(at), Bytes(len));
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let room = self.disk.size().0.saturating_sub(at);
        if data.len() as u64 > room {
            return reply.error(Errno::ENOSPC);
        }
        match self.disk.write(Bytes(at), data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(answer("write", at, data.len() as u64, &error)),
        }
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, at: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        let discard = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE;
        if mode != discard && mode != zero && mode != zero | libc::FALLOC_FL_KEEP_SIZE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let len = len.min(self.disk.size().0.saturating_sub(at));
        self.done("zero", at, len, self.disk.zero(Bytes(at), Bytes(len)), reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.done("flush", 0, 0, self.disk.flush(), reply);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if inode != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, "."),
            (ROOT, FileType::Directory, ".."),
            (DISK, FileType::RegularFile, FILE),
        ];
        for (next, (inode, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Loop takes its discard granularity from the block size.
        reply.statfs(self.disk.size().0 / 4096, 0, 0, 1, 0, 4096, 255, 4096);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }
}
