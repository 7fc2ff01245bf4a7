//! Which delta answers for a range of the disk: the merged map, the block device over it, and sealing.
//!
//! Refuses to know paths, devices, the store and where a delta's bytes come from. Invariant: a read gives the newest delta's chunk that lies
//! below the smallest size the disk has had since that delta, and zeros where there is none.

mod diff;
mod disk;
mod map;
mod read;
pub mod seal;
#[cfg(test)]
mod tests;

pub use diff::{Change, diff, union, written};
pub use disk::Disk;
pub use map::{ChainError, ChainMap, Delta, Segment, Source};
pub use read::Chain;
