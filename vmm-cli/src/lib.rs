//! The vmm-cli library.

pub mod args;
pub mod config;
