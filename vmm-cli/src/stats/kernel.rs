//! `KernelStats`: the kernel's statistics of a machine's VM and of its vCPUs, held open.

use vmm_core::Vm;
use vmm_core::stats::{Sample, StatsError, StatsFd};
use vmm_vcpu::{Vcpu, VcpuError};

/// One descriptor for the VM and one for each vCPU.
#[derive(Debug)]
pub(crate) struct KernelStats {
    vm: StatsFd,
    vcpus: Vec<StatsFd>,
}

/// What the kernel has counted.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) machine: Sample,
    /// By index of the vCPU.
    pub(super) vcpus: Vec<Sample>,
}

impl KernelStats {
    /// Opens the statistics of `vm`, to which those of its vCPUs are to be [added](Self::add).
    pub(crate) fn open(vm: &Vm) -> Result<Self, StatsError> {
        Ok(Self { vm: StatsFd::open(vm)?, vcpus: Vec::new() })
    }

    /// Opens the statistics of the next vCPU. To be called before its thread is started: a vCPU that runs would keep the
    /// caller waiting.
    pub(crate) fn add(&mut self, vcpu: &Vcpu) -> Result<(), VcpuError> {
        let mut stats = vcpu.stats()?;
        if let Some(first) = self.vcpus.first() {
            stats.share_schema(first);
        }
        self.vcpus.push(stats);
        Ok(())
    }

    /// Reads all of them, one after the other, while the vCPUs run or when they have ended.
    pub(super) fn sample(&self) -> Result<Samples, StatsError> {
        let vcpus = self.vcpus.iter().map(StatsFd::sample).collect::<Result<_, _>>()?;
        Ok(Samples { machine: self.vm.sample()?, vcpus })
    }
}
