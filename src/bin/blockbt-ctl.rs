//! The command line tool; all of it is in the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    blockbt::front::cli::main(&blockbt::service::Stores).into()
}
