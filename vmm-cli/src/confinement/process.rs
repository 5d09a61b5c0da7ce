//! What holds for the whole process: no more privileges than it was started with, no core file with the guest's secrets, and limits in the
//! place of the privileges that its threads give up.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, clear_ambient_capability_set, set_no_new_privs};
use vmm_devices::virtio::vsock::MOST_CONNECTIONS;

use super::rights;
use crate::config::VmConfig;

/// Highest priority of a realtime policy.
const HIGHEST: u64 = 99;

/// Descriptors that queues, threads and clients of consoles come to have.
const OWN: u64 = 4096;
/// Those of the clients of the control socket, each with as many as it may hand over.
const CLIENTS: u64 = 16 * 65;
/// Those of devices that are added, each in one of 32 places, with up to 64 pairs of queues.
const PLUGGED: u64 = 32 * 512;

/// Settles it, for the calling thread and those that it starts.
///
/// # Errors
/// The kernel's.
pub(super) fn settle(config: &VmConfig) -> nix::Result<()> {
    // It looks where the kernel's clock is, which no thread could do later.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    raise_limits(config);
    // Without CAP_SETPCAP it may not, and nothing is executed from which it could gain anything.
    let _ = rights::empty_bounding_set();
    // Linux before 4.3 has none.
    let _ = clear_ambient_capability_set();
    set_no_new_privs(true).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// What the machine may need while it runs is then no matter of privileges: memory that is plugged is locked, and the vCPUs of another life
/// take their policy again. Who may not raise a limit has it as it is, and no privilege that would be missed.
fn raise_limits(config: &VmConfig) {
    let Ok(held) = capabilities(None) else { return };
    if config.memory.lock && held.effective.contains(CapabilitySet::IPC_LOCK) {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    }
    let is_realtime = config.cpu.scheduler.is_some_and(vmm_vcpu::Scheduler::is_realtime);
    if is_realtime && held.effective.contains(CapabilitySet::SYS_NICE) {
        let _ = setrlimit(Resource::RLIMIT_RTPRIO, HIGHEST, HIGHEST);
    }
}

/// Lowers the limit of descriptors to what the machine of `config` can come to have beside those that are open.
pub(super) fn limit_descriptors(config: &VmConfig) {
    let controlled = config.control.socket.is_some();
    let streams = if config.vsock.has_device() { MOST_CONNECTIONS } else { 0 };
    let (clients, plugged) = if controlled { (CLIENTS, PLUGGED) } else { (0, 0) };
    // The next descriptor has the lowest free number.
    let Ok(next) = EventFd::from_flags(EfdFlags::EFD_CLOEXEC) else { return };
    let next = u64::try_from(next.as_fd().as_raw_fd()).unwrap_or(0);
    let most = next + OWN + clients + plugged + streams as u64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // It cannot fail: no limit is raised.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.min(most), hard.min(most));
    }
}
