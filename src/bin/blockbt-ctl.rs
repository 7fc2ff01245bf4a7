//! The command line tool; all of it is in the library.
use blockbt::front::cli::{self, exit_of_error};
use std::process::ExitCode;

fn main() -> ExitCode {
    match blockbt::service::exempt_loopback_from_proxy() {
        Ok(()) => cli::main(&blockbt::service::Stores).into(),
        Err(error) => {
            eprintln!("blockbt-ctl: {error}");
            exit_of_error(error.kind).into()
        }
    }
}
