//! `VmmVcpus`: this project's own vCPU threads, as a monitor has them, with either mechanism.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use vmm_devices::BusDevice;
use vmm_memory::AddressSpace;
use vmm_vcpu::{Mechanism, ThreadOptions, VcpuThread, Vcpus};

use crate::bench::buses::{Buses, Status};
use crate::bench::thread_calls::{cpu_time, thread_id};
use crate::bench::vcpu_set::{LIMIT, Pausable, Work, Working};
use crate::small_machine::SmallMachine;

/// The vCPUs of a machine, on buses with a device at the port that the guests of the benchmarks read.
pub struct VmmVcpus {
    // Dropped in this order: the memory goes after the vCPUs.
    vcpus: Vcpus,
    threads: Vec<i32>,
    _memory: AddressSpace,
}

impl VmmVcpus {
    /// Makes a machine of `cpus` vCPUs with `guest`, and starts their threads, paused.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn new(guest: &Path, cpus: u32, mechanism: Mechanism) -> anyhow::Result<Self> {
        let SmallMachine { vcpus, memory, .. } = SmallMachine::boot(guest, cpus, 0)?;
        let device: Arc<dyn BusDevice> = Arc::new(Status::default());
        let buses = Arc::new(Buses::new(&device)?);
        let options = ThreadOptions { mechanism, ..ThreadOptions::default() };
        let spawn = |vcpu| VcpuThread::spawn(vcpu, Arc::clone(&buses), options, |_, _| {});
        let vcpus = Vcpus::new(vcpus.into_iter().map(spawn).collect::<Result<_, _>>()?);
        let tid = |index| vcpus.perform(index, |_| thread_id());
        let threads = (0..cpus).map(tid).collect::<Result<_, _>>()?;
        Ok(Self { vcpus, threads, _memory: memory })
    }
}

impl Pausable for VmmVcpus {
    fn pause(&self) -> anyhow::Result<()> {
        Ok(self.vcpus.pause(LIMIT)?)
    }

    fn resume(&self) {
        self.vcpus.resume();
    }
}

impl Working for VmmVcpus {
    fn work(&self) -> anyhow::Result<Work> {
        let mut all = Work::default();
        for (counters, &tid) in self.vcpus.counters().iter().zip(&self.threads) {
            all.exits += counters.port_reads;
            all.cpu_time += cpu_time(tid).context("CPU time of a vCPU")?;
        }
        Ok(all)
    }
}
