//! blockbt keeps container and VM root disks as chains of thin delta files and moves them between hosts with BitTorrent.
//!
//! The layers, and which may name which, are listed in `tests/layering.rs`.
#![deny(unsafe_code)]

pub mod attach;
pub mod bencode;
pub mod blockio;
pub mod catalog;
pub mod chain;
pub mod files;
pub mod format;
pub mod front;
pub mod fuse;
pub mod ids;
pub mod kernel;
pub mod service;
pub mod store;
pub mod swarm;
pub mod sys;
pub mod units;
