//! Doing the steps of a plan, and undoing them when one fails.
//!
//! Refuses to choose steps. Invariant: after a failed attach either nothing of it is left, or the error lists what is.

pub mod mapped;

use super::disk::{DiskError, DiskFiles};
use super::error::whole;
use super::mode::Choice;
use super::place::{Place, RootIdentity, State, boot_id};
use super::plan::Step;
use super::recipe::RecipeError;
use super::spawn::{self, Program};
use super::stop;
use crate::blockio::FileIo;
use crate::format::head::{Head, HeadError};
use crate::ids::ImageName;
use crate::kernel::{KernelError, loops, mounts};
use crate::store::{HeadRecord, ImageLock, ImageRecord, Store, StoreError};
use crate::units::ChunkSize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For what the kernel lets go of a moment later than it says: a backing file's last reference, a scanner that has a device open.
const PATIENCE: Duration = Duration::from_secs(5);
const DEAD_PATIENCE: Duration = Duration::from_millis(500);
/// A server that ends has its last flush to do, and the disk may be slow.
const SERVER_PATIENCE: Duration = Duration::from_secs(120);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("head {}", path.display())]
    Head { path: PathBuf, source: HeadError },
    #[error("its head is {why}, and has refused writes")]
    Refused { why: &'static str },
    #[error("run {program}")]
    Spawn { program: String, source: io::Error },
    #[error("its file system was not unmounted cleanly, and its journal cannot be replayed read-only: mount it writable once")]
    Journal(#[source] KernelError),
    #[error("FUSE server: {said}")]
    Server { said: String },
    #[error("no word from the FUSE server in {seconds} s")]
    Silent { seconds: u64 },
    #[error("the FUSE server is still at work after {seconds} s")]
    Stays { seconds: u64 },
}

impl StepError {
    pub fn is_busy(&self) -> bool {
        matches!(self, StepError::Kernel(error) if error.is_busy())
    }

    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StepError {
        let path = path.into();
        move |source| StepError::Io { doing, path, source }
    }
}

/// The image to attach.
pub struct Target<'a> {
    pub store: &'a Store,
    pub record: ImageRecord,
    pub dir: PathBuf,
    pub lock: &'a ImageLock,
    pub program: Program,
    pub choice: Choice,
}

/// What a failed plan leaves.
#[derive(Debug)]
pub struct Failed {
    pub step: Step,
    pub cause: Box<StepError>,
    pub left: Vec<Step>,
}

/// Does all the steps of an attach, or undoes those that it did.
///
/// Returns the loop device's number.
pub fn attach(steps: &[Step], place: &Place, target: &mut Target) -> Result<Option<u32>, Failed> {
    let name = target.record.name.clone();
    let mut work = (target, None);
    let apply = |work: &mut (&mut Target, Option<u32>), step: &Step| apply(step, place, work.0, &mut work.1);
    let undo = |work: &mut (&mut Target, Option<u32>), step: &Step| undo(step, place, work.1);
    steps_or_undo(&mut work, &name, steps, apply, undo).map(|()| work.1)
}

fn steps_or_undo<W>(
    work: &mut W,
    image: &ImageName,
    steps: &[Step],
    apply: impl Fn(&mut W, &Step) -> Result<(), StepError>,
    undo: impl Fn(&mut W, &Step) -> Result<(), StepError>,
) -> Result<(), Failed> {
    for (done, step) in steps.iter().enumerate() {
        tracing::debug!(%image, %step, "attach");
        if let Err(cause) = apply(work, step) {
            let mut left = Vec::new();
            for step in steps[..done].iter().rev() {
                if let Err(error) = undo(work, step) {
                    tracing::warn!(%step, error = whole(&error), "could not be undone");
                    left.push(step.clone());
                }
            }
            return Err(Failed {
                step: step.clone(),
                cause: Box::new(cause),
                left,
            });
        }
        stop::step("attach", step);
    }
    Ok(())
}

fn apply(step: &Step, place: &Place, target: &mut Target, device: &mut Option<u32>) -> Result<(), StepError> {
    match step {
        Step::MakePlace => place.make().map_err(StepError::io("make", place.dir())),
        Step::MakeHead => make_head(target.store, &mut target.record),
        Step::StartServer { read_only } => start_server(place, target, *read_only),
        Step::AttachFuse { read_only } => {
            let wanted = loops::Attach {
                file: &place.disk(),
                name: &place.loop_name(),
                read_only: *read_only,
                direct_io: true,
            };
            let made = loops::attach(&wanted)?;
            if !made.direct_io {
                tracing::warn!(device = %made.path().display(), "no direct I/O: data is cached twice");
            }
            *device = Some(made.number);
            Ok(())
        }
        Step::WriteState { read_only, mount } => {
            write_state(place, target.store, &target.record, &target.choice, *read_only, mount.clone())
        }
        Step::Mount {
            dir,
            file_system,
            read_only,
        } => {
            let number = device.expect("a plan mounts what it has attached");
            mount(&loop_path(number), dir, file_system, *read_only)
        }
        other => take_away(other, place),
    }
}

fn undo(step: &Step, place: &Place, device: Option<u32>) -> Result<(), StepError> {
    match step {
        Step::MakePlace => take_away(&Step::RemovePlace, place),
        Step::StartServer { .. } => {
            take_away(&Step::UnmountFuse { dead: false }, place)?;
            take_away(&Step::AwaitServer, place)
        }
        Step::AttachFuse { .. } => match device {
            Some(number) => take_away(&Step::DetachLoop { number, dead: false }, place),
            None => Ok(()),
        },
        Step::Mount { dir, .. } => take_away(
            &Step::Unmount {
                dir: dir.clone(),
                dead: false,
            },
            place,
        ),
        // An empty head changes no byte of the disk; state.json goes with the directory; the others take away.
        _ => Ok(()),
    }
}

/// Does one step of taking away.
pub fn take_away(step: &Step, place: &Place) -> Result<(), StepError> {
    match step {
        Step::Unmount { dir, dead: false } => Ok(mounts::unmount(dir, Duration::from_secs(1))?),
        Step::Unmount { dir, dead: true } => match mounts::unmount(dir, Duration::ZERO) {
            Ok(()) => Ok(()),
            Err(_) => Ok(mounts::unmount_lazily(dir)?),
        },
        Step::Flush { number } => Ok(loops::flush(*number)?),
        Step::DetachLoop { number, dead: false } => Ok(loops::detach(*number, &place.loop_name(), PATIENCE)?),
        Step::DetachLoop { number, dead: true } => {
            // With a file system that is still in use it goes later; who has it open otherwise just looks at all devices.
            let name = place.loop_name();
            let patience = if loops::is_claimed(*number, &name) {
                DEAD_PATIENCE
            } else {
                PATIENCE
            };
            match loops::detach_dead(*number, &name, patience) {
                // It can reach no file any more, and goes with its last user.
                Err(error) if error.is_busy() => {
                    tracing::warn!(number, "a dead loop device is still open somewhere");
                    Ok(())
                }
                other => Ok(other?),
            }
        }
        Step::UnmountFuse { dead: false } => Ok(mounts::unmount(&place.fuse_dir(), PATIENCE)?),
        Step::UnmountFuse { dead: true } => Ok(mounts::unmount_lazily(&place.fuse_dir())?),
        Step::AwaitServer => await_server(place),
        _ => place.remove().map_err(StepError::io("remove", place.dir())),
    }
}

fn make_head(store: &Store, record: &mut ImageRecord) -> Result<(), StepError> {
    let path = store.head_path(&record.name);
    // One that image.json does not know of is left from a power cut, or from a commit: it holds nothing.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(StepError::io("make", &path))?;
    let head = record.new_head(ChunkSize::HEAD);
    if let Err(source) = new_head(file, &head) {
        // It may have part of the space that it was to have.
        std::fs::remove_file(&path).map_err(StepError::io("remove", &path))?;
        return Err(StepError::Head { path, source });
    }
    let dir = store.image_dir(record.id());
    File::open(&dir)
        .and_then(|dir| dir.sync_all())
        .map_err(StepError::io("sync", &dir))?;
    *record = store.update_image(&record.name, |record| record.head = Some(head))?;
    Ok(())
}

fn new_head(file: File, record: &HeadRecord) -> Result<(), HeadError> {
    let head = Head::create_within(FileIo(file), ChunkSize::HEAD, record.smallest_size, record.bounds())?;
    let synced = head.io().0.sync_all();
    synced.map_err(|source| HeadError::Io { work: "making", source })
}

fn start_server(place: &Place, target: &Target, read_only: bool) -> Result<(), StepError> {
    let files = DiskFiles::of(&target.record, target.store, target.dir.join("head.delta"), read_only);
    place.write_disk(&files).map_err(StepError::io("write disk.json in", place.dir()))?;
    let lock = target.lock.inheritable().map_err(StepError::io("copy the lock of", &target.dir))?;
    spawn::server(&target.program, place, lock)
}

fn write_state(
    place: &Place,
    store: &Store,
    record: &ImageRecord,
    choice: &Choice,
    read_only: bool,
    mount: Option<PathBuf>,
) -> Result<(), StepError> {
    let write = || {
        place.write_state(&State {
            name: record.name.clone(),
            root: RootIdentity::of(store.root())?,
            boot_id: boot_id()?,
            read_only,
            mount,
            mode: choice.mode,
            why: choice.why.clone(),
        })
    };
    write().map_err(StepError::io("write state.json in", place.dir()))
}

/// Mounts the file system of a device that is there.
pub fn mount(device: &Path, dir: &Path, file_system: &str, read_only: bool) -> Result<(), StepError> {
    // Clones of one image have the same UUID, which xfs refuses to mount twice.
    let options = (file_system == "xfs").then_some("nouuid");
    mounts::mount_device(device, dir, file_system, options, read_only).map_err(|error| match error.is_read_only() {
        true => StepError::Journal(error),
        false => error.into(),
    })
}

pub fn loop_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn await_server(place: &Place) -> Result<(), StepError> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    while place.has_server().map_err(StepError::io("look for the server in", place.dir()))? == Some(true) {
        if start.elapsed() > SERVER_PATIENCE {
            return Err(StepError::Stays {
                seconds: SERVER_PATIENCE.as_secs(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}
