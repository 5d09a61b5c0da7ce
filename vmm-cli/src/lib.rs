//! The vmm-cli library.

pub mod boot;
