//! Programs of others, that know the inside of a file system.
//!
//! Refuses to know what they do. Invariant: one that has not ended when its time is over is killed, and what it said is in the error.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Large file systems take their time, and a hung one ends.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// Of what it says, in an error.
const MAX_LINES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{program} is not installed: Debian has it in the package {package}")]
    Missing { program: &'static str, package: &'static str },
    #[error("run {program}")]
    Run { program: &'static str, source: io::Error },
    #[error("{program}: {status}: {said}")]
    Failed {
        program: &'static str,
        status: ExitStatus,
        said: String,
    },
    #[error("{program} is still at work after {seconds} s")]
    Stays { program: &'static str, seconds: u64 },
}

/// A program, and where to get it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
    /// Exit codes that are no failure are below this one.
    pub fails_from: i32,
}

impl Tool {
    /// Errors: it is nowhere in `$PATH`.
    pub fn must_be_there(&self) -> Result<(), ToolError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        match std::env::split_paths(&path).any(|dir| dir.join(self.program).is_file()) {
            true => Ok(()),
            false => Err(ToolError::Missing {
                program: self.program,
                package: self.package,
            }),
        }
    }

    /// Runs it to its end. Returns what it wrote to its standard output.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String, ToolError> {
        let program = self.program;
        let failed = |source| ToolError::Run { program, source };
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C");
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ToolError::Missing {
                program,
                package: self.package,
            },
            _ => failed(source),
        })?;
        let out = listen(child.stdout.take().expect("it is piped"));
        let err = listen(child.stderr.take().expect("it is piped"));
        let Some(status) = wait(&mut child).map_err(failed)? else {
            // Where it waits for a device that does not answer it will not even die; it is not waited for.
            let _dead_already = child.kill();
            return Err(ToolError::Stays {
                program,
                seconds: PATIENCE.as_secs(),
            });
        };
        let (out, err) = (heard(out), heard(err));
        match status.code() {
            Some(code) if code < self.fails_from => Ok(out),
            _ => Err(ToolError::Failed {
                program,
                status,
                said: self
                    .gist(&err)
                    .or_else(|| self.gist(&out))
                    .unwrap_or_else(|| "it says nothing".into()),
            }),
        }
    }

    /// The last lines of what it said, without its version and its name.
    fn gist(&self, text: &str) -> Option<String> {
        let banner = format!("{} 1.", self.program);
        let name = format!("{}: ", self.program);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(&banner))
            .map(|line| line.strip_prefix(&name).unwrap_or(line))
            .collect();
        let last = &lines[lines.len().saturating_sub(MAX_LINES)..];
        (!last.is_empty()).then(|| last.join("; "))
    }
}

fn listen(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut said = Vec::new();
        let _what_came_before_counts = pipe.read_to_end(&mut said);
        said
    })
}

fn heard(listener: JoinHandle<Vec<u8>>) -> String {
    let said = listener.join().expect("reading a pipe does not panic");
    String::from_utf8_lossy(&said).into_owned()
}

fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Tool = Tool {
        program: "sh",
        package: "dash",
        fails_from: 2,
    };

    #[test]
    fn what_a_program_says_is_its_result_or_its_error() {
        assert_eq!(SHELL.run(&["-c", "echo done; exit 1"]).unwrap(), "done\n");
        let error = SHELL
            .run(&["-c", "echo out; echo 'sh 1.47' >&2; echo; echo 'sh: no' >&2; exit 2"])
            .unwrap_err();
        assert_eq!(error.to_string(), "sh: exit status: 2: no");
        let error = SHELL.run(&["-c", "seq 9; kill -9 $$"]).unwrap_err();
        assert!(error.to_string().ends_with("7; 8; 9"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_with_its_package() {
        let nowhere = Tool {
            program: "blockbt-test-no-such-program",
            ..SHELL
        };
        let error = nowhere.run::<&str>(&[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "blockbt-test-no-such-program is not installed: Debian has it in the package dash"
        );
    }
}
