//! `Scheduler`: the policy by which the kernel gives CPUs to a thread (sched(7)).
#![expect(unsafe_code, reason = "a system call that rustix does not have")]

use std::io;

use crate::affinity::on_scratch_thread;

/// A scheduling policy. The threads that a thread starts do not inherit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// `SCHED_OTHER`: a fair share.
    Other,
    /// `SCHED_BATCH`: a fair share, with fewer and longer turns.
    Batch,
    /// `SCHED_IDLE`: what nobody else wants.
    Idle,
    /// `SCHED_FIFO` with a priority from 1 to 99: before all others, until it sleeps.
    Fifo(u8),
    /// `SCHED_RR` with a priority from 1 to 99: as `SCHED_FIFO`, in turns with threads of the same priority.
    Rr(u8),
}

impl Scheduler {
    /// Whether a thread that does not sleep keeps its CPU from all that are not realtime.
    #[must_use]
    pub fn is_realtime(self) -> bool {
        matches!(self, Self::Fifo(_) | Self::Rr(_))
    }

    /// Takes and gives back the policy on a thread that then ends: whether this process may have it.
    ///
    /// # Errors
    /// The kernel's answer: `EPERM` without the permission, or where the cgroup has no realtime time.
    pub fn try_out(self) -> io::Result<()> {
        on_scratch_thread(|| self.take())
    }

    /// Gives the calling thread this policy.
    pub(crate) fn take(self) -> io::Result<()> {
        let (policy, priority) = match self {
            Self::Other => (libc::SCHED_OTHER, 0),
            Self::Batch => (libc::SCHED_BATCH, 0),
            Self::Idle => (libc::SCHED_IDLE, 0),
            Self::Fifo(priority) => (libc::SCHED_FIFO, priority),
            Self::Rr(priority) => (libc::SCHED_RR, priority),
        };
        // `struct sched_param` of the kernel.
        let param = libc::c_int::from(priority);
        // Not by libc, one of which has a stub for it.
        // SAFETY:
        // - thread 0 is the calling one;
        // - the kernel reads one int, which `param` is, and keeps no reference to it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_sched_setscheduler,
                0,
                policy | libc::SCHED_RESET_ON_FORK,
                std::ptr::from_ref(&param),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::fs;

    use super::*;

    /// The policy of the calling thread, and that of a thread it starts, as numbers of the kernel.
    fn policies() -> io::Result<(i64, i64)> {
        let policy = || {
            let stat = fs::read_to_string("/proc/thread-self/stat")?;
            // Field 41; the second one, in parentheses, may contain anything.
            let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
            fields.and_then(|mut fields| fields.nth(38)?.parse().ok()).ok_or(io::Error::other(stat))
        };
        Ok((policy()?, on_scratch_thread(policy)?))
    }

    #[test]
    fn a_policy_is_taken_and_not_inherited() {
        for (scheduler, number) in
            [(Scheduler::Batch, libc::SCHED_BATCH), (Scheduler::Idle, libc::SCHED_IDLE)]
        {
            let taken = on_scratch_thread(|| {
                scheduler.take()?;
                policies()
            });
            let (own, inherited) = taken.unwrap();
            assert_eq!(own, i64::from(number), "{scheduler:?}");
            // A fair policy stays, its share goes back to the ordinary one.
            assert!(
                inherited == own || inherited == i64::from(libc::SCHED_OTHER),
                "{scheduler:?}: {inherited}"
            );
        }
    }

    #[test]
    fn a_priority_out_of_range_is_refused_on_the_thread_that_tries_it() {
        let before = policies().unwrap();
        let error = Scheduler::Fifo(100).try_out().unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)), "{error}");
        assert_eq!(policies().unwrap(), before);
    }
}
