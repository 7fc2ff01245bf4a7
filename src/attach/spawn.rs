//! Starting a FUSE server, and hearing whether it serves.
//!
//! Refuses to know what it serves. Invariant: a server that did not say `ready` in time is killed and reaped before its failure is reported.

use super::place::Place;
use super::run::StepError;
use super::server::{READY, SUBCOMMAND};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// For its first word: what it reads and opens may be on a slow disk.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of what a server says, at most.
const MAX_WORDS: usize = 4096;

/// The `blockbtd` that serves.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    pub fn at(path: impl Into<PathBuf>) -> Program {
        Program(path.into())
    }

    /// The one beside the program that runs, or the first of `$PATH`.
    pub fn installed() -> Program {
        let beside = std::env::current_exe()
            .ok()
            .map(|me| me.with_file_name("blockbtd"))
            .filter(|path| path.is_file());
        Program(beside.unwrap_or_else(|| PathBuf::from("blockbtd")))
    }

    /// Where systemd runs, the server gets a scope of its own, so that stopping a service or a login does not kill it, and which systemd
    /// does not stop before the file systems above it.
    fn command(&self, place: &Place) -> Command {
        let arguments = [OsString::from(SUBCOMMAND), place.dir().into()];
        if !Path::new("/run/systemd/system").is_dir() {
            let mut command = Command::new(&self.0);
            command.args(arguments);
            return command;
        }
        let stamp = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos());
        let unit = format!("--unit=blockbt-{}-{}-{stamp}.scope", place.store, place.image);
        let mut command = Command::new("systemd-run");
        command
            .args(["--scope", "--quiet", "--collect", "--property=DefaultDependencies=no", &unit, "--"])
            .arg(&self.0)
            .args(arguments);
        command
    }
}

/// Starts a server that inherits `lock`; returns when it serves.
pub fn server(program: &Program, place: &Place, lock: OwnedFd) -> Result<(), StepError> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(place.log())
        .map_err(StepError::io("open", place.log()))?;
    let (mut pipe, ready) = io::pipe().map_err(StepError::io("make a pipe for the server of", place.dir()))?;
    let mut command = program.command(place);
    command.stdin(lock).stdout(ready).stderr(log).current_dir("/");
    let spawned = command.spawn();
    // Our copies of its descriptors, the pipe's end among them, or we would never see it close.
    drop(command);
    let mut child = spawned.map_err(|source| StepError::Spawn {
        program: program.0.display().to_string(),
        source,
    })?;
    match listen(&mut pipe) {
        Ok(Some(words)) if words == READY => {
            reap_later(child);
            Ok(())
        }
        heard => {
            let _already_dead = child.kill();
            let status = child.wait().map_err(StepError::io("wait for the server of", place.dir()))?;
            Err(match heard {
                Ok(Some(words)) if words.is_empty() => StepError::Server {
                    said: format!("{status}, {}", last_words(&place.log())),
                },
                Ok(Some(said)) => StepError::Server { said },
                Ok(None) => StepError::Silent {
                    seconds: PATIENCE.as_secs(),
                },
                Err(source) => StepError::Io {
                    doing: "listen to the server of",
                    path: place.dir(),
                    source,
                },
            })
        }
    }
}

/// One line, or what was said before the pipe closed; `None` when nothing came in time.
fn listen(pipe: &mut PipeReader) -> io::Result<Option<String>> {
    let start = Instant::now();
    let mut words = Vec::new();
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 512];
        let count = pipe.read(&mut buffer)?;
        words.extend_from_slice(&buffer[..count]);
        if count == 0 || buffer[..count].contains(&b'\n') || words.len() > MAX_WORDS {
            return Ok(Some(String::from_utf8_lossy(&words).trim_end().to_string()));
        }
    }
}

/// A daemon lives longer than its servers, and should not collect zombies.
fn reap_later(mut child: Child) {
    std::thread::spawn(move || {
        if let Err(error) = child.wait() {
            tracing::warn!(%error, "a FUSE server could not be awaited");
        }
    });
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MAX_WORDS)..]).into_owned());
    match text {
        Ok(text) if !text.trim().is_empty() => text.lines().last().unwrap_or_default().to_string(),
        _ => "and its log is empty".to_string(),
    }
}
