//! The benchmarks' measuring side: subjects, probes, a raw KVM baseline and the report they fill.

mod raw_elf;
pub mod raw_exits;
mod raw_ioctl;
mod raw_mapping;
pub mod raw_vm;
pub mod report;
pub mod series;
pub mod stats;
