//! `Processors`: what the vCPUs of a machine get of the host's CPUs. `docs/dedicated.md` is the user's page.

pub(crate) mod halt_probe;
mod host_cpus;

use anyhow::{Context, anyhow};
use halt_probe::Halt;
use host_cpus::HostCpus;
use vmm_core::{Capabilities, DisabledExits, IoctlError, Kvm, Vm};
use vmm_vcpu::affinity::{self, CpuSet, KeptOff};
use vmm_vcpu::x86_64::CpuidTemplate;
use vmm_vcpu::{Placement, Scheduler};

use crate::config::{CpuConfig, CpuList, scheduler};
use crate::outcome::Failure;

/// What the section `[cpu]` comes to on this host. While it lives, the other threads of this process are kept off
/// dedicated CPUs.
#[derive(Debug, Default)]
pub(crate) struct Processors {
    placements: Vec<Placement>,
    exits: DisabledExits,
    halt_poll_ns: Option<u32>,
    realtime_hint: bool,
    _others: Option<KeptOff>,
}

impl Processors {
    /// Checks what `config` asks of the host, before anything is built. Threads that are started from here on are kept off
    /// dedicated CPUs.
    ///
    /// # Errors
    /// What this host does not have or allow, and what to do.
    pub(crate) fn prepare(kvm: &Kvm, config: &CpuConfig) -> Result<Self, Failure> {
        let exits = exits(kvm.capabilities(), config).map_err(Failure::host_cannot)?;
        let halt_poll_ns = halt_poll(kvm.capabilities(), config).map_err(Failure::host_cannot)?;
        if let Some(scheduler) = config.scheduler {
            try_out(scheduler).map_err(Failure::host_cannot)?;
        }
        let lists = config.cpus_of_each();
        let dedicated = lists.as_deref().map_or(Ok(CpuSet::default()), |lists| check_cpus(lists, config))?;
        warn_about(config, exits);
        if exits.contains(DisabledExits::HLT) {
            probe(kvm)?;
        }
        let others = (!dedicated.is_empty()).then(|| keep_off(&dedicated)).transpose()?;
        let cpus = lists.iter().flatten().map(|list| Some(list.to_set())).chain(std::iter::repeat(None));
        let placements = cpus
            .take(config.count.into())
            .map(|cpus| Placement { cpus, scheduler: config.scheduler })
            .collect();
        Ok(Self { placements, exits, halt_poll_ns, realtime_hint: config.realtime_hint, _others: others })
    }

    /// Gives `vm` its settings. To be called before its first vCPU is made.
    pub(crate) fn set_up(&self, vm: &Vm) -> Result<(), IoctlError> {
        if !self.exits.is_empty() {
            vm.disable_exits(self.exits)?;
        }
        self.halt_poll_ns.map_or(Ok(()), |time| vm.set_halt_poll(time))
    }

    /// Tells the guest what follows for it.
    pub(crate) fn describe(&self, cpuid: &mut CpuidTemplate) {
        cpuid.leave_to_processor(self.exits);
        if self.realtime_hint {
            cpuid.hint_realtime();
        }
    }

    /// Where the thread of vCPU `index` runs.
    pub(crate) fn placement(&self, index: u32) -> Placement {
        self.placements.get(index as usize).copied().unwrap_or_default()
    }
}

/// The exits to disable: those that were named must all be offered, of the defaults those that are.
fn exits(capabilities: &Capabilities, config: &CpuConfig) -> anyhow::Result<DisabledExits> {
    let (wanted, offered) = (config.exits(), capabilities.disable_exits);
    let missing = wanted.without(offered);
    if config.disable_exits.is_some() && !missing.is_empty() {
        return Err(anyhow!(
            "cpu.disable_exits (--disable-exits): this host's KVM does not offer {missing}, but {offered} \
             (KVM_CAP_X86_DISABLE_EXITS)"
        ));
    }
    if !missing.is_empty() {
        tracing::warn!(%missing, "this host's KVM cannot leave these exits out (KVM_CAP_X86_DISABLE_EXITS)");
    }
    Ok(wanted.and(offered))
}

/// The limit of halt polling: one that was named must be possible, the default need not.
fn halt_poll(capabilities: &Capabilities, config: &CpuConfig) -> anyhow::Result<Option<u32>> {
    match (capabilities.halt_poll, config.halt_poll_ns) {
        (true, _) => Ok(config.halt_poll()),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(anyhow!(
            "cpu.halt_poll_ns (--halt-poll-ns): this host's KVM has one limit for all machines (no KVM_CAP_HALT_POLL, \
             Linux 5.8): set it in /sys/module/kvm/parameters/halt_poll_ns"
        )),
    }
}

/// Whether the threads of vCPUs may have this policy; what to do, if not.
fn try_out(scheduler: Scheduler) -> anyhow::Result<()> {
    scheduler.try_out().with_context(|| {
        let written = scheduler::render(scheduler);
        format!(
            "cpu.scheduler (--scheduler) = {written} is not permitted: raise this process's limit of realtime priority \
             (`ulimit -r 99`, \"rtprio\" in limits.conf(5)) or give it CAP_SYS_NICE; in a cgroup of version 1, \
             cpu.rt_runtime_us must not be 0"
        )
    })
}

fn keep_off(cpus: &CpuSet) -> Result<KeptOff, Failure> {
    affinity::keep_off(cpus).context("cpu.dedicated (--dedicated)").map_err(Failure::host_cannot)
}

/// Checks the CPUs of each vCPU against the host's; returns those that are dedicated.
fn check_cpus(lists: &[CpuList], config: &CpuConfig) -> Result<CpuSet, Failure> {
    let host = HostCpus::look().context("the host's CPUs").map_err(Failure::host_cannot)?;
    host.check(lists).map_err(Failure::host_cannot)?;
    if !config.dedicated {
        return Ok(CpuSet::default());
    }
    let dedicated = lists.iter().flat_map(CpuList::iter).collect();
    host.check_rest(&dedicated).map_err(Failure::host_cannot)?;
    if config.realtime_hint
        && let Some(cpus) = CpuList::new(host.not_isolated(&dedicated).iter())
    {
        tracing::warn!(
            %cpus,
            "cpu.realtime_hint: the guest is told that its vCPUs are never preempted, but these CPUs are not isolated"
        );
    }
    Ok(dedicated)
}

/// Says what works against what was asked for, where CPUs are not dedicated.
fn warn_about(config: &CpuConfig, exits: DisabledExits) {
    if config.dedicated {
        return;
    }
    if exits.contains(DisabledExits::HLT) {
        tracing::warn!(
            "HLT exits are disabled, but CPUs are not dedicated: a guest that idles takes all of them"
        );
    }
    if config.scheduler.is_some_and(Scheduler::is_realtime) {
        tracing::warn!(
            "vCPUs are realtime, but CPUs are not dedicated: the monitor's own threads may have to wait"
        );
    }
    if config.realtime_hint {
        tracing::warn!(
            "cpu.realtime_hint: the guest is told that its vCPUs are never preempted, but CPUs are not dedicated"
        );
    }
}

/// Tries out whether a vCPU that halts stays in the guest, and says so if not.
fn probe(kvm: &Kvm) -> Result<(), Failure> {
    match halt_probe::probe(kvm).context("the probe of HLT exits").map_err(Failure::host_cannot)? {
        Halt::StaysInGuest => tracing::debug!("HLT stays in the guest"),
        Halt::Exits => tracing::warn!(
            "KVM has accepted that HLT exits are disabled, but it has no effect: a vCPU that halts still exits"
        ),
        Halt::Unknown => {
            tracing::warn!(
                "KVM has accepted that HLT exits are disabled; whether it has an effect is not known"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABILITIES: Capabilities = Capabilities {
        max_vcpus: 1,
        ioeventfd: true,
        immediate_exit: true,
        tsc_deadline_timer: true,
        kvmclock_ctrl: true,
        binary_stats: true,
        disable_exits: DisabledExits::PAUSE,
        halt_poll: false,
        manual_dirty_log: None,
        dirty_ring: 0,
        irqfd: true,
        irqfd_resample: true,
        irq_routes: 4096,
        split_irqchip: false,
        x2apic_destinations: false,
    };

    #[test]
    fn a_named_exit_that_the_host_lacks_is_refused_and_a_default_one_left_out() {
        let dedicated = CpuConfig { dedicated: true, ..Default::default() };
        assert_eq!(exits(&CAPABILITIES, &dedicated).unwrap(), DisabledExits::PAUSE);
        let named = CpuConfig { disable_exits: Some(DisabledExits::HLT | DisabledExits::PAUSE), ..dedicated };
        let error = exits(&CAPABILITIES, &named).unwrap_err().to_string();
        assert!(error.contains("does not offer hlt, but pause"), "{error}");
        assert_eq!(exits(&CAPABILITIES, &CpuConfig::default()).unwrap(), DisabledExits::NONE);
    }

    #[test]
    fn a_named_limit_of_polling_that_the_host_cannot_have_is_refused_and_a_default_one_left_out() {
        let dedicated = CpuConfig { dedicated: true, ..Default::default() };
        assert_eq!(halt_poll(&CAPABILITIES, &dedicated).unwrap(), None);
        assert_eq!(
            halt_poll(&Capabilities { halt_poll: true, ..CAPABILITIES }, &dedicated).unwrap(),
            Some(0)
        );
        let named = CpuConfig { halt_poll_ns: Some(1), ..dedicated };
        let error = halt_poll(&CAPABILITIES, &named).unwrap_err().to_string();
        assert!(error.contains("/sys/module/kvm/parameters/halt_poll_ns"), "{error}");
    }

    #[test]
    fn a_vcpu_without_a_list_runs_where_the_monitor_does() {
        assert_eq!(Processors::default().placement(3), Placement::default());
    }
}
