//! `Placement`: where and how the thread of a vCPU runs on the host.

use std::io;

use crate::affinity::{CpuSet, confine};
use crate::kick::KickTarget;
use crate::run_loop::RunVcpu;
use crate::scheduler::Scheduler;

/// Where and how the thread of a vCPU runs; by default as the thread that starts it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The host CPUs that it may run on.
    pub cpus: Option<CpuSet>,
    /// Its scheduling policy.
    pub scheduler: Option<Scheduler>,
}

/// Why a vCPU's thread does not get its place.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The first `KVM_RUN` failed, which enters no guest.
    #[error("KVM_RUN failed")]
    FirstRun(#[source] io::Error),
    /// The kernel does not let it run there.
    #[error("cannot run on the CPUs {0:?}")]
    Cpus(Vec<usize>, #[source] io::Error),
    /// The kernel does not let it have this policy.
    #[error("cannot be scheduled by {0:?}")]
    Scheduler(Scheduler, #[source] io::Error),
}

impl Placement {
    /// Puts the calling thread, which kicks of `target` reach and which is to run `vcpu`, in its place. To be called before
    /// the vCPU enters the guest.
    pub(crate) fn take<V: RunVcpu, T: KickTarget>(
        &self,
        vcpu: &mut V,
        target: &T,
    ) -> Result<(), PlacementError> {
        if *self == Self::default() {
            return Ok(());
        }
        first_run(vcpu, target).map_err(PlacementError::FirstRun)?;
        if let Some(cpus) = self.cpus {
            confine(None, &cpus).map_err(|source| PlacementError::Cpus(cpus.iter().collect(), source))?;
        }
        if let Some(scheduler) = self.scheduler {
            scheduler.take().map_err(|source| PlacementError::Scheduler(scheduler, source))?;
        }
        Ok(())
    }
}

/// A `KVM_RUN` that enters no guest. The first one of a VM starts a thread in this process (since Linux 6.14, the one that
/// recovers huge pages), which inherits the CPUs of its caller: it must not be caught on a vCPU's own.
fn first_run<V: RunVcpu, T: KickTarget>(vcpu: &mut V, target: &T) -> io::Result<()> {
    target.arm_own();
    let returned = vcpu.run();
    // Nobody else kicks a vCPU that has not entered yet.
    target.disarm();
    match returned {
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(()),
        returned => returned,
    }
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::affinity::{current, on_scratch_thread, permitted};
    use crate::fake::{Script, ScriptedVcpu};

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl KickTarget for Flag {
        fn arm(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
        fn signal(&self) {}
        fn arm_own(&self) {
            self.arm();
        }
        fn disarm(&self) -> bool {
            self.0.swap(false, Ordering::Relaxed)
        }
    }

    fn take(placement: Placement, script: Vec<Script>) -> Result<CpuSet, PlacementError> {
        let mut vcpu = ScriptedVcpu::new(script).unwrap();
        let target = Flag::default();
        let taken = on_scratch_thread(|| Ok(placement.take(&mut vcpu, &target).map(|()| current())));
        assert!(!target.0.load(Ordering::Relaxed), "the next KVM_RUN would be interrupted");
        Ok(taken.unwrap()?.unwrap())
    }

    #[test]
    fn the_thread_runs_on_its_cpus_after_a_first_run_that_enters_nothing() {
        let last = permitted().unwrap().iter().last().unwrap();
        let placement = Placement { cpus: Some([last].into_iter().collect()), scheduler: None };
        let taken = take(placement, vec![Script::Fails(libc::EINTR)]).unwrap();
        assert_eq!(taken.iter().collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn the_default_place_costs_no_run() {
        let before = current().unwrap();
        assert_eq!(take(Placement::default(), vec![Script::Fails(libc::EFAULT)]).unwrap(), before);
    }

    #[test]
    fn a_place_that_cannot_be_had_says_why() {
        let placement = Placement { cpus: Some(CpuSet::default()), scheduler: Some(Scheduler::Batch) };
        let refused = take(placement, vec![Script::Fails(libc::EINTR)]);
        assert!(matches!(refused, Err(PlacementError::Cpus(..))), "{refused:?}");
        let refused = take(placement, vec![Script::Fails(libc::EFAULT)]);
        assert!(matches!(refused, Err(PlacementError::FirstRun(_))), "{refused:?}");
    }
}
