//! `state.json`, and which store wrote it.
//!
//! Refuses to know where it lies. Invariant: what is from another boot is not believed.

use crate::attach::mode::Mode;
use crate::ids::ImageName;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MAX_STATE: u64 = 64 << 10;

/// `state.json`: who attached what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub name: ImageName,
    pub root: RootIdentity,
    pub boot_id: String,
    pub read_only: bool,
    /// Where it was to be mounted, if the device was made for that.
    #[serde(default)]
    pub mount: Option<PathBuf>,
    pub mode: Mode,
    /// Why in this mode.
    pub why: String,
}

impl State {
    /// `None` if there is none, if it makes no sense, or if it is from before a reboot.
    pub(super) fn read(path: &Path) -> Option<State> {
        let mut text = Vec::with_capacity(1024);
        File::open(path).ok()?.take(MAX_STATE).read_to_end(&mut text).ok()?;
        let state: State = serde_json::from_slice(&text).ok()?;
        (state.boot_id == boot_id().ok()?).then_some(state)
    }
}

/// Which store: a copy of one has the same id, but not the same directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootIdentity {
    pub path: PathBuf,
    device: u64,
    inode: u64,
}

impl RootIdentity {
    pub fn of(path: &Path) -> io::Result<RootIdentity> {
        let facts = fs::metadata(path)?;
        Ok(RootIdentity {
            path: path.into(),
            device: facts.dev(),
            inode: facts.ino(),
        })
    }

    /// Whether this is another directory than `mine`, and one that still exists.
    pub fn is_other_than(&self, mine: &RootIdentity) -> bool {
        let same = |a: &RootIdentity, b: &RootIdentity| (a.device, a.inode) == (b.device, b.inode);
        !same(self, mine) && RootIdentity::of(&self.path).is_ok_and(|now| same(&now, self))
    }
}

/// Of this boot; asked for once.
pub fn boot_id() -> io::Result<String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string();
    Ok(KNOWN.get_or_init(|| id).clone())
}
