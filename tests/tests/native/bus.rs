//! The bus while it changes, under the accesses of guests.

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
    crate::trials![every_access_of_two_guests_reads_what_was_there_at_some_moment_of_it]
}

/// Two guests on one bus: two vCPUs that read while ranges are inserted, replaced, moved and removed.
fn every_access_of_two_guests_reads_what_was_there_at_some_moment_of_it() -> Result<()> {
    let accesses = stress(10_000_000);
    let live = Arc::new(LiveBus::default());
    let mut machines = Vec::new();
    for _ in 0..2 {
        let SmallMachine { vcpu, memory, .. } = SmallMachine::boot(&guest("bus_reads"))?;
        let thread = VcpuThread::spawn(vcpu, Arc::clone(&live), ThreadOptions::default(), |_, _| ())?;
        thread.resume();
        machines.push((thread, memory));
    }
    let deadline = Instant::now() + Duration::from_secs(30) + Duration::from_micros(100 * accesses);
    let changes = live.change_until(|| live.accesses() >= accesses || Instant::now() >= deadline)?;
    // The vCPUs go before what they read.
    for (thread, memory) in machines {
        drop(thread);
        drop(memory);
    }
    ensure!(live.accesses() >= accesses, "{} accesses of {accesses} in time", live.accesses());
    ensure!(changes >= 4, "{changes} changes");
    let wrong = live.faults().wrong.load(Ordering::Relaxed);
    let late = live.faults().late.load(Ordering::Relaxed);
    ensure!((wrong, late) == (0, 0), "{wrong} wrong reads, {late} calls of removed devices");
    Ok(())
}
