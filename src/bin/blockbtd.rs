use blockbt::attach::server;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [verb, place] if verb == server::SUBCOMMAND => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            match server::run(Path::new(place)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{:#}", anyhow::Error::from(error));
                    ExitCode::FAILURE
                }
            }
        }
        _ => ExitCode::from(2),
    }
}
