//! dm-thin by its bare ioctls: a pool of 64 KiB blocks that are not zeroed, a message and a device for each snapshot.
//!
//! What is committed there is not active, so a new snapshot of it need not suspend it. What containerd does around this: `snapshotter.rs`.

use super::devices::{self, Made};
use super::peers::RawLoop;
use devicemapper::DM;
use std::path::{Path, PathBuf};

/// Of the file system on each device.
const SECTORS: u64 = (1 << 30) / 512;
const POOL: &str = "pool";

/// The number of a snapshot that the bench makes; those of the layers are smaller.
pub const SCRATCH: u32 = 1000;

pub struct Pool {
    dm: DM,
    number: String,
    _files: [RawLoop; 2],
}

pub struct Thin<'a> {
    pool: &'a Pool,
    name: String,
    pub path: PathBuf,
}

impl Pool {
    /// The one that the bench's disk has.
    pub fn open(dir: &Path) -> Pool {
        let [meta, data] = ["meta", "data"].map(|name| RawLoop::new(&dir.join(name), false));
        let sectors = std::fs::metadata(dir.join("data")).expect("the disk has a pool").len() / 512;
        let dm = DM::new().expect("the guest has device-mapper");
        let table = format!("{} {} 128 32768 1 skip_block_zeroing", meta.device.display(), data.device.display());
        let Made { number, .. } = devices::create(&dm, POOL, sectors, "thin-pool", &table);
        // What a run that was ended left: mostly nothing.
        let _none = devices::message(&dm, POOL, &format!("delete {SCRATCH}"));
        Pool {
            dm,
            number,
            _files: [meta, data],
        }
    }

    fn say(&self, message: &str) {
        devices::message(&self.dm, POOL, message).unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn snapshot(&self, id: u32, of: u32) {
        self.say(&format!("create_snap {id} {of}"));
    }

    pub fn delete(&self, id: u32) {
        self.say(&format!("delete {id}"));
    }

    pub fn is_active(&self, id: u32) -> bool {
        devices::is_there(&self.dm, &device_of(id))
    }

    pub fn activate(&self, id: u32) -> Thin<'_> {
        let name = device_of(id);
        let Made { path, .. } = devices::create(&self.dm, &name, SECTORS, "thin", &format!("{} {id}", self.number));
        Thin { pool: self, name, path }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        devices::remove(&self.dm, POOL);
    }
}

impl Drop for Thin<'_> {
    fn drop(&mut self) {
        devices::remove(&self.pool.dm, &self.name);
    }
}

fn device_of(id: u32) -> String {
    format!("thin-{id}")
}
