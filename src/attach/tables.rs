//! The tables that an attached image stands on, to look at and to load by hand.
//!
//! Refuses to change anything. Invariant: a device comes after all that it stands on, so that a reader can make them in this order.

use super::AttachError;
use super::below::{self, Slave};
use super::names::DeviceId;
use super::seen::device_mapper;
use crate::ids::ImageId;
use crate::kernel::dm::{Dm, Table};
use crate::store::Store;

/// A device-mapper device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTable {
    pub name: String,
    pub uuid: String,
    /// As a table names it: `253:3`.
    pub device: String,
    pub read_only: bool,
    pub table: Table,
}

/// Of one image; empty when it is not attached in a kernel mode.
pub fn tables(store: &Store, image: ImageId) -> Result<Vec<DeviceTable>, AttachError> {
    let mut found = Vec::new();
    if let Some(dm) = device_mapper()? {
        add(&dm, store, DeviceId::Image(image), &mut found)?;
    }
    Ok(found)
}

/// At most a stack deep, which is eight levels and their pads.
fn add(dm: &Dm, store: &Store, id: DeviceId, found: &mut Vec<DeviceTable>) -> Result<(), AttachError> {
    let uuid = id.uuid(store.id());
    let Some(info) = dm.info(&uuid)?.filter(|info| info.has_table) else {
        return Ok(());
    };
    if found.iter().any(|device| device.uuid == uuid) {
        return Ok(());
    }
    for slave in below::slaves(info.device) {
        if let Slave::Mapped(name) = slave
            && let Some(below) = below::device_id(&name, store.id())
        {
            add(dm, store, below, found)?;
        }
    }
    found.push(DeviceTable {
        table: dm.table(&uuid)?,
        name: info.name,
        uuid,
        device: info.device.to_string(),
        read_only: info.read_only,
    });
    Ok(())
}
