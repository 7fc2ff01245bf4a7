//! `blockbt-ctl` from its arguments to its exit code.
//!
//! Refuses to know verbs. Invariant: the daemon of the store is asked if it answers, and the store itself is used else.

use super::args::{Asked, Cli, Global};
use super::bars::Bars;
use super::daemon::file_layer;
use super::exit::{Exit, exit_of_error, exit_of_reply};
use super::show::{human, json_lines};
use super::table::error_line;
use crate::front::config::Layer;
use crate::front::socket::{self, Client};
use crate::service::{Backend, ErrorKind, Handler, Quiet, Request, Role, ServiceError, Settings};
use clap::{CommandFactory, Parser};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

const PROGRAM: &str = "blockbt-ctl";

/// All of `blockbt-ctl`: reads the process's arguments, carries out one verb, prints.
pub fn main(backend: &dyn Backend) -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe while help is printed is no failure.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    super::warnings::show(PROGRAM);
    match run(cli, backend) {
        Ok(exit) => exit,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", error_line(PROGRAM, &error));
            exit_of_error(error.kind)
        }
    }
}

fn run(cli: Cli, backend: &dyn Backend) -> Result<Exit, ServiceError> {
    let asked = cli
        .command
        .asked()
        .map_err(|error| ServiceError::new(ErrorKind::Usage, "path").because(Some(&error)))?;
    let request = match asked {
        Asked::Verb(request) => request,
        Asked::Completions(shell) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut text);
            return print(&text);
        }
        Asked::Man(dir) => return man(&dir),
    };
    request
        .check()
        .map_err(|error| ServiceError::from_error(ErrorKind::Usage, &error))?;
    let reply = {
        let bars = if cli.global.quiet { None } else { Bars::on_terminal() };
        handler(&cli.global, backend, &request)?.handle(request, bars.as_ref().map_or(&Quiet, |bars| bars))?
    };
    let text = match (cli.global.json, cli.global.quiet) {
        (true, _) => json_lines(&reply).map_err(|error| ServiceError::from_error(ErrorKind::Failed, &error))?,
        (false, true) => String::new(),
        (false, false) => human(&reply),
    };
    print(text.as_bytes())?;
    Ok(exit_of_reply(&reply))
}

/// Who is to carry out the verb.
fn handler(global: &Global, backend: &dyn Backend, request: &Request) -> Result<Arc<dyn Handler>, ServiceError> {
    if let Some(path) = &global.socket {
        let error = |cause: socket::ConnectError| ServiceError::from_error(ErrorKind::Failed, &cause);
        return Ok(Arc::new(Client::connect(path).map_err(error)?));
    }
    let settings = settings(global)?;
    let found = backend.find_run_dir(&settings.root)?;
    if found.is_none() && !request.makes_a_store() {
        let message = format!("no store at {}: create, import or pull makes one", settings.root.display());
        return Err(ServiceError::new(ErrorKind::NotFound, message));
    }
    if let Some(run_dir) = found.filter(|_| !global.no_daemon)
        && let Some(client) = Client::find(&run_dir).map_err(|cause| ServiceError::from_error(ErrorKind::Failed, &cause))?
    {
        return Ok(Arc::new(client));
    }
    tracing::debug!(verb = request.verb(), "no daemon: working on the store");
    backend.open(&settings, Role::Command)
}

fn settings(global: &Global) -> Result<Settings, ServiceError> {
    let flags = Layer {
        root: global.root.clone(),
        free_margin: global.free_margin.clone(),
        ..Layer::default()
    };
    let merged = file_layer(global.config.as_deref()).and_then(|file| flags.over(file).finish());
    Ok(merged.map_err(|error| ServiceError::from_error(ErrorKind::Usage, &error))?.settings)
}

/// A reader that has gone away has what it wanted.
fn print(text: &[u8]) -> Result<Exit, ServiceError> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error) => Err(ServiceError::new(ErrorKind::Failed, "standard output").because(Some(&error))),
        Ok(()) => Ok(Exit::Done),
    }
}

fn man(dir: &Path) -> Result<Exit, ServiceError> {
    let failed = |error: io::Error| ServiceError::new(ErrorKind::Failed, format!("man pages in {}", dir.display())).because(Some(&error));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    clap_mangen::generate_to(super::daemon::Daemon::command(), dir).map_err(failed)?;
    Ok(Exit::Done)
}
