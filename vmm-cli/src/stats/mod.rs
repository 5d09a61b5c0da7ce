//! Statistics: what a machine has counted, by the kernel and by this program, and where the report of it goes.
//! `docs/stats.md` is the user's page.

mod kernel;
mod output;
mod report;
mod table;

pub(crate) use kernel::{KernelStats, StatsFiles};
pub(crate) use output::Output;
pub use report::{DiskCounts, MachineCounters, NetReport, Report};
