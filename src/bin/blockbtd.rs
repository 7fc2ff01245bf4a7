//! The daemon; all of it is in the library.
use blockbt::front::cli::exit_of_error;
use blockbt::front::daemon;
use std::process::ExitCode;

fn main() -> ExitCode {
    match blockbt::service::exempt_loopback_from_proxy() {
        Ok(()) => daemon::main(&blockbt::service::Stores, blockbt::service::fuse_serve).into(),
        Err(error) => {
            eprintln!("blockbtd: {error}");
            exit_of_error(error.kind).into()
        }
    }
}
