//! Saving: `Vcpu` to `VcpuState`.

use kvm_bindings::{KVM_CAP_NESTED_STATE, KVM_CAP_SREGS2, KVM_CAP_XCRS, KVM_MAX_CPUID_ENTRIES, kvm_sregs2};
use vmm_core::IoctlError;
use vmm_sys_util::errno::Error;

use super::{CpuidEntry, StateError, StateVersion, VcpuState, Xcr, cpuid, msrs, registers};
use crate::{Vcpu, ioctl};

impl Vcpu {
    /// The state of this vCPU. Reading it changes nothing that the guest can see.
    ///
    /// The caller has completed the vCPU's pending access and keeps everything else of the VM still: see
    /// [`VcpuState`].
    ///
    /// # Errors
    /// An ioctl that fails; a VM without an in-kernel local APIC is one reason.
    pub fn save(&self) -> Result<VcpuState, StateError> {
        let fd = self.fd();
        // First of all: KVM takes a pending INIT or SIPI here, which changes registers and events.
        let mp_state = fd.get_mp_state().map_err(self.state_error("KVM_GET_MP_STATE"))?.mp_state;
        // Before CR2 and DR6: some kernels put the payload of a pending exception into them here.
        let events = fd.get_vcpu_events().map_err(self.state_error("KVM_GET_VCPU_EVENTS"))?;
        let cpuid = self.cpuid()?;
        let tsc_khz = fd.get_tsc_khz().map_err(self.state_error("KVM_GET_TSC_KHZ"))?;
        let regs = fd.get_regs().map_err(self.state_error("KVM_GET_REGS"))?;
        let sregs = self.all_sregs()?;
        // Works without XSAVE in the processor, too: the area then has what FXSAVE saves.
        let xsave = ioctl::xsave(fd, self.kvm()).map_err(self.state_error("KVM_GET_XSAVE2"))?;
        let xcrs = self.xcrs()?;
        let debug_regs = fd.get_debug_regs().map_err(self.state_error("KVM_GET_DEBUGREGS"))?;
        let indices = msrs::to_save(self.kvm().msr_indices().map_err(self.state_failure())?);
        let msrs = msrs::read(fd, &indices).map_err(self.state_error("KVM_GET_MSRS"))?;
        // After TSC_DEADLINE: a deadline that passes in between is then in the MSR, in the local APIC, or in both, which
        // is one interrupt. The other way round it could be in neither.
        let lapic = fd.get_lapic().map_err(self.state_error("KVM_GET_LAPIC"))?;
        let nested = self.nested(&cpuid)?;
        Ok(VcpuState {
            version: StateVersion::CURRENT,
            index: self.index(),
            cpuid,
            tsc_khz,
            regs,
            sregs,
            xsave,
            xcrs,
            debug_regs,
            lapic: lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect(),
            msrs,
            events,
            mp_state,
            nested,
        })
    }

    pub(super) fn cpuid(&self) -> Result<Vec<CpuidEntry>, StateError> {
        let table =
            self.fd().get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(self.state_error("KVM_GET_CPUID2"))?;
        Ok(table.as_slice().iter().copied().map(CpuidEntry::from).collect())
    }

    fn all_sregs(&self) -> Result<kvm_sregs2, StateError> {
        if self.kvm().check_extension(KVM_CAP_SREGS2) > 0 {
            return ioctl::sregs2(self.fd()).map_err(self.state_error("KVM_GET_SREGS2"));
        }
        let sregs = self.fd().get_sregs().map_err(self.state_error("KVM_GET_SREGS"))?;
        Ok(registers::from_sregs(&sregs))
    }

    fn xcrs(&self) -> Result<Vec<Xcr>, StateError> {
        if self.kvm().check_extension(KVM_CAP_XCRS) == 0 {
            return Ok(Vec::new());
        }
        let xcrs = self.fd().get_xcrs().map_err(self.state_error("KVM_GET_XCRS"))?;
        let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        Ok(used.map(|xcr| Xcr { index: xcr.xcr, value: xcr.value }).collect())
    }

    /// The nested state of a guest that can have one. A KVM that says it has such states and gives none (KVM-PVM)
    /// has no nested guest either.
    fn nested(&self, cpuid: &[CpuidEntry]) -> Result<Option<Vec<u8>>, StateError> {
        let limit = self.kvm().check_extension(KVM_CAP_NESTED_STATE);
        if limit == 0 || !cpuid::has_virtualization(cpuid) {
            return Ok(None);
        }
        match ioctl::nested_state(self.fd(), limit) {
            Ok(state) => Ok(Some(state)),
            Err(errno) if errno.errno() == libc::EINVAL => Ok(None),
            Err(errno) => Err(self.state_error("KVM_GET_NESTED_STATE")(errno)),
        }
    }

    pub(super) fn state_error(&self, ioctl: &'static str) -> impl FnOnce(Error) -> StateError {
        let failure = self.state_failure();
        move |errno| failure(IoctlError::of(ioctl)(errno))
    }

    pub(super) fn state_failure(&self) -> impl FnOnce(IoctlError) -> StateError {
        let index = self.index();
        move |source| StateError::Ioctl { index, source }
    }
}
