//! Trees and archives, into and out of a mounted file system.
//!
//! Works beneath the descriptor of a directory and has not heard of images, stores or block devices' makers; the caller mounts
//! and unmounts. Invariant: whatever an archive says, nothing outside that directory is made, changed or read.

mod beneath;
mod error;
mod header;
mod meta;
mod pax;
pub mod raw_out;
pub mod source;
mod sparse;
pub mod tar_in;
pub mod tar_out;
pub mod tar_read;
pub mod tree_in;
mod walk;

pub use beneath::open_root;
pub use error::FilesError;
pub use source::{Source, SourceError};

/// What went in or out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub entries: u64,
    /// File content without holes.
    pub bytes: u64,
    /// Sockets: they mean nothing without the process that listens.
    pub sockets_skipped: u64,
    /// PAX records that carry attributes in a form we do not read (`SCHILY.acl.*`, `RHT.security.selinux`).
    pub attributes_skipped: u64,
}

#[cfg(test)]
mod tests;
