//! The local verbs as a user has them: the real programs, a real kernel, no library calls but to tidy up.
#![cfg(feature = "root-tests")]

mod flatten;
mod full_disk;
mod kill;
mod lacking;
mod limits;
mod promises;
mod refusals;
mod resize;
mod rig;
#[path = "../common/servers.rs"]
mod servers;
mod stopped;
mod together;
mod verbs;
