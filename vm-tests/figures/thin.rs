//! dm-thin as containerd's devmapper snapshotter uses it: a pool of 64 KiB blocks that are not zeroed, a message and a device for each snapshot.
//!
//! What is committed there is not active, so a new snapshot of it need not suspend it.

use super::peers::RawLoop;
use devicemapper::{DM, DevId, DmFlags, DmName, DmOptions};
use std::path::{Path, PathBuf};

/// Of the file system on each device.
const SECTORS: u64 = (1 << 30) / 512;

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
        let (number, _) = create(&dm, "pool", sectors, "thin-pool", &table);
        // What a run that was ended left: mostly nothing.
        let _none = dm.target_msg(&DevId::Name(name("pool")), None, &format!("delete {SCRATCH}"));
        Pool {
            dm,
            number,
            _files: [meta, data],
        }
    }

    fn say(&self, message: &str) {
        self.dm
            .target_msg(&DevId::Name(name("pool")), None, message)
            .unwrap_or_else(|error| panic!("thin pool: {message}: {error}"));
    }

    pub fn snapshot(&self, id: u32, of: u32) {
        self.say(&format!("create_snap {id} {of}"));
    }

    pub fn delete(&self, id: u32) {
        self.say(&format!("delete {id}"));
    }

    pub fn activate(&self, id: u32) -> Thin<'_> {
        let device = format!("thin-{id}");
        let (_, path) = create(&self.dm, &device, SECTORS, "thin", &format!("{} {id}", self.number));
        Thin {
            pool: self,
            name: device,
            path,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        remove(&self.dm, "pool");
    }
}

impl Drop for Thin<'_> {
    fn drop(&mut self) {
        remove(&self.pool.dm, &self.name);
    }
}

fn name(text: &str) -> &DmName {
    DmName::new(text).expect("our own names are valid")
}

/// The device's number, and its node.
fn create(dm: &DM, device: &str, sectors: u64, target: &str, parameters: &str) -> (String, PathBuf) {
    let id = DevId::Name(name(device));
    let made = dm.device_create(name(device), None, DmOptions::default());
    let number = made.expect("the guest takes a device").device();
    let table = [(0, sectors, target.to_string(), parameters.to_string())];
    dm.table_load(&id, &table, DmOptions::default())
        .unwrap_or_else(|error| panic!("{target} {parameters}: {error}"));
    // No flag: this resumes.
    dm.device_suspend(&id, DmOptions::default().set_flags(DmFlags::empty()))
        .expect("a loaded table can be resumed");
    (number.to_string(), PathBuf::from(format!("/dev/dm-{}", number.minor)))
}

fn remove(dm: &DM, device: &str) {
    dm.device_remove(&DevId::Name(name(device)), DmOptions::default())
        .unwrap_or_else(|error| panic!("remove {device}: {error}"));
}
