//! Places where a test may kill the process between two steps, to see what the next verb makes of it; how it dies is `store::stop`'s.
//!
//! Knows nothing of what happens there. Invariant: without the feature `root-tests` a stop point is nothing at all.

use super::names::{DeviceId, LoopId};
use super::plan::Step;

/// All stop points, `verb.step`: behind the step of that name.
pub const STOP_POINTS: &[&str] = &[
    "attach.mark",
    "attach.place",
    "attach.state",
    "attach.head",
    "attach.server",
    "attach.loop",
    "attach.loop-delta",
    "attach.loop-meta",
    "attach.loop-head",
    "attach.zero",
    "attach.cow",
    "attach.short",
    "attach.lower",
    "attach.level",
    "attach.pad",
    "attach.origin",
    "attach.image",
    "attach.unlock",
    "attach.mount",
    "detach.mark",
    "detach.unmount",
    "detach.flush",
    "detach.image",
    "detach.origin",
    "detach.zero",
    "detach.cow",
    "detach.short",
    "detach.lower",
    "detach.level",
    "detach.pad",
    "detach.loop",
    "detach.fuse",
    "detach.server",
    "detach.state",
    "detach.place",
];

/// Dies here, as by `kill -9`, when `BLOCKBT_STOP_AT` names this point.
#[cfg(feature = "root-tests")]
pub fn point(name: &str) {
    crate::store::stop::die_at(STOP_POINTS, name);
}

#[cfg(not(feature = "root-tests"))]
pub fn point(_name: &str) {}

/// The stop point behind a step.
pub(super) fn step(verb: &str, step: &Step) {
    if cfg!(feature = "root-tests")
        && let Some(word) = word(step)
    {
        point(&format!("{verb}.{word}"));
    }
}

fn word(step: &Step) -> Option<&'static str> {
    Some(match step {
        Step::MakePlace | Step::RemovePlace => "place",
        Step::WriteState { .. } | Step::RemoveState => "state",
        Step::MakeHead => "head",
        Step::StartServer { .. } | Step::AwaitServer => "server",
        Step::AttachFuse { .. } | Step::DetachLoop { .. } | Step::FreeLoop { .. } | Step::FreeUnused { .. } => "loop",
        Step::AttachLoop { id: LoopId::Meta(_) } => "loop-meta",
        Step::AttachLoop { .. } => "loop-delta",
        Step::AttachHead { .. } => "loop-head",
        Step::MakeDevice { device, .. } | Step::RemoveDevice { device } => match device {
            DeviceId::Zero(_) => "zero",
            DeviceId::Cow(_) => "cow",
            DeviceId::Short(_) => "short",
            DeviceId::Lower(_) => "lower",
            DeviceId::Level(_) => "level",
            DeviceId::Pad(_) => "pad",
            DeviceId::Origin(_) => "origin",
            DeviceId::Image(_) => "image",
        },
        Step::UnlockDevices => "unlock",
        Step::Mount { .. } => "mount",
        Step::Unmount { .. } => "unmount",
        Step::Flush { .. } => "flush",
        Step::AwaitUnused { .. } => return None,
        Step::UnmountFuse { .. } => "fuse",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_what_steps_are_called_and_nothing_else() {
        let source = include_str!("stop.rs").split("fn word").nth(1).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        let words: Vec<&str> = source.split('"').skip(1).step_by(2).collect();
        for point in STOP_POINTS {
            let (_, word) = point.split_once('.').unwrap();
            assert!(word == "mark" || words.contains(&word), "{point}: no step is called so");
        }
        for word in words {
            assert!(
                STOP_POINTS.iter().any(|point| point.ends_with(&format!(".{word}"))),
                "{word} is not in the list"
            );
        }
    }
}
