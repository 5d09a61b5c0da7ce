//! `Kvm`: the open `/dev/kvm` and what it can do.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_BINARY_STATS_FD, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_HALT_POLL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_DISABLE_EXITS,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS,
};
use kvm_ioctls::{Cap, VmFd};

use crate::{DisabledExits, IoctlError};

/// What `KVM_CAP_X2APIC_API` must offer to be of use.
const X2APIC_FLAGS: i32 =
    (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).cast_signed();

/// Why `/dev/kvm` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmOpenError {
    /// The device node cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The device node.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The node is something else, or a KVM from before Linux 2.6.22.
    #[error("{path} answers with KVM API version {version}, not {KVM_API_VERSION}")]
    ApiVersion {
        /// The device node.
        path: PathBuf,
        /// What `KVM_GET_API_VERSION` returned.
        version: i32,
    },
    /// A capability without which no machine can be built is missing.
    #[error("this host's KVM lacks {0}")]
    MissingCapability(&'static str),
    /// Any ioctl that failed on the way.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
}

/// What this host's KVM offers of the things that are used if they are there.
///
/// Capabilities without which nothing works are not listed: [`Kvm::open`] refuses a host that lacks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Most vCPUs of one VM (`KVM_CAP_MAX_VCPUS`).
    pub max_vcpus: usize,
    /// `KVM_CAP_IOEVENTFD`: doorbells without an exit to user space.
    pub ioeventfd: bool,
    /// `KVM_CAP_IMMEDIATE_EXIT`: a byte on the run page makes `KVM_RUN` return.
    pub immediate_exit: bool,
    /// `KVM_CAP_TSC_DEADLINE_TIMER`: the local APIC has the TSC-deadline mode.
    pub tsc_deadline_timer: bool,
    /// `KVM_CAP_KVMCLOCK_CTRL`: a guest can be told that it was stopped.
    pub kvmclock_ctrl: bool,
    /// `KVM_CAP_IRQFD`: an eventfd signal raises an interrupt.
    pub irqfd: bool,
    /// `KVM_CAP_IRQFD_RESAMPLE`: level-triggered lines by eventfd.
    pub irqfd_resample: bool,
    /// Most routes of one VM (`KVM_CAP_IRQ_ROUTING`).
    pub irq_routes: u32,
    /// `KVM_CAP_SPLIT_IRQCHIP`: the I/O APIC can be in user space.
    pub split_irqchip: bool,
    /// `KVM_CAP_X2APIC_API` with both its flags: destinations of more than 8 bits.
    pub x2apic_destinations: bool,
    /// `KVM_CAP_BINARY_STATS_FD`: the kernel's own statistics of a VM and its vCPUs.
    pub binary_stats: bool,
    /// `KVM_CAP_X86_DISABLE_EXITS`: instructions that can be left to the processor.
    pub disable_exits: DisabledExits,
    /// `KVM_CAP_HALT_POLL`: a VM can have its own limit of halt polling.
    pub halt_poll: bool,
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: pages are cleared in parts; whether they can all be dirty at first.
    pub manual_dirty_log: Option<bool>,
    /// Most bytes of a dirty ring (`KVM_CAP_DIRTY_LOG_RING`); 0: there are none.
    pub dirty_ring: u32,
}

/// An open `/dev/kvm`. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Kvm {
    fd: Arc<kvm_ioctls::Kvm>,
    capabilities: Capabilities,
}

impl Kvm {
    /// Opens the device node `path`, checks the API version and reads the capabilities.
    ///
    /// # Errors
    /// Everything that makes this host unable to run a machine; nothing stays open.
    pub fn open(path: &Path) -> Result<Self, KvmOpenError> {
        let open_error = |source| KvmOpenError::Open { path: path.into(), source };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| open_error(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let fd = kvm_ioctls::Kvm::new_with_path(&name)
            .map_err(|errno| open_error(io::Error::from_raw_os_error(errno.errno())))?;
        let version = fd.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmOpenError::ApiVersion { path: path.into(), version });
        }
        for (cap, name) in [
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        ] {
            if !fd.check_extension(cap) {
                return Err(KvmOpenError::MissingCapability(name));
            }
        }
        let capabilities = Capabilities {
            max_vcpus: fd.get_max_vcpus(),
            ioeventfd: fd.check_extension(Cap::Ioeventfd),
            immediate_exit: fd.check_extension(Cap::ImmediateExit),
            tsc_deadline_timer: fd.check_extension(Cap::TscDeadlineTimer),
            kvmclock_ctrl: fd.check_extension(Cap::KvmclockCtrl),
            irqfd: fd.check_extension(Cap::Irqfd),
            irqfd_resample: fd.check_extension(Cap::IrqfdResample),
            irq_routes: u32::try_from(fd.check_extension_int(Cap::IrqRouting)).unwrap_or(0),
            split_irqchip: fd.check_extension(Cap::SplitIrqchip),
            x2apic_destinations: fd.check_extension_int(Cap::X2ApicApi) & X2APIC_FLAGS == X2APIC_FLAGS,
            binary_stats: value(&fd, KVM_CAP_BINARY_STATS_FD) != 0,
            disable_exits: DisabledExits::from_mask(value(&fd, KVM_CAP_X86_DISABLE_EXITS)),
            halt_poll: value(&fd, KVM_CAP_HALT_POLL) != 0,
            manual_dirty_log: manual_dirty_log(&fd),
            dirty_ring: dirty_ring(&fd),
        };
        Ok(Self { fd: Arc::new(fd), capabilities })
    }

    /// What the host offers.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What `KVM_CHECK_EXTENSION` says about the capability with this number, one of the constants `KVM_CAP_*`: 0 if it
    /// is missing, otherwise 1 or a value that the capability defines.
    ///
    /// For reports, and for the sizes that a capability has as its value; what else this project uses is in
    /// [`Capabilities`].
    #[must_use]
    pub fn check_extension(&self, capability: u32) -> u32 {
        value(&self.fd, capability)
    }

    /// The CPUID leaves that this host's KVM can give to a guest (`KVM_GET_SUPPORTED_CPUID`).
    pub fn supported_cpuid(&self) -> Result<CpuId, IoctlError> {
        self.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(IoctlError::of("KVM_GET_SUPPORTED_CPUID"))
    }

    /// The MSRs that this host's KVM says are to be saved with a vCPU (`KVM_GET_MSR_INDEX_LIST`).
    pub fn msr_indices(&self) -> Result<Vec<u32>, IoctlError> {
        let list = self.fd.get_msr_index_list().map_err(IoctlError::of("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Bytes of a vCPU's run page mapping (`KVM_GET_VCPU_MMAP_SIZE`).
    pub fn run_page_size(&self) -> Result<usize, IoctlError> {
        self.fd.get_vcpu_mmap_size().map_err(IoctlError::of("KVM_GET_VCPU_MMAP_SIZE"))
    }

    /// Makes the VM descriptor. A signal can interrupt this ioctl; it is then done again.
    pub(crate) fn create_vm(&self) -> Result<VmFd, IoctlError> {
        loop {
            match self.fd.create_vm() {
                Err(errno) if errno.errno() == libc::EINTR => {}
                result => return result.map_err(IoctlError::of("KVM_CREATE_VM")),
            }
        }
    }
}

fn manual_dirty_log(fd: &kvm_ioctls::Kvm) -> Option<bool> {
    let flags = value(fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    (flags != 0).then_some(flags & KVM_DIRTY_LOG_INITIALLY_SET != 0)
}

/// The second capability is for processors that reorder stores; those of an x86 have both or, before Linux 6.1, the first.
fn dirty_ring(fd: &kvm_ioctls::Kvm) -> u32 {
    value(fd, KVM_CAP_DIRTY_LOG_RING).max(value(fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
}

/// What `KVM_CHECK_EXTENSION` says about a capability; 0 if it is missing.
fn value(fd: &kvm_ioctls::Kvm, capability: u32) -> u32 {
    u32::try_from(fd.check_extension_raw(capability.into())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_is_named() {
        let error = Kvm::open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(
            matches!(&error, KvmOpenError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
        );
        assert!(error.to_string().contains("/nonexistent/kvm"));
    }

    #[test]
    fn a_node_that_is_not_kvm_is_refused() {
        let error = Kvm::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, KvmOpenError::ApiVersion { .. }), "{error}");
    }
}
