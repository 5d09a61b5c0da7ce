//! The vmm-cli library: configuration, boot loading, the machine and its console.
//!
//! `main` parses [`args::Args`] and calls [`run::run`]; tests and other programs can do the same.

mod acpi;
mod advice;
pub mod args;
mod balloon;
pub mod boot;
pub mod config;
pub mod confinement;
mod console;
pub mod control;
mod default_guest;
mod disks;
pub mod doctor;
mod event_loop;
mod files;
mod host;
pub mod jail;
mod kept;
mod listener;
mod logging;
mod machine;
mod memory;
pub mod messages;
mod nets;
mod opener;
pub mod outcome;
mod output_file;
mod processes;
mod processors;
mod renewal;
pub mod run;
mod signals;
mod sink;
pub mod stats;
mod vhost_user;
mod vsock;
