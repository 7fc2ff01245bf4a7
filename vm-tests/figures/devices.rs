//! Device-mapper devices by its bare ioctls, as a program of a few lines makes them.

use devicemapper::{DM, DevId, DmFlags, DmName, DmOptions};
use std::path::PathBuf;

/// A device's number as tables name it, and its node.
pub struct Made {
    pub number: String,
    pub path: PathBuf,
}

pub fn name(text: &str) -> &DmName {
    DmName::new(text).expect("our own names are valid")
}

fn id(device: &str) -> DevId<'_> {
    DevId::Name(name(device))
}

/// One without a table.
pub fn new(dm: &DM, device: &str) -> Made {
    let made = dm.device_create(name(device), None, DmOptions::default());
    let number = made.unwrap_or_else(|error| panic!("create {device}: {error}")).device();
    Made {
        number: number.to_string(),
        path: PathBuf::from(format!("/dev/dm-{}", number.minor)),
    }
}

/// A table of one target.
pub fn load(dm: &DM, device: &str, sectors: u64, target: &str, parameters: &str) {
    let table = [(0, sectors, target.to_string(), parameters.to_string())];
    dm.table_load(&id(device), &table, DmOptions::default())
        .unwrap_or_else(|error| panic!("{target} {parameters}: {error}"));
}

pub fn resume(dm: &DM, device: &str) {
    // No flag: this resumes.
    dm.device_suspend(&id(device), DmOptions::default().set_flags(DmFlags::empty()))
        .expect("a loaded table can be resumed");
}

pub fn create(dm: &DM, device: &str, sectors: u64, target: &str, parameters: &str) -> Made {
    let made = new(dm, device);
    load(dm, device, sectors, target, parameters);
    resume(dm, device);
    made
}

pub fn is_there(dm: &DM, device: &str) -> bool {
    dm.device_info(&id(device)).is_ok()
}

pub fn message(dm: &DM, device: &str, text: &str) -> Result<(), String> {
    let said = dm.target_msg(&id(device), None, text);
    said.map(drop).map_err(|error| format!("{device}: {text}: {error}"))
}

pub fn remove(dm: &DM, device: &str) {
    dm.device_remove(&id(device), DmOptions::default())
        .unwrap_or_else(|error| panic!("remove {device}: {error}"));
}

/// The device of the chain of ours that is attached, as a table names it.
pub fn lower(dm: &DM) -> String {
    let all = dm.list_devices().expect("devices can be listed");
    let found = all.iter().find(|(name, ..)| name.to_string().contains("-lower-"));
    found.expect("a chain is attached").1.to_string()
}
