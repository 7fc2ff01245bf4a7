//! Whether this kernel can do what our tables ask of it.
//!
//! Refuses to load modules by a program: the kernel does that itself when it is asked for a target. Invariant: `Yes` means that a table of
//! linear, zero and snapshot targets will load, and that no ioctl of ours waits for a udev that never answers.

use super::{Dm, node};
use crate::sys;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    Yes,
    No { why: String },
}

/// What our tables are made of.
const TARGETS: &[&str] = &["linear", "zero", "snapshot"];
/// All of them were there: asked for once by this process.
static FOUND: AtomicBool = AtomicBool::new(false);
/// Where udev's rules lie, and the one of them that answers whoever waits for a device-mapper event.
const RULES_DIRS: &[&str] = &[
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];
const ANSWERING_RULE: &str = "95-dm-notify.rules";

impl Dm {
    /// Opens the control device and asks for each target, whose modules get loaded by that.
    pub fn probe() -> Support {
        match missing() {
            None => Support::Yes,
            Some(why) => Support::No { why },
        }
    }
}

fn missing() -> Option<String> {
    let dm = match Dm::open() {
        Ok(dm) => dm,
        Err(error) => return Some(format!("{error}: {}", error.cause)),
    };
    for kind in TARGETS.iter().filter(|_| !FOUND.load(Ordering::Relaxed)) {
        if let Err(error) = sys::dm::target_version(dm.control(), kind) {
            return Some(format!("the kernel has no device-mapper target {kind}: {error}"));
        }
    }
    FOUND.store(true, Ordering::Relaxed);
    let rules = RULES_DIRS.iter().map(|dir| Path::new(dir).join(ANSWERING_RULE));
    (node::udev_runs() && !rules.into_iter().any(|path| path.exists()))
        .then(|| format!("udev runs here without {ANSWERING_RULE}, and would never answer for a device (Debian has it in dmsetup)"))
}
