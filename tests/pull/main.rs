//! Images that travel between hosts: real `blockbtd` and `blockbt-ctl` processes, each host a store, ports and settings of its own.
#![cfg(feature = "root-tests")]

use blockbt::{bencode, ids};
use rig::noise;

mod daemon;
mod faults;
mod hostile;
#[path = "../../src/swarm/tests/raw.rs"]
mod raw;
mod resume;
mod rig;
mod stops;
#[path = "../../src/swarm/tests/throttle.rs"]
mod throttle;
mod travel;
