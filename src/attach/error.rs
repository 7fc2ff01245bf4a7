use super::mode::Mode;
use super::plan::Step;
use super::run::{Failed, StepError};
use crate::ids::{ImageName, StoreId};
use crate::kernel::KernelError;
use crate::store::StoreError;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Why an image is not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("image \"{name}\" is attached already, as {}", device.display())]
    AlreadyAttached { name: ImageName, device: PathBuf },
    #[error("image \"{name}\" is mounted already, at {}", list(at))]
    AlreadyMounted { name: ImageName, at: Vec<PathBuf> },
    #[error("image \"{name}\" is in use: a verb is at work on it")]
    Owned { name: ImageName },
    #[error("image \"{name}\" is not attached")]
    NotAttached { name: ImageName },
    #[error("image \"{name}\" is attached, and not mounted: detach it")]
    NotMounted { name: ImageName },
    #[error("image \"{name}\" is in use: {by}")]
    InUse { name: String, by: String },
    #[error("image \"{image}\": another verb has been at work on it for {seconds} s")]
    Busy { image: String, seconds: u64 },
    #[error("image \"{name}\" has no file system that can be mounted: \"{found}\", want ext4 or xfs")]
    NoFileSystem { name: ImageName, found: String },
    #[error("mode {mode} needs device-mapper, and there is none: {why}")]
    NoDeviceMapper { mode: Mode, why: String },
    #[error("image \"{name}\" has {count} former heads that are not sealed yet")]
    Frozen { name: ImageName, count: usize },
    #[error("image \"{name}\" has a head already: resize --limit and --reserve change what it may take")]
    HasHead { name: ImageName },
    #[error("store {id} at {} is a copy of the one at {}, which has this image attached", mine.display(), other.display())]
    OtherStore { id: StoreId, mine: PathBuf, other: PathBuf },
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "image \"{name}\" has {deltas} deltas, and mode stack takes at most {}: use flat",
        super::recipe::MAX_LEVELS
    )]
    TooDeep { name: ImageName, deltas: usize },
    /// It is gone all the same.
    #[error("image \"{name}\" is detached, and not all that was written to it was kept: its head was full, or the host's disk failed")]
    Lost {
        name: String,
        #[source]
        cause: Box<StepError>,
    },
    #[error("image \"{name}\": not all that was written to it was kept ({lost}), and it is still attached")]
    LostAndThere {
        name: String,
        lost: Box<StepError>,
        #[source]
        cause: Box<AttachError>,
    },
    #[error("image \"{name}\" is detached, all that was written to it is kept, and the next verb takes away what it stood on")]
    Detached {
        name: String,
        #[source]
        cause: Box<AttachError>,
    },
    /// Nothing was changed yet.
    #[error("image \"{image}\"")]
    Unmade {
        image: String,
        #[source]
        cause: Box<StepError>,
    },
    /// `left`: what could not be undone, or is still to be taken away.
    #[error("image \"{image}\": {step}{}", left_behind(left))]
    Step {
        image: String,
        step: Step,
        #[source]
        cause: Box<StepError>,
        left: Vec<Step>,
    },
}

impl AttachError {
    /// Whether somebody has to stop using the image first.
    pub fn is_in_use(&self) -> bool {
        use AttachError::*;
        matches!(
            self,
            AlreadyAttached { .. }
                | AlreadyMounted { .. }
                | InUse { .. }
                | Owned { .. }
                | Busy { .. }
                | OtherStore { .. }
                | Store(StoreError::InUse { .. })
        )
    }

    /// The error of a step behind a flush that failed, if one did: of that nobody hears again.
    pub(super) fn and_lost(self, name: &dyn std::fmt::Display, lost: Option<Box<StepError>>) -> AttachError {
        match lost {
            Some(lost) => AttachError::LostAndThere {
                name: name.to_string(),
                lost,
                cause: Box::new(self),
            },
            None => self,
        }
    }

    /// Whether the image is not attached, whatever else went wrong.
    pub fn is_gone(&self) -> bool {
        use AttachError::*;
        matches!(self, Lost { .. } | Detached { .. } | NotAttached { .. })
    }

    pub(super) fn in_use(name: &dyn std::fmt::Display, device: &std::path::Path, mounts: &[PathBuf]) -> AttachError {
        AttachError::InUse {
            name: name.to_string(),
            by: format!("{} is mounted at {}", device.display(), list(mounts)),
        }
    }

    pub(super) fn covered(name: &dyn std::fmt::Display, dir: &std::path::Path) -> AttachError {
        AttachError::InUse {
            name: name.to_string(),
            by: format!("something else is mounted over {}", dir.display()),
        }
    }

    pub(super) fn from_failed(name: &ImageName, failed: Failed) -> AttachError {
        AttachError::Step {
            image: name.to_string(),
            step: failed.step,
            cause: failed.cause,
            left: failed.left,
        }
    }

    /// A step of taking away that failed; `left` begins with it.
    pub(super) fn from_taking(name: &dyn std::fmt::Display, step: &Step, cause: StepError, left: &[Step]) -> AttachError {
        if !cause.is_busy() {
            return AttachError::Step {
                image: name.to_string(),
                step: step.clone(),
                cause: Box::new(cause),
                left: left.to_vec(),
            };
        }
        let by = match step {
            Step::Unmount { dir, .. } => format!("a process, or another mount, is in {}", dir.display()),
            Step::DetachLoop { number, .. } => format!(
                "/dev/loop{number} is open, or mounted in another mount namespace{}",
                holders(*number)
            ),
            Step::AwaitUnused { device } | Step::RemoveDevice { device } => {
                format!("device {device} is open, or mounted in another mount namespace")
            }
            Step::FreeLoop { number, .. } => format!("/dev/loop{number} is open{}", holders(*number)),
            _ => "somebody is in its FUSE directory".to_string(),
        };
        AttachError::InUse {
            name: name.to_string(),
            by,
        }
    }
}

/// An error and its causes, for a log.
pub(super) fn whole<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    error
}

/// Devices on top of a loop device.
fn holders(number: u32) -> String {
    let Ok(entries) = fs::read_dir(format!("/sys/block/loop{number}/holders")) else {
        return String::new();
    };
    let names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(", or held by {}", names.join(", "))
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn left_behind(left: &[Step]) -> String {
    if left.is_empty() {
        return String::new();
    }
    format!(
        " (left to do by hand or by the next try: {})",
        left.iter().map(Step::to_string).collect::<Vec<_>>().join("; ")
    )
}
