//! `blockbtd` from its arguments to its end.
//!
//! Refuses to know verbs and swarm. Invariant: however it ends, what is attached and mounted stays so.

use crate::front::cli::daemon::{Daemon, Hidden, file_layer};
use crate::front::cli::{Exit, exit_of_error};
use crate::front::config::Config;
use crate::front::socket::{Claim, ClaimError, Limits, Server};
use crate::service::{Backend, ErrorKind, Role, ServiceError};
use clap::Parser;
use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const PROGRAM: &str = "blockbtd";
/// The libraries tell at `info` what we tell, and at `error` that a peer has left; a filter that names them goes over this.
const LIBRARIES: &str = "librqbit=warn,librqbit_core=off,mainline=warn";

/// All of `blockbtd`. `fuse_serve` is the hidden subcommand that shows one image's disk as a FUSE file.
pub fn main(backend: &dyn Backend, fuse_serve: impl FnOnce(Vec<OsString>) -> Result<(), ServiceError>) -> Exit {
    let arguments = match Daemon::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let ended = match arguments.hidden {
        Some(Hidden::FuseServe { arguments }) => fuse_serve(arguments),
        None => configure(&arguments).and_then(|config| run(&config, backend)),
    };
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{PROGRAM}: {error}");
            exit_of_error(error.kind)
        }
    }
}

fn configure(arguments: &Daemon) -> Result<Config, ServiceError> {
    let merged = file_layer(arguments.config.as_deref()).and_then(|file| arguments.layer().over(file).finish());
    merged.map_err(|error| ServiceError::from_error(ErrorKind::Usage, &error))
}

fn log(filter: &str) -> Result<(), ServiceError> {
    let wrong = |error: &(dyn std::error::Error + 'static)| {
        ServiceError::new(ErrorKind::Usage, format!("log filter \"{}\"", crate::ids::clip(filter))).because(Some(error))
    };
    let filter = tracing_subscriber::EnvFilter::builder()
        .parse(format!("{LIBRARIES},{filter}"))
        .map_err(|error| wrong(&error))?;
    // Where something logs already (a test), it goes on doing so.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
    Ok(())
}

/// Runs until SIGTERM or SIGINT.
pub fn run(config: &Config, backend: &dyn Backend) -> Result<(), ServiceError> {
    log(&config.log)?;
    let settings = &config.settings;
    let claim = Claim::take(&backend.make_run_dir(&settings.root)?).map_err(claim_error)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("runtime", &error))?;
    // Before the store is opened: a signal from here on is a clean stop.
    let (stop_now, stop) = watch::channel(false);
    runtime.spawn(stop_on_signals(
        {
            let _in_runtime = runtime.enter();
            let hook = |kind| signal(kind).map_err(|error| failed("signals", &error));
            (hook(SignalKind::terminate())?, hook(SignalKind::interrupt())?)
        },
        stop_now,
    ));
    let handler = backend.open(settings, Role::Daemon)?;
    let listener = claim.listen().map_err(claim_error)?;
    let server = Server::new(handler.clone(), settings.root.clone(), Limits::default());
    notify(sd_notify::NotifyState::Ready);
    tracing::info!(root = %settings.root.display(), listen = %settings.listen, "ready");
    let served = runtime.block_on(server.serve(listener, stop));
    notify(sd_notify::NotifyState::Stopping);
    handler.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!("stopped; what is mounted stays mounted");
    served.map_err(|error| failed("socket", &error))
}

async fn stop_on_signals(
    (mut terminate, mut interrupt): (tokio::signal::unix::Signal, tokio::signal::unix::Signal),
    stop: watch::Sender<bool>,
) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    // The sender lives on: a dropped one would look like another stop.
    stop.closed().await;
}

fn notify(state: sd_notify::NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "service manager was not told");
    }
}

fn claim_error(error: ClaimError) -> ServiceError {
    let kind = match error {
        ClaimError::Taken { .. } => ErrorKind::InUse,
        ClaimError::Io { .. } => ErrorKind::Failed,
    };
    ServiceError::from_error(kind, &error)
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> ServiceError {
    ServiceError::new(ErrorKind::Failed, what).because(Some(error))
}
