//! The process's own environment, where the swarm cannot do with it as it is.
//!
//! Refuses to change it under running threads: the program starts anew, as the same process. Invariant: it does so once at most.

use super::{ErrorKind, ServiceError};
use crate::swarm;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where proxy variables would keep the torrent engine from our own tracker on loopback: starts this program again with an exemption for it.
/// To be called first of all. Errors: it could not be started again.
pub fn exempt_loopback_from_proxy() -> Result<(), ServiceError> {
    let Some(exempt) = swarm::exempt_from_proxy() else { return Ok(()) };
    let mut arguments = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env("NO_PROXY", &exempt).env("no_proxy", &exempt).exec();
    Err(ServiceError::new(ErrorKind::Failed, "starting again with NO_PROXY for 127.0.0.1").because(Some(&error)))
}
