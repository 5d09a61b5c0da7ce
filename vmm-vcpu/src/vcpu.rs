//! `Vcpu`: a vCPU of KVM, with its own mapping of the run page.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vmm_core::seam::DirtyLog;
use vmm_core::stats::{StatsError, StatsFd};
use vmm_core::{DirtyMechanism, DirtyRings, IoctlError, Kvm, Vm};

use crate::dirty_ring::RingPages;
use crate::ioctl;
use crate::run_loop::{RunVcpu, coarse_now};
use crate::run_page::{ImmediateExit, RunPage};
use crate::x86_64::{BootRegs, boot_msrs, has_mwait};

/// Why a vCPU cannot be made or set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An ioctl failed.
    #[error("vCPU {index}")]
    Ioctl {
        /// The vCPU.
        index: u32,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
    /// The run page cannot be mapped.
    #[error("cannot map the run page of vCPU {index}")]
    RunPage {
        /// The vCPU.
        index: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The dirty ring cannot be mapped.
    #[error("cannot map the dirty ring of vCPU {index}")]
    DirtyRing {
        /// The vCPU.
        index: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There are no statistics.
    #[error("the statistics of vCPU {index}")]
    Stats {
        /// The vCPU.
        index: u32,
        /// What failed.
        #[source]
        source: StatsError,
    },
    /// The host's KVM does not let the guest have this MSR.
    #[error("vCPU {index}: MSR {msr:#x} is refused")]
    Msr {
        /// The vCPU.
        index: u32,
        /// The MSR.
        msr: u32,
    },
}

/// A vCPU of KVM. While it is in `KVM_RUN` no other ioctl can be issued on it, hence `&mut self`.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    page: RunPage,
    index: u32,
    kvm: Kvm,
    /// Where its dirty ring is, and as which, if it has one.
    ring: Option<(Arc<DirtyRings>, usize)>,
}

impl Vcpu {
    /// Makes vCPU `index` of `vm`, in the state after reset; the vCPU with index 0 is the boot processor, the others
    /// wait for INIT and SIPI. Its dirty ring, if it has one, is handed over to `vm`.
    pub fn create(kvm: &Kvm, vm: &Vm, index: u32) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(index).map_err(|source| VcpuError::Ioctl { index, source })?;
        let length = kvm.run_page_size().map_err(|source| VcpuError::Ioctl { index, source })?;
        let page = RunPage::map(&fd, length).map_err(|source| VcpuError::RunPage { index, source })?;
        let ring = match vm.dirty_mechanism() {
            DirtyMechanism::Ring { bytes } => {
                let pages = RingPages::map(&fd, bytes as usize);
                let pages = pages.map_err(|source| VcpuError::DirtyRing { index, source })?;
                let rings = vm.dirty_rings();
                Some((Arc::clone(rings), rings.add(Box::new(pages))))
            }
            _ => None,
        };
        Ok(Self { fd, page, index, kvm: kvm.clone(), ring })
    }

    /// The number of this vCPU, which is also its APIC id.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Gives the vCPU its CPUID table and MSRs; `boot` also gives it the registers with which a boot protocol enters the
    /// guest, and makes it one that runs without INIT and SIPI.
    ///
    /// CPUID comes first: it decides which MSRs exist. The local APIC stays as KVM resets it: LINT0 of the boot
    /// processor takes the PIC.
    pub fn configure(&self, cpuid: &CpuId, boot: Option<&BootRegs>) -> Result<(), VcpuError> {
        self.fd.set_cpuid2(cpuid).map_err(self.failed("KVM_SET_CPUID2"))?;
        let msrs = boot_msrs(has_mwait(cpuid));
        let set = Msrs::from_entries(&msrs)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
            .and_then(|list| self.fd.set_msrs(&list))
            .map_err(self.failed("KVM_SET_MSRS"))?;
        if let Some(refused) = msrs.get(set) {
            return Err(VcpuError::Msr { index: self.index, msr: refused.index });
        }
        boot.map_or(Ok(()), |boot| self.start_as(boot))
    }

    /// Gives a vCPU in the state after reset the registers with which a boot protocol enters the guest, and makes it one that
    /// runs without INIT and SIPI.
    pub fn start_as(&self, boot: &BootRegs) -> Result<(), VcpuError> {
        let mut sregs = self.sregs()?;
        boot.apply_to(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(self.failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(&boot.regs()).map_err(self.failed("KVM_SET_REGS"))?;
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runnable).map_err(self.failed("KVM_SET_MP_STATE"))
    }

    /// The general registers, `rip` and `rflags`.
    pub fn regs(&self) -> Result<kvm_regs, VcpuError> {
        self.fd.get_regs().map_err(self.failed("KVM_GET_REGS"))
    }

    /// The segment and control registers.
    pub fn sregs(&self) -> Result<kvm_sregs, VcpuError> {
        self.fd.get_sregs().map_err(self.failed("KVM_GET_SREGS"))
    }

    /// The guest-physical address behind the guest-virtual `address` in the vCPU's present paging mode, if any.
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<u64> {
        let translation = self.fd.translate_gva(address).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    /// Opens what the kernel counts about this vCPU. Needs `KVM_CAP_BINARY_STATS_FD`. The result is independent of this
    /// value: the statistics can be read while the vCPU runs and after it has ended.
    pub fn stats(&self) -> Result<StatsFd, VcpuError> {
        let failed = |source| VcpuError::Stats { index: self.index, source };
        let fd = ioctl::stats_fd(&self.fd)
            .map_err(|source| failed(IoctlError { ioctl: "KVM_GET_STATS_FD", source }.into()))?;
        StatsFd::from_fd(fd).map_err(failed)
    }

    /// The byte that kickers set.
    #[must_use]
    pub fn immediate_exit(&self) -> ImmediateExit {
        self.page.immediate_exit()
    }

    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Sets the signals that are blocked inside `KVM_RUN`, signal n at bit n − 1 (`KVM_SET_SIGNAL_MASK`).
    pub(crate) fn set_signal_mask(&self, blocked: u64) -> io::Result<()> {
        ioctl::set_signal_mask(&self.fd, blocked)
    }

    fn failed(&self, ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
        let index = self.index;
        move |errno| VcpuError::Ioctl { index, source: IoctlError::of(ioctl)(errno) }
    }
}

impl RunVcpu for Vcpu {
    #[inline]
    #[expect(unsafe_code, reason = "a system call")]
    fn run(&mut self) -> io::Result<()> {
        // kvm-ioctls' `run` decodes into a type of its own and hides `immediate_exit`; this is the bare ioctl.
        const KVM_RUN: libc::c_ulong = 0xae80;
        // SAFETY:
        // - the descriptor is a vCPU's and stays open as long as `self`;
        // - the ioctl has no argument; what it writes is the run page, which is ours by `&mut self`, and guest RAM.
        let status = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN, 0) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[inline]
    fn page(&mut self) -> &mut RunPage {
        &mut self.page
    }

    /// Tells the guest by `KVM_KVMCLOCK_CTRL`, so that its soft-lockup watchdog does not take the host's pause for its own
    /// fault.
    fn tell_stopped(&mut self) {
        if self.kvm.capabilities().kvmclock_ctrl
            && let Err(errno) = self.fd.kvmclock_ctrl()
            // The guest has no kvmclock, or not yet.
            && errno.errno() != libc::EINVAL
        {
            tracing::warn!(vcpu = self.index, %errno, "KVM_KVMCLOCK_CTRL failed");
        }
    }

    fn dirty_ring_full(&mut self) -> io::Result<()> {
        match &self.ring {
            Some((rings, number)) => rings.full(*number).map_err(io::Error::other),
            None => Err(io::Error::other("KVM reports a dirty ring of a vCPU without one")),
        }
    }

    fn reap_dirty_ring(&mut self) -> io::Result<()> {
        match &self.ring {
            Some((rings, number)) => rings.reap(*number).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    #[inline]
    fn now(&self) -> Duration {
        coarse_now()
    }
}
