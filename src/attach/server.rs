//! The FUSE server of one attached image: a process of its own that outlives whoever started it.
//!
//! Refuses to know the store: it is told which files to open. Invariant: while it lives it holds the image's lock (its standard input), and
//! it lets go only after its last flush.
//!
//! Its parent gives it three descriptors in place of the standard ones: the image's lock, a pipe on which it says one line (`ready`, or what
//! went wrong), and its log. This needs no `unsafe`, and no other child of the parent can inherit them by accident.

use super::disk::{DiskError, DiskFiles};
use crate::fuse::{FuseError, Server, THREADS};
use rustix::fs::FlockOperation;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The hidden subcommand of `blockbtd`, whose one argument is the image's directory under `/run`.
pub const SUBCOMMAND: &str = "fuse-serve";
pub(super) const READY: &str = "ready";
pub(super) const DISK_FILE: &str = "disk.json";
pub(super) const LOCK_FILE: &str = "server.lock";

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{}: not the JSON it should be", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Fuse(#[from] FuseError),
    #[error("last flush of {}", path.display())]
    Flush { path: PathBuf, source: io::Error },
}

/// Serves the disk that `<place>/disk.json` names at `<place>/fuse`, until that is unmounted.
///
/// Shape: called once, first thing in a process whose standard descriptors are those that `attach` gives.
pub fn run(place: &Path) -> Result<(), ServerError> {
    let mut ready = Ready::take().map_err(|source| ServerError::Io {
        doing: "take the ready pipe of",
        path: place.into(),
        source,
    })?;
    match start(place) {
        Ok((server, disk, lock)) => {
            // Nobody listens any more: whoever started us is dead, and nobody will use what we serve.
            ready.say(READY).map_err(|source| ServerError::Io {
                doing: "say ready for",
                path: place.into(),
                source,
            })?;
            drop(ready);
            let served = server.run();
            let flushed = if disk.read_only() { Ok(()) } else { disk.flush() };
            // First the store's files, then the image's lock, then ours: who waits for ours finds the image free, and nothing of the store open.
            drop(disk);
            let freed = File::open("/dev/null").and_then(|null| Ok(nix::unistd::dup2_stdin(null)?));
            drop(lock);
            served?;
            freed.map_err(|source| ServerError::Io {
                doing: "let go of the image of",
                path: place.into(),
                source,
            })?;
            flushed.map_err(|source| ServerError::Flush {
                path: place.into(),
                source,
            })
        }
        Err(error) => {
            // If it cannot be said, the log has it.
            let _unheard = ready.say(&chain_of(&error));
            Err(error)
        }
    }
}

type Started = (Server, std::sync::Arc<dyn crate::blockio::BlockDevice>, File);

fn start(place: &Path) -> Result<Started, ServerError> {
    // In a session of its own: no terminal's Ctrl-C and no hang-up reaches it.
    let _already_leader = rustix::process::setsid();
    // The kernel must not shoot the process that its own dirty pages wait for.
    let _not_permitted = fs::write("/proc/self/oom_score_adj", "-900");
    let io = |doing, path: &Path, source: io::Error| ServerError::Io {
        doing,
        path: path.into(),
        source,
    };
    let lock_path = place.join(LOCK_FILE);
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path);
    let lock = lock.map_err(|e| io("open", &lock_path, e))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| io("lock", &lock_path, e.into()))?;
    let path = place.join(DISK_FILE);
    let bytes = fs::read(&path).map_err(|e| io("read", &path, e))?;
    let files: DiskFiles = serde_json::from_slice(&bytes).map_err(|source| ServerError::Json { path, source })?;
    let disk = files.open()?;
    let server = Server::mount(disk.clone(), &place.join("fuse"), THREADS)?;
    tracing::info!(image = %files.name, deltas = files.deltas.len(), read_only = disk.read_only(), "serving");
    Ok((server, disk, lock))
}

/// The pipe to the parent: once our standard output, which afterwards is the log.
struct Ready(File);

impl Ready {
    fn take() -> io::Result<Ready> {
        let pipe = File::from(rustix::io::dup(io::stdout())?);
        rustix::io::fcntl_setfd(&pipe, rustix::io::FdFlags::CLOEXEC)?;
        nix::unistd::dup2_stdout(io::stderr())?;
        Ok(Ready(pipe))
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.0.write_all(format!("{}\n", line.replace('\n', " ")).as_bytes())
    }
}

/// An error and its causes in one line, for a pipe that carries nothing else.
fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
