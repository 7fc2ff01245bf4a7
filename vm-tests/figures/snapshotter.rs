//! dm-thin as containerd's devmapper snapshotter uses it: what its `Prepare` and `Remove` do around the ioctls of `thin.rs`.
//!
//! A model: the same ioctls, mounts, and writes and syncs of its two databases in the same order, on the bench's disk. Left out: the programs that it
//! starts (a `dmsetup` for each ioctl), its JSON, the calls to it, and all that containerd keeps for itself above it.
//! Source: containerd 1.6, snapshots/devmapper/{snapshotter,pool_device,metadata}.go and mount/temp.go; bbolt's `Tx.Commit`, with the default options, as
//! containerd opens it. The counts are those of a real containerd by strace: kernel-notes/peers.md.

use super::thin::{Pool, Thin};
use super::tool::Mounted;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE: usize = 4096;
/// What a database takes turns in: bbolt writes a page where nobody reads the old one any more.
const PAGES: u64 = 64;
/// Pages of a transaction besides the meta page: as seen with one snapshot there, the least; with 32 it was two more in the pool's.
const DEVICE: u64 = 2;
const SNAPSHOT: [u64; 2] = [5, 4];

pub struct Snapshotter<'a> {
    pool: &'a Pool,
    /// The pool's: the state of each device, before and after each step.
    devices: Database,
    /// The snapshots, by name.
    snapshots: Database,
    temporary: PathBuf,
}

impl<'a> Snapshotter<'a> {
    /// `dir` is on the bench's disk; `temporary` is a directory that can be made.
    pub fn open(pool: &'a Pool, dir: &Path, temporary: PathBuf) -> Snapshotter<'a> {
        let open = |name| Database::open(&dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Snapshotter {
            pool,
            devices: open("pool.db"),
            snapshots: open("metadata.db"),
            temporary,
        }
    }

    pub fn prepare(&mut self, id: u32, of: u32) -> Thin<'a> {
        assert!(!self.pool.is_active(of), "what is committed is not active");
        // Added, with the number that the pool is to know it by.
        self.devices.commit(DEVICE);
        // Creating ... Created.
        self.devices.commit(DEVICE);
        self.pool.snapshot(id, of);
        self.devices.commit(DEVICE);
        // Activating ... Activated.
        self.devices.commit(DEVICE);
        let device = self.pool.activate(id);
        self.devices.commit(DEVICE);
        fs::create_dir(&self.temporary).expect("nobody has it");
        let mounted = Mounted::ext4(&device.path, &self.temporary);
        // The base's has been removed when that was made: mostly there is none.
        let _none = fs::remove_dir(self.temporary.join("lost+found"));
        drop(mounted);
        fs::remove_dir(&self.temporary).expect("nothing is mounted there");
        self.snapshots.commit(SNAPSHOT[0]);
        device
    }

    pub fn remove(&mut self, id: u32, device: Thin) {
        assert!(self.pool.is_active(id), "it has been prepared");
        // Deactivating ... Deactivated.
        self.devices.commit(DEVICE);
        drop(device);
        self.devices.commit(DEVICE);
        // Removing ... Removed.
        self.devices.commit(DEVICE);
        self.pool.delete(id);
        self.devices.commit(DEVICE);
        // Forgotten.
        self.devices.commit(DEVICE);
        self.snapshots.commit(SNAPSHOT[1]);
    }
}

/// A file that is written as bbolt writes its own.
struct Database {
    file: File,
    next: u64,
    transactions: u64,
}

impl Database {
    fn open(path: &Path) -> io::Result<Database> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        // All pages have been written before: a commit changes no block's place.
        file.write_all_at(&vec![0; PAGE * (PAGES as usize + 2)], 0)?;
        file.sync_all()?;
        Ok(Database {
            file,
            next: 0,
            transactions: 0,
        })
    }

    /// One transaction: its pages, a sync, one of the two meta pages, a sync.
    fn commit(&mut self, pages: u64) {
        let page = |number: u64| {
            let written = self.file.write_all_at(&[7; PAGE], number * PAGE as u64);
            written.expect("the disk takes a page");
        };
        let sync = || self.file.sync_data().expect("the disk can be synced");
        for number in 0..pages {
            page(2 + (self.next + number) % PAGES);
        }
        sync();
        page(self.transactions % 2);
        sync();
        self.next += pages;
        self.transactions += 1;
    }
}
