//! blockbt keeps container and VM root disks as chains of thin delta files and moves them between hosts with BitTorrent.
//!
//! The layers, and which may name which, are listed in `tests/layering.rs`.
#![deny(unsafe_code)]

pub mod bencode;
pub mod blockio;
pub mod chain;
pub mod format;
pub mod ids;
pub mod units;
