//! The benchmarks' measuring side: subjects, probes, a raw KVM baseline and the report they fill.

pub mod report;
pub mod series;
pub mod stats;
