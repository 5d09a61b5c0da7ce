//! The benchmarks' measuring side: subjects, probes, a raw KVM baseline and the report they fill.

pub mod boot_monitor;
pub mod buses;
pub mod cells;
pub mod dispatch;
pub mod exit_counts;
pub mod first_exit;
mod instruction;
pub mod kvm_trace;
pub mod linux_boot;
pub mod locked;
pub mod memory;
pub mod probe;
mod raw_elf;
pub mod raw_exits;
mod raw_ioctl;
mod raw_mapping;
pub mod raw_vm;
pub mod report;
pub mod scripted_exits;
pub mod series;
pub mod stats;
pub mod subject;
pub mod traced_exits;
pub mod vmm_exits;
