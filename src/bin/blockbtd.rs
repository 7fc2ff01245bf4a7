//! The daemon; all of it is in the library.
use std::process::ExitCode;

fn main() -> ExitCode {
    blockbt::front::daemon::main(&blockbt::service::Stores, blockbt::service::fuse_serve).into()
}
