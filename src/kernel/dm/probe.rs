//! Whether this kernel can do what our tables ask of it.
//!
//! Refuses to load modules by a program: the kernel does that itself when it is asked for a target. Invariant: `Yes` means that a table of
//! linear, zero and snapshot targets will load, and that no ioctl of ours waits for a udev that never answers.

use super::{Dm, node};
use crate::sys;
use std::fs;
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
/// The semaphore by which it answers is of one IPC namespace: udev's, which is the first.
const OWN_IPC: &str = "/proc/self/ns/ipc";
/// Source: Linux `include/linux/proc_ns.h`, `PROC_IPC_INIT_INO`.
const FIRST_IPC: &str = "ipc:[4026531839]";

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
    if !node::udev_runs() {
        return None;
    }
    if !rules.into_iter().any(|path| path.exists()) {
        return Some(format!(
            "udev runs here without {ANSWERING_RULE}, and would never answer for a device (Debian has it in dmsetup)"
        ));
    }
    // A kernel without such namespaces has no link, and everybody is in the same.
    let is_apart = fs::read_link(OWN_IPC).is_ok_and(|found| found != Path::new(FIRST_IPC));
    is_apart.then(|| "udev runs in another IPC namespace, and could never answer for a device".to_string())
}
