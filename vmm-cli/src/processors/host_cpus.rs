//! `HostCpus`: which CPUs the host has, and which of them this process may have.

use std::fs;
use std::io;

use thiserror::Error;
use vmm_vcpu::affinity::{self, CpuSet};

use crate::config::CpuList;

const ONLINE: &str = "/sys/devices/system/cpu/online";
const ISOLATED: &str = "/sys/devices/system/cpu/isolated";

/// Why vCPUs cannot have the CPUs that were named.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum HostCpuError {
    #[error("cpu.affinity (--affinity): host CPU {cpu} is not online; those are {online}")]
    Offline { cpu: usize, online: CpuList },
    #[error(
        "cpu.affinity (--affinity): this process may not run on host CPU {cpu}, but on {permitted}: its cpuset decides \
         (cpuset.cpus of its cgroup)"
    )]
    NotPermitted { cpu: usize, permitted: CpuList },
    #[error(
        "cpu.dedicated (--dedicated): no host CPU is left for the other threads of the monitor, which may run on {own}; \
         dedicate fewer, or let it have more (`taskset -c {more} vmm-cli …`)"
    )]
    NoneLeft { own: CpuList, more: CpuList },
    #[error(
        "cpu.dedicated (--dedicated): no host CPU is left for the other threads of the monitor, which may run on {own}, as \
         everything of this process; dedicate fewer, or use a host with more"
    )]
    NoneAnywhere { own: CpuList },
}

/// The host's CPUs.
#[derive(Debug)]
pub(super) struct HostCpus {
    /// As the host says; what is permitted, where it cannot be asked.
    online: CpuSet,
    /// What the kernel lets a thread of this process have.
    permitted: CpuSet,
    /// What the calling thread has, and those that it starts.
    own: CpuSet,
    isolated: CpuSet,
}

impl HostCpus {
    /// Looks at the host, and at the calling thread.
    pub(super) fn look() -> io::Result<Self> {
        let permitted = affinity::permitted()?;
        Ok(Self {
            online: list(ONLINE).unwrap_or(permitted),
            permitted,
            own: affinity::current()?,
            isolated: list(ISOLATED).unwrap_or_default(),
        })
    }

    /// Whether every CPU of `lists` can be had.
    pub(super) fn check(&self, lists: &[CpuList]) -> Result<(), HostCpuError> {
        for cpu in lists.iter().flat_map(CpuList::iter) {
            if !self.online.contains(cpu)
                && let Some(online) = CpuList::new(self.online.iter())
            {
                return Err(HostCpuError::Offline { cpu, online });
            }
            if !self.permitted.contains(cpu)
                && let Some(permitted) = CpuList::new(self.permitted.iter())
            {
                return Err(HostCpuError::NotPermitted { cpu, permitted });
            }
        }
        Ok(())
    }

    /// Whether `dedicated` leaves a CPU for the threads that are not vCPUs.
    pub(super) fn check_rest(&self, dedicated: &CpuSet) -> Result<(), HostCpuError> {
        let Some(own) = CpuList::new(self.own.iter()).filter(|_| self.own.without(dedicated).is_empty())
        else {
            return Ok(());
        };
        // Isolated ones are for vCPUs.
        let free = self.permitted.without(dedicated);
        let better = free.without(&self.isolated);
        Err(match CpuList::new(if better.is_empty() { free.iter() } else { better.iter() }) {
            Some(more) => HostCpuError::NoneLeft { own, more },
            None => HostCpuError::NoneAnywhere { own },
        })
    }

    /// Those of `cpus` on which the scheduler puts other work.
    pub(super) fn not_isolated(&self, cpus: &CpuSet) -> CpuSet {
        cpus.without(&self.isolated)
    }
}

/// The list of CPUs in a file; nothing where there is none.
fn list(path: &str) -> Option<CpuSet> {
    let text = fs::read_to_string(path).ok()?;
    let list: CpuList = text.trim().parse().ok()?;
    Some(list.to_set())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &str) -> CpuSet {
        list.parse::<CpuList>().map_or_else(|_| CpuSet::default(), |list| list.to_set())
    }

    fn host(online: &str, permitted: &str, own: &str, isolated: &str) -> HostCpus {
        HostCpus { online: set(online), permitted: set(permitted), own: set(own), isolated: set(isolated) }
    }

    fn refusal(host: &HostCpus, list: &str) -> String {
        host.check(&[list.parse().unwrap()]).unwrap_err().to_string()
    }

    #[test]
    fn a_cpu_that_is_not_there_or_not_permitted_is_named_with_those_that_are() {
        let host = host("0-3,6", "0-3", "0-1", "");
        host.check(&["3".parse().unwrap(), "0-2".parse().unwrap()]).unwrap();
        let error = refusal(&host, "2-4");
        assert!(error.ends_with("host CPU 4 is not online; those are 0-3,6"), "{error}");
        let error = refusal(&host, "3,6");
        assert!(error.contains("may not run on host CPU 6, but on 0-3: its cpuset"), "{error}");
    }

    #[test]
    fn an_isolated_cpu_that_nobody_is_started_with_can_be_had() {
        host("0-3", "0-3", "0-1", "2-3").check(&["2-3".parse().unwrap()]).unwrap();
    }

    #[test]
    fn the_other_threads_keep_a_cpu_or_the_refusal_says_where_there_is_one() {
        let isolated = host("0-3", "0-3", "0-1", "2-3");
        isolated.check_rest(&set("2-3")).unwrap();
        isolated.check_rest(&set("1-3")).unwrap();
        isolated.check_rest(&CpuSet::default()).unwrap();
        let confined = host("0-3", "0-3", "2", "2-3");
        let error = confined.check_rest(&set("2")).unwrap_err().to_string();
        assert!(
            error.contains("which may run on 2; ") && error.contains("`taskset -c 0-1 vmm-cli"),
            "{error}"
        );
        let single = host("0", "0", "0", "");
        let error = single.check_rest(&set("0")).unwrap_err().to_string();
        assert!(error.contains("or use a host with more"), "{error}");
    }

    #[test]
    fn what_is_not_isolated_is_told() {
        let host = host("0-3", "0-3", "0-3", "2-3");
        assert_eq!(host.not_isolated(&set("1-2")), set("1"));
        assert!(host.not_isolated(&set("2-3")).is_empty());
    }
}
