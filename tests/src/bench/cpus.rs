//! Threads of a benchmark that each have a CPU of their own.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that the calling thread may use.
///
/// # Errors
///
/// The system call fails.
pub fn allowed() -> Result<Vec<usize>, Errno> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread, and those that it starts, on `cpu`.
///
/// # Errors
///
/// The process may not use that one.
pub fn stay_on(cpu: usize) -> Result<(), Errno> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)
}
