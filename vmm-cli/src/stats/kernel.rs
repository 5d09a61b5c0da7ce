//! `KernelStats`: the kernel's statistics of a machine's VM and of its vCPUs, held open through all of its lives.

use std::sync::Arc;

use anyhow::Context;
use vmm_core::Vm;
use vmm_core::stats::{Sample, StatsError, StatsFd};
use vmm_vcpu::Vcpu;

/// What the kernel counts of one life of a machine.
#[derive(Debug)]
pub(crate) struct KernelStats {
    files: Arc<StatsFiles>,
    /// What it had counted before that life.
    before: Option<Samples>,
}

/// One descriptor for the VM and one for each vCPU.
#[derive(Debug)]
pub(crate) struct StatsFiles {
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

impl StatsFiles {
    /// Opens the statistics of `vm` and of its `vcpus`, whose threads have yet to start: a vCPU that runs would keep the
    /// caller waiting.
    pub(crate) fn open(vm: &Vm, vcpus: &[Vcpu]) -> Result<Self, anyhow::Error> {
        let mut opened: Vec<StatsFd> = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            let mut stats = vcpu.stats()?;
            if let Some(first) = opened.first() {
                stats.share_schema(first);
            }
            opened.push(stats);
        }
        let vm = StatsFd::open(vm).context("the statistics of the VM")?;
        Ok(Self { vm, vcpus: opened })
    }

    /// Reads all of them, one after the other, while the vCPUs run or when they have ended.
    fn sample(&self) -> Result<Samples, StatsError> {
        let vcpus = self.vcpus.iter().map(StatsFd::sample).collect::<Result<_, _>>()?;
        Ok(Samples { machine: self.vm.sample()?, vcpus })
    }
}

impl KernelStats {
    /// Those of the first life.
    pub(crate) fn new(files: &Arc<StatsFiles>) -> Self {
        Self { files: Arc::clone(files), before: None }
    }

    /// Those of a life that begins now.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn of_next_life(files: &Arc<StatsFiles>) -> Result<Self, StatsError> {
        Ok(Self { files: Arc::clone(files), before: Some(files.sample()?) })
    }

    /// What was counted in this life so far.
    pub(super) fn sample(&self) -> Result<Samples, StatsError> {
        let Samples { machine, vcpus } = self.files.sample()?;
        let Some(before) = &self.before else { return Ok(Samples { machine, vcpus }) };
        let vcpus = vcpus.into_iter().zip(&before.vcpus).map(|(now, before)| now.since(before)).collect();
        Ok(Samples { machine: machine.since(&before.machine), vcpus })
    }
}
