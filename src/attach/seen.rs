//! What the kernel has of one image now.
//!
//! Refuses to change anything. Invariant: it asks the kernel, never a file of ours, whether something is attached; and a FUSE server, which may be
//! stopped or hang, only for a verb on its own image.

mod mapped;

#[cfg(test)]
pub use mapped::ImageSeen;
pub use mapped::{Around, MappedSeen, device_mapper, device_path};

use super::place::Place;
use crate::kernel::loops::LoopDevice;
use crate::kernel::mounts::Mount;
use rustix::fs::makedev;
use std::path::{Path, PathBuf};

const LOOP_MAJOR: u32 = 7;

/// One image, as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Mounts of its FUSE file system: one, or more after accidents.
    pub fuse_mounts: usize,
    /// Whether a server answers behind the newest of them.
    pub served: bool,
    pub loops: Vec<LoopSeen>,
    /// Where it is mounted, and something else over it.
    pub covered: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopSeen {
    pub number: u32,
    /// It sits on the file that is served now; another one is left over from a server before.
    pub live: bool,
    pub read_only: bool,
    /// Where its file system is mounted, oldest first.
    pub mounts: Vec<PathBuf>,
}

impl Seen {
    /// Without a word to the server: it lives as long as its lock is held. Where that is lost, it is asked.
    pub fn of(place: &Place, loops: &[LoopDevice], mounts: &[Mount]) -> Seen {
        let lives = || place.has_server().ok().flatten().unwrap_or_else(|| answers(place));
        Seen::served(place, loops, mounts, lives)
    }

    /// For a verb that needs the server: waits for its answer, or its end.
    pub fn asked(place: &Place, loops: &[LoopDevice], mounts: &[Mount]) -> Seen {
        Seen::served(place, loops, mounts, || answers(place))
    }

    fn served(place: &Place, loops: &[LoopDevice], mounts: &[Mount], lives: impl FnOnce() -> bool) -> Seen {
        let (fuse_dir, disk, name) = (place.fuse_dir(), place.disk(), place.loop_name());
        let ours = |device: &&LoopDevice| match &device.name {
            Some(found) => *found == name,
            None => device.backing == disk,
        };
        let fuse: Vec<&Mount> = mounts.iter().filter(|m| m.dir == fuse_dir).collect();
        let served = !fuse.is_empty() && lives();
        let served_device = fuse.last().filter(|_| served).map(|m| makedev(m.major, m.minor));
        let seen = |device: &LoopDevice| LoopSeen {
            number: device.number,
            live: served_device.is_some() && device.file_device == served_device,
            read_only: device.read_only,
            mounts: mounts
                .iter()
                .filter(|m| (m.major, m.minor) == (LOOP_MAJOR, device.number))
                .map(|m| m.dir.clone())
                .collect(),
        };
        let found: Vec<LoopSeen> = loops.iter().filter(ours).map(seen).collect();
        let is_own = |mount: &Mount| mount.major == LOOP_MAJOR && found.iter().any(|device| device.number == mount.minor);
        Seen {
            fuse_mounts: fuse.len(),
            served,
            covered: covered(mounts, is_own),
            loops: found,
        }
    }

    /// The device, if all of it is there and works.
    pub fn attached(&self) -> Option<&LoopSeen> {
        self.loops.iter().rev().find(|device| device.live)
    }

    pub fn is_nothing(&self) -> bool {
        self.fuse_mounts == 0 && self.loops.is_empty()
    }
}

/// Cached attributes would say that a dead server lives; this question always reaches it.
fn answers(place: &Place) -> bool {
    rustix::fs::statfs(place.fuse_dir()).is_ok()
}

/// The first directory where a device of the image is mounted, and something else over it: an unmount would take that.
fn covered(mounts: &[Mount], is_own: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    let newest = |dir: &Path| mounts.iter().rev().find(|mount| mount.dir == dir);
    let mut own = mounts.iter().filter(|mount| is_own(mount));
    let found = own.find(|mount| newest(&mount.dir).is_some_and(|newest| !is_own(newest)));
    found.map(|mount| mount.dir.clone())
}

impl LoopSeen {
    pub fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }
}
