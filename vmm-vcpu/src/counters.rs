//! `Counters`: how often a vCPU came back from `KVM_RUN` and why, and what its kicks came to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::VcpuExit;
use crate::kick::KickCounts;

/// The counters of one vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Returns of `KVM_RUN` with a port read, however many elements it had.
    pub port_reads: u64,
    /// With a port write.
    pub port_writes: u64,
    /// With a read of memory that has no slot.
    pub mmio_reads: u64,
    /// With a write to memory that has no slot or a read-only one.
    pub mmio_writes: u64,
    /// With any other exit.
    pub other_exits: u64,
    /// With `EINTR` after a kick.
    pub kicked: u64,
    /// With `EINTR` without a kick: another signal, or the process was stopped and continued.
    pub spurious: u64,
    /// With `EAGAIN`: a vCPU that waits for INIT and SIPI was woken.
    pub woken_for_startup: u64,
    /// Kicks that sent a signal.
    pub kicks_signalled: u64,
    /// Kicks that needed none: the vCPU was out of the guest, or being kicked already.
    pub kicks_elided: u64,
    /// Kicks that woke the vCPU where it was parked.
    pub kicks_woken: u64,
    /// How often the vCPU was parked for a pause.
    pub pauses: u64,
    /// How long in all, in nanoseconds.
    pub paused_ns: u64,
    /// Accesses whose end a device deferred.
    pub deferred: u64,
}

impl Counters {
    /// All returns of `KVM_RUN`.
    #[must_use]
    pub fn returns(&self) -> u64 {
        let exits = self.port_reads + self.port_writes + self.mmio_reads + self.mmio_writes;
        exits + self.other_exits + self.kicked + self.spurious + self.woken_for_startup
    }
}

/// One counter. Written by the vCPU's thread only, so that counting needs no locked instruction; read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the vCPU's thread counts, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct LiveCounters {
    port_reads: Count,
    port_writes: Count,
    mmio_reads: Count,
    mmio_writes: Count,
    other_exits: Count,
    pub(crate) kicked: Count,
    pub(crate) spurious: Count,
    pub(crate) woken_for_startup: Count,
    pauses: Count,
    paused_ns: Count,
    pub(crate) deferred: Count,
}

impl LiveCounters {
    #[inline]
    pub(crate) fn exit(&self, exit: &VcpuExit<'_>) {
        let counter = match exit {
            VcpuExit::PortRead { .. } => &self.port_reads,
            VcpuExit::PortWrite { .. } => &self.port_writes,
            VcpuExit::MmioRead { .. } => &self.mmio_reads,
            VcpuExit::MmioWrite { .. } => &self.mmio_writes,
            _ => &self.other_exits,
        };
        counter.add(1);
    }

    pub(crate) fn pause(&self, length: Duration) {
        self.pauses.add(1);
        self.paused_ns.add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The values now, with those of the kickers. Each is exact; together they are of no single moment.
    pub(crate) fn snapshot(&self, kicks: KickCounts) -> Counters {
        Counters {
            port_reads: self.port_reads.get(),
            port_writes: self.port_writes.get(),
            mmio_reads: self.mmio_reads.get(),
            mmio_writes: self.mmio_writes.get(),
            other_exits: self.other_exits.get(),
            kicked: self.kicked.get(),
            spurious: self.spurious.get(),
            woken_for_startup: self.woken_for_startup.get(),
            kicks_signalled: kicks.signalled,
            kicks_elided: kicks.elided,
            kicks_woken: kicks.woken,
            pauses: self.pauses.get(),
            paused_ns: self.paused_ns.get(),
            deferred: self.deferred.get(),
        }
    }
}
