//! What stands below an image's own devices, and which of it goes when an image is done with it.
//!
//! Refuses to remove anything. Invariant: what somebody still stands on, of this store or not, is never named to be removed, and what is named
//! comes before what is below it.

use super::AttachError;
use super::names::{DeviceId, LoopId};
use super::plan::Step;
use crate::ids::StoreId;
use crate::kernel::dm::{DevNo, Dm};
use crate::kernel::loops;
use crate::units::{Bytes, Sectors};
use rustix::fs::RawDir;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;

/// A device of ours that images share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub part: Part,
    /// How many stand on it: of a device by the kernel's count, of a loop those in the list. Whoever frees a loop is told if there are others.
    pub holders: usize,
    /// What it stands on itself, as indices into the list that this is in.
    pub below: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Device(DeviceId),
    Loop(u32),
}

/// The steps that remove every node on which nothing stands, and what that sets free: loops last, as they stand on nothing.
pub fn release(nodes: &[Node]) -> Vec<Step> {
    let mut holders: Vec<usize> = nodes.iter().map(|node| node.holders).collect();
    let mut free: Vec<usize> = (0..nodes.len()).filter(|index| holders[*index] == 0).collect();
    let mut steps = Vec::with_capacity(nodes.len());
    while let Some(index) = free.pop() {
        steps.push(match &nodes[index].part {
            Part::Device(device) => Step::RemoveDevice { device: *device },
            Part::Loop(number) => Step::FreeUnused { number: *number },
        });
        for below in &nodes[index].below {
            // A count of 0 would mean that the kernel forgot one of ours: it stays for the next look.
            holders[*below] = holders[*below].saturating_sub(1);
            if holders[*below] == 0 {
                free.push(*below);
            }
        }
    }
    steps.sort_by_key(|step| matches!(step, Step::FreeUnused { .. }));
    steps
}

/// The shared devices of `store` that `root` is, or stands on. Where `root` is still held, it alone: nothing would be released.
pub fn under(dm: &Dm, store: StoreId, root: DeviceId) -> Result<Vec<Node>, AttachError> {
    let mut walk = Walk::new(dm, store);
    match dm.info(&root.uuid(store))? {
        // Somebody who merely looks into it, and will be waited for, is no reason to leave it for ever.
        Some(info) if info.open_count == 0 || !has_holders(info.device) => drop(walk.device(root, info.device, 0)?),
        Some(info) => drop(walk.push(Part::Device(root), info.open_count as usize)),
        None => {}
    }
    Ok(walk.nodes)
}

/// All shared devices of `store`, and the loops on which none of them stands.
pub fn all(dm: &Dm, store: StoreId) -> Result<Vec<Node>, AttachError> {
    let mut walk = Walk::new(dm, store);
    for listed in dm.list()? {
        let device = listed.uuid.as_deref().and_then(|uuid| DeviceId::of_uuid(uuid, store));
        if let Some(device) = device.filter(|device| device.is_shared())
            && let Some(info) = dm.info(&device.uuid(store))?
        {
            walk.device(device, info.device, info.open_count)?;
        }
    }
    for device in loops::find(|name| LoopId::is_shared(name, store))? {
        walk.loop_device(device.number);
    }
    Ok(walk.nodes)
}

struct Walk<'a> {
    dm: &'a Dm,
    store: StoreId,
    nodes: Vec<Node>,
    devices: BTreeMap<DeviceId, usize>,
    loops: BTreeMap<u32, usize>,
}

impl<'a> Walk<'a> {
    fn new(dm: &'a Dm, store: StoreId) -> Walk<'a> {
        Walk {
            dm,
            store,
            nodes: Vec::new(),
            devices: BTreeMap::new(),
            loops: BTreeMap::new(),
        }
    }

    fn device(&mut self, id: DeviceId, device: DevNo, open_count: u32) -> Result<usize, AttachError> {
        if let Some(index) = self.devices.get(&id) {
            return Ok(*index);
        }
        let index = self.push(Part::Device(id), open_count as usize);
        self.devices.insert(id, index);
        for slave in slaves(device) {
            let below = match slave {
                Slave::Loop(number) => {
                    let below = self.loop_device(number);
                    self.nodes[below].holders += 1;
                    Some(below)
                }
                Slave::Mapped(number) => match self.shared(&number)? {
                    Some((id, device, open_count)) => Some(self.device(id, device, open_count)?),
                    None => None,
                },
                Slave::Other => None,
            };
            self.nodes[index].below.extend(below);
        }
        Ok(index)
    }

    fn loop_device(&mut self, number: u32) -> usize {
        if let Some(index) = self.loops.get(&number) {
            return *index;
        }
        let index = self.push(Part::Loop(number), 0);
        self.loops.insert(number, index);
        index
    }

    fn push(&mut self, part: Part, holders: usize) -> usize {
        self.nodes.push(Node {
            part,
            holders,
            below: Vec::new(),
        });
        self.nodes.len() - 1
    }

    fn shared(&self, kernel_name: &str) -> Result<Option<(DeviceId, DevNo, u32)>, AttachError> {
        let Some(id) = device_id(kernel_name, self.store).filter(|id| id.is_shared()) else {
            return Ok(None);
        };
        let info = self.dm.info(&id.uuid(self.store))?;
        Ok(info.map(|info| (id, info.device, info.open_count)))
    }
}

/// What a device stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slave {
    Loop(u32),
    /// The kernel's name of a device-mapper device: `dm-3`.
    Mapped(String),
    Other,
}

impl Slave {
    pub fn number(&self) -> Option<u32> {
        match self {
            Slave::Loop(number) => Some(*number),
            _ => None,
        }
    }
}

/// What a device-mapper device stands on, each once.
pub fn slaves(device: DevNo) -> Vec<Slave> {
    let slave = |name: &str| match name.strip_prefix("loop").and_then(|number| number.parse().ok()) {
        Some(number) => Slave::Loop(number),
        None if name.starts_with("dm-") => Slave::Mapped(name.into()),
        None => Slave::Other,
    };
    let mut found = Vec::new();
    entries::<{ 8 << 10 }>(device, "slaves", |name| {
        found.push(slave(name));
        true
    });
    found
}

/// Whether a device stands on it. Of thousands no more than the first is listed.
fn has_holders(device: DevNo) -> bool {
    let mut any = false;
    entries::<256>(device, "holders", |_| {
        any = true;
        false
    });
    any
}

/// Names in a directory of a device, asked for `PIECE` bytes at a time, as long as `each` wants more.
fn entries<const PIECE: usize>(device: DevNo, dir: &str, mut each: impl FnMut(&str) -> bool) {
    let Ok(dir) = File::open(format!("/sys/dev/block/{device}/{dir}")) else {
        return;
    };
    let mut buffer = [MaybeUninit::uninit(); PIECE];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) if each(name) => {}
            Ok(_) => return,
        }
    }
}

/// How large a device is.
pub fn size_of(device: DevNo) -> Option<Bytes> {
    Sectors(attribute(&format!("/sys/dev/block/{device}/size"))?.parse().ok()?).bytes()
}

/// Which device of `store` the kernel calls `dm-3`.
pub fn device_id(kernel_name: &str, store: StoreId) -> Option<DeviceId> {
    DeviceId::of_uuid(&attribute(&format!("/sys/block/{kernel_name}/dm/uuid"))?, store)
}

/// A line of sysfs, which comes as a whole.
fn attribute(path: &str) -> Option<String> {
    let mut line = [0; 256];
    let len = File::open(path).and_then(|mut file| file.read(&mut line)).ok()?;
    Some(std::str::from_utf8(&line[..len]).ok()?.trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChainId;

    fn node(part: Part, holders: usize, below: &[usize]) -> Node {
        Node {
            part,
            holders,
            below: below.into(),
        }
    }

    fn looped(number: u32) -> Part {
        Part::Loop(number)
    }

    fn freed(number: u32) -> Step {
        Step::FreeUnused { number }
    }

    fn chain(byte: u8) -> ChainId {
        ChainId([byte; 16])
    }

    fn removed(device: DeviceId) -> Step {
        Step::RemoveDevice { device }
    }

    #[test]
    fn the_last_user_of_a_flat_chain_takes_all_of_it_along() {
        let (zero, cow, short, lower) = (
            DeviceId::Zero(chain(1)),
            DeviceId::Cow(chain(1)),
            DeviceId::Short(chain(1)),
            DeviceId::Lower(chain(1)),
        );
        let nodes = [
            node(Part::Device(lower), 0, &[1, 4]),
            node(Part::Device(short), 1, &[2, 3]),
            node(Part::Device(zero), 1, &[]),
            node(Part::Device(cow), 1, &[4, 5]),
            node(looped(7), 2, &[]),
            node(looped(8), 1, &[]),
        ];
        let steps = release(&nodes);
        let at = |step: &Step| steps.iter().position(|found| found == step).unwrap();
        assert_eq!(steps.len(), nodes.len());
        assert_eq!(steps[0], removed(lower));
        assert!(at(&removed(short)) < at(&removed(zero)).min(at(&removed(cow))));
        assert!(at(&removed(cow)) < at(&freed(7)).min(at(&freed(8))));
    }

    #[test]
    fn what_another_chain_uses_stays() {
        let nodes = [
            node(Part::Device(DeviceId::Lower(chain(1))), 0, &[1, 2]),
            node(looped(1), 2, &[]),
            node(looped(2), 1, &[]),
        ];
        assert_eq!(release(&nodes), [removed(DeviceId::Lower(chain(1))), freed(2)]);
    }

    #[test]
    fn with_a_clone_attached_nothing_goes() {
        let nodes = [node(Part::Device(DeviceId::Lower(chain(1))), 1, &[1]), node(looped(1), 1, &[])];
        assert_eq!(release(&nodes), []);
    }

    #[test]
    fn a_stack_goes_down_to_the_level_that_another_stands_on() {
        let nodes = [
            node(Part::Device(DeviceId::Level(chain(3))), 0, &[1, 4]),
            node(Part::Device(DeviceId::Pad(chain(3))), 1, &[2]),
            node(Part::Device(DeviceId::Level(chain(2))), 2, &[3]),
            node(looped(2), 1, &[]),
            node(looped(3), 1, &[]),
        ];
        let steps = release(&nodes);
        assert_eq!(steps.len(), 3);
        assert!(!steps.contains(&freed(2)) && steps.contains(&freed(3)));
    }
}
