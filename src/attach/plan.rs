//! Which steps lead from what the kernel has to what is wanted.
//!
//! Pure: no calls, no files. Invariant: a plan to attach starts from nothing, and a plan to take away leaves nothing.

pub mod mapped;

use super::names::{DeviceId, LoopId};
use super::seen::Seen;
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing to do; each can be undone, or need not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The image's directory under `/run`.
    MakePlace,
    /// An empty writable top. Not undone: it changes no byte of the disk.
    MakeHead,
    StartServer {
        read_only: bool,
    },
    /// User mode's device.
    AttachFuse {
        read_only: bool,
    },
    /// A loop that images share, where it is not there.
    AttachLoop {
        id: LoopId,
    },
    /// The head's, in its full length.
    AttachHead {
        read_only: bool,
    },
    MakeDevice {
        device: DeviceId,
        read_only: bool,
    },
    /// What images share may be changed by others again.
    UnlockDevices,
    /// `mount`: where the device is to be mounted.
    WriteState {
        read_only: bool,
        mount: Option<PathBuf>,
    },
    Mount {
        dir: PathBuf,
        file_system: String,
        read_only: bool,
    },
    Unmount {
        dir: PathBuf,
        dead: bool,
    },
    /// All that the kernel holds back for the device goes to the head, durably.
    Flush {
        number: u32,
    },
    /// Nobody has it open any more, so that all that was written to it has reached what it stands on.
    AwaitUnused {
        device: DeviceId,
    },
    RemoveDevice {
        device: DeviceId,
    },
    FreeLoop {
        number: u32,
        name: String,
    },
    /// One that images share, if nothing stands on it.
    FreeUnused {
        number: u32,
    },
    /// State.json of a kernel mode.
    RemoveState,
    DetachLoop {
        number: u32,
        dead: bool,
    },
    UnmountFuse {
        dead: bool,
    },
    /// The server has committed the head and let go of the image.
    AwaitServer,
    RemovePlace,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MakePlace => f.write_str("make the run directory"),
            Step::MakeHead => f.write_str("make a head"),
            Step::StartServer { .. } => f.write_str("start the FUSE server"),
            Step::AttachFuse { .. } => f.write_str("make the loop device"),
            Step::AttachLoop { id } => write!(f, "make the {id}"),
            Step::AttachHead { .. } => f.write_str("make the loop of the head"),
            Step::MakeDevice { device, .. } => write!(f, "make device {device}"),
            Step::UnlockDevices => f.write_str("unlock the store's devices"),
            Step::AwaitUnused { device } => write!(f, "await the last user of device {device}"),
            Step::RemoveDevice { device } => write!(f, "remove device {device}"),
            Step::FreeLoop { number, name } => write!(f, "free /dev/loop{number}, {name}"),
            Step::FreeUnused { number } => write!(f, "free /dev/loop{number} if nothing stands on it"),
            Step::RemoveState => f.write_str("remove state.json"),
            Step::WriteState { .. } => f.write_str("write state.json"),
            Step::Mount { dir, .. } => write!(f, "mount at {}", dir.display()),
            Step::Unmount { dir, .. } => write!(f, "unmount {}", dir.display()),
            Step::Flush { number } => write!(f, "flush /dev/loop{number}"),
            Step::DetachLoop { number, .. } => write!(f, "free /dev/loop{number}"),
            Step::UnmountFuse { .. } => f.write_str("unmount the FUSE file"),
            Step::AwaitServer => f.write_str("await the FUSE server's end"),
            Step::RemovePlace => f.write_str("remove the run directory"),
        }
    }
}

/// What is wanted of an attach.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    pub read_only: bool,
    pub has_head: bool,
    /// Directory and file system, for a mount.
    pub mount: Option<(&'a Path, &'a str)>,
}

/// From nothing to a device, and perhaps a mount.
pub fn attach(wanted: &Wanted) -> Vec<Step> {
    let read_only = wanted.read_only;
    // Before there is a device: one that was made for a mount is told from one that is wanted as it is, whoever dies when.
    let mut steps = vec![
        Step::MakePlace,
        Step::WriteState {
            read_only,
            mount: wanted.mount.map(|(dir, _)| dir.into()),
        },
    ];
    if !read_only && !wanted.has_head {
        steps.push(Step::MakeHead);
    }
    steps.extend([Step::StartServer { read_only }, Step::AttachFuse { read_only }]);
    if let Some((dir, file_system)) = wanted.mount {
        steps.push(Step::Mount {
            dir: dir.into(),
            file_system: file_system.into(),
            read_only,
        });
    }
    steps
}

/// From whatever is there to nothing. What no server answers for is taken away with force, and by lazy unmounts: its bytes are lost already,
/// and the image's files are complete up to the last flush.
pub fn take_away(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    for device in seen.loops.iter().rev() {
        let (number, dead) = (device.number, !device.live);
        steps.extend(device.mounts.iter().rev().map(|dir| Step::Unmount { dir: dir.clone(), dead }));
        if !dead && !device.read_only {
            steps.push(Step::Flush { number });
        }
        steps.push(Step::DetachLoop { number, dead });
    }
    for index in 0..seen.fuse_mounts {
        steps.push(Step::UnmountFuse {
            dead: index > 0 || !seen.served,
        });
    }
    // Also a killed one takes a moment to let go of the image.
    steps.extend([Step::AwaitServer, Step::RemovePlace]);
    steps
}

#[cfg(test)]
mod tests {
    use super::super::seen::LoopSeen;
    use super::*;

    fn device(number: u32, live: bool, mounts: &[&str]) -> LoopSeen {
        LoopSeen {
            number,
            live,
            read_only: false,
            mounts: mounts.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn a_writable_attach_makes_a_head_only_where_there_is_none() {
        let made = |read_only, has_head| {
            attach(&Wanted {
                read_only,
                has_head,
                mount: None,
            })
            .contains(&Step::MakeHead)
        };
        assert!(made(false, false));
        assert!(!made(false, true) && !made(true, false) && !made(true, true));
    }

    #[test]
    fn a_mount_is_an_attach_and_one_step_more() {
        let wanted = Wanted {
            read_only: false,
            has_head: true,
            mount: Some((Path::new("/mnt"), "xfs")),
        };
        let mount = Step::Mount {
            dir: "/mnt".into(),
            file_system: "xfs".into(),
            read_only: false,
        };
        assert_eq!(
            attach(&wanted),
            [
                Step::MakePlace,
                Step::WriteState {
                    read_only: false,
                    mount: Some("/mnt".into()),
                },
                Step::StartServer { read_only: false },
                Step::AttachFuse { read_only: false },
                mount
            ]
        );
    }

    #[test]
    fn what_is_served_is_flushed_and_its_server_awaited() {
        let seen = Seen {
            fuse_mounts: 1,
            served: true,
            loops: vec![device(3, true, &["/a", "/b"])],
            covered: None,
        };
        assert_eq!(
            take_away(&seen),
            [
                Step::Unmount {
                    dir: "/b".into(),
                    dead: false
                },
                Step::Unmount {
                    dir: "/a".into(),
                    dead: false
                },
                Step::Flush { number: 3 },
                Step::DetachLoop { number: 3, dead: false },
                Step::UnmountFuse { dead: false },
                Step::AwaitServer,
                Step::RemovePlace
            ]
        );
    }

    #[test]
    fn what_nobody_serves_is_taken_away_with_force() {
        let seen = Seen {
            fuse_mounts: 1,
            served: false,
            loops: vec![device(3, false, &["/a"])],
            covered: None,
        };
        assert_eq!(
            take_away(&seen),
            [
                Step::Unmount {
                    dir: "/a".into(),
                    dead: true
                },
                Step::DetachLoop { number: 3, dead: true },
                Step::UnmountFuse { dead: true },
                Step::AwaitServer,
                Step::RemovePlace
            ]
        );
    }

    #[test]
    fn a_server_without_a_device_is_ended_in_order() {
        let seen = Seen {
            fuse_mounts: 1,
            served: true,
            loops: vec![],
            covered: None,
        };
        assert_eq!(
            take_away(&seen),
            [Step::UnmountFuse { dead: false }, Step::AwaitServer, Step::RemovePlace]
        );
    }

    #[test]
    fn an_older_loop_beside_a_live_one_is_dead() {
        let seen = Seen {
            fuse_mounts: 2,
            served: true,
            loops: vec![device(1, false, &[]), device(4, true, &[])],
            covered: None,
        };
        assert_eq!(
            take_away(&seen),
            [
                Step::Flush { number: 4 },
                Step::DetachLoop { number: 4, dead: false },
                Step::DetachLoop { number: 1, dead: true },
                Step::UnmountFuse { dead: false },
                Step::UnmountFuse { dead: true },
                Step::AwaitServer,
                Step::RemovePlace
            ]
        );
    }
}
