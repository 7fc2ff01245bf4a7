//! The ways in: command line, daemon socket, settings.
//!
//! Refuses to know how a verb is carried out; it speaks [`crate::service`] only.
//! Invariant: with or without a daemon, a verb's output is the same, as both ways end in the same reply.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod socket;
