//! The bus while it changes, under the accesses of a guest.
//!
//! Ten million accesses if `VMM_FULL` is in the environment, a fiftieth otherwise.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{guest, stress};
use vmm_tests::live_bus::LiveBus;
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ThreadOptions, VcpuThread};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![every_access_of_two_vcpus_reads_what_was_there_at_some_moment_of_it]
}

fn every_access_of_two_vcpus_reads_what_was_there_at_some_moment_of_it() -> Result<()> {
    let accesses = stress(10_000_000);
    let live = Arc::new(LiveBus::default());
    let machine = SmallMachine::boot(&guest("bus_reads"), 2, 0)?;
    let mut threads = Vec::new();
    for vcpu in machine.vcpus {
        let thread = VcpuThread::spawn(vcpu, Arc::clone(&live), ThreadOptions::default(), |_, _| ())?;
        thread.resume();
        threads.push(thread);
    }
    let deadline = Instant::now() + Duration::from_secs(30) + Duration::from_micros(100 * accesses);
    let changes = live.change_until(|| live.accesses() >= accesses || Instant::now() >= deadline)?;
    let returns: Vec<u64> = threads.iter().map(|thread| thread.counters().mmio_reads).collect();
    // The vCPUs go before the machine's memory.
    drop(threads);
    ensure!(live.accesses() >= accesses, "{} accesses of {accesses} in time", live.accesses());
    ensure!(returns.iter().all(|&returns| returns >= accesses / 100), "accesses by vCPU: {returns:?}");
    ensure!(changes >= 4, "{changes} changes");
    let wrong = live.faults().wrong.load(Ordering::Relaxed);
    let late = live.faults().late.load(Ordering::Relaxed);
    ensure!((wrong, late) == (0, 0), "{wrong} wrong reads, {late} calls of removed devices");
    Ok(())
}
