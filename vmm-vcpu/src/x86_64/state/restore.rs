//! Restoring: `VcpuState` to `Vcpu`, in the order that KVM needs.

use kvm_bindings::{
    CpuId, KVM_CAP_NESTED_STATE, KVM_CAP_SREGS2, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_lapic_state,
    kvm_mp_state, kvm_xcrs,
};
use vmm_core::IoctlError;

use super::xsave::fitted;
use super::{CpuidEntry, StateError, StateVersion, VcpuState, Xcr, cpuid, msrs, registers};
use crate::{Vcpu, ioctl};

impl Vcpu {
    /// Gives this vCPU, which was made and not configured, the state of another one with the same index.
    ///
    /// The VM has its memory and its interrupt controllers: see [`VcpuState`].
    ///
    /// # Errors
    /// A state of another version or vCPU, or of a host whose processor has what this one lacks: refused before a register
    /// is set. Whatever KVM refuses, by ioctl or MSR: the vCPU is to be dropped then.
    pub fn restore(&self, state: &VcpuState) -> Result<(), StateError> {
        let prepared = self.prepare(state)?;
        let fd = self.fd();
        // Before everything: it decides which bits of CR4, EFER and XCR0 and which MSRs the vCPU can have.
        fd.set_cpuid2(&prepared.cpuid).map_err(self.state_error("KVM_SET_CPUID2"))?;
        // Before the TSC and its deadline, which KVM converts with it.
        self.set_tsc_khz(state.tsc_khz)?;
        self.set_state(state, &prepared)?;
        // Last: KVM checks it against EFER.SVME or CR4.VMXE, the feature MSRs, and whether the vCPU is in SMM; entering
        // or leaving SMM discards it.
        self.set_nested(state)
    }

    /// Gives the vCPU all but its CPUID table, the frequency of its TSC, and its nested state.
    pub(super) fn set_state(&self, state: &VcpuState, prepared: &Prepared) -> Result<(), StateError> {
        let fd = self.fd();
        // Before the local APIC: its base and mode decide what its page means. Before the MP state: a boot processor at
        // the reset vector is set running. Before the events, because with KVM_SET_SREGS no interrupt is on its way.
        self.set_all_sregs(state)?;
        // Before the events: it discards a pending exception.
        fd.set_regs(&state.regs).map_err(self.state_error("KVM_SET_REGS"))?;
        ioctl::set_xsave(fd, self.kvm(), &prepared.xsave).map_err(self.state_error("KVM_SET_XSAVE"))?;
        if let Some(xcrs) = &prepared.xcrs {
            fd.set_xcrs(xcrs).map_err(self.state_error("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&state.debug_regs).map_err(self.state_error("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: KVM ignores TSC_DEADLINE unless the timer is in that mode.
        fd.set_lapic(&prepared.lapic).map_err(self.state_error("KVM_SET_LAPIC"))?;
        self.set_msrs(state)?;
        fd.set_vcpu_events(&state.events).map_err(self.state_error("KVM_SET_VCPU_EVENTS"))?;
        // After the events: in SMM the states around INIT are not possible.
        let mp_state = kvm_mp_state { mp_state: state.mp_state };
        fd.set_mp_state(mp_state).map_err(self.state_error("KVM_SET_MP_STATE"))
    }

    pub(super) fn set_nested(&self, state: &VcpuState) -> Result<(), StateError> {
        let Some(nested) = &state.nested else { return Ok(()) };
        ioctl::set_nested_state(self.fd(), nested).map_err(self.state_error("KVM_SET_NESTED_STATE"))
    }

    /// Checks all that can be checked beforehand, and brings it into the kernel's form.
    fn prepare(&self, state: &VcpuState) -> Result<Prepared, StateError> {
        let index = self.index();
        if !state.version.is_known() {
            let supported = StateVersion::CURRENT;
            return Err(StateError::Version { found: state.version, supported });
        }
        if state.index != index {
            return Err(StateError::Index { index, saved: state.index });
        }
        self.check_cpuid(&state.cpuid)?;
        if state.nested.is_some() && self.kvm().check_extension(KVM_CAP_NESTED_STATE) == 0 {
            return Err(StateError::Nested { index });
        }
        Prepared::new(state, ioctl::xsave_size(self.kvm()))
    }

    /// Compares the table `saved` with what this host supports, and where that is not enough, with what it gives to a
    /// vCPU that is told everything it supports: KVM-PVM cannot hide the processor's own features, and does not list
    /// them.
    fn check_cpuid(&self, saved: &[CpuidEntry]) -> Result<(), StateError> {
        let supported = self.kvm().supported_cpuid().map_err(self.state_failure())?;
        let host: Vec<_> = supported.as_slice().iter().copied().map(CpuidEntry::from).collect();
        if cpuid::differences(saved, &host).is_empty() {
            return Ok(());
        }
        self.fd().set_cpuid2(&supported).map_err(self.state_error("KVM_SET_CPUID2"))?;
        let differences = cpuid::differences(saved, &self.cpuid()?);
        if !differences.is_empty() {
            return Err(StateError::Cpuid { index: self.index(), differences });
        }
        Ok(())
    }

    fn set_tsc_khz(&self, saved: u32) -> Result<(), StateError> {
        let host = self.fd().get_tsc_khz().map_err(self.state_error("KVM_GET_TSC_KHZ"))?;
        if saved == host {
            return Ok(());
        }
        self.fd().set_tsc_khz(saved).map_err(|errno| {
            let source = IoctlError::of("KVM_SET_TSC_KHZ")(errno);
            StateError::TscKhz { index: self.index(), saved, host, source }
        })
    }

    fn set_all_sregs(&self, state: &VcpuState) -> Result<(), StateError> {
        if self.kvm().check_extension(KVM_CAP_SREGS2) > 0 {
            return ioctl::set_sregs2(self.fd(), &state.sregs).map_err(self.state_error("KVM_SET_SREGS2"));
        }
        let sregs = registers::to_sregs(&state.sregs);
        self.fd().set_sregs(&sregs).map_err(self.state_error("KVM_SET_SREGS"))
    }

    fn set_msrs(&self, state: &VcpuState) -> Result<(), StateError> {
        let indices: Vec<_> = state.msrs.iter().map(|msr| msr.index).collect();
        let current = msrs::read(self.fd(), &indices).map_err(self.state_error("KVM_GET_MSRS"))?;
        let wanted = msrs::to_restore(&state.msrs, &current);
        match msrs::write(self.fd(), &wanted).map_err(self.state_error("KVM_SET_MSRS"))? {
            None => Ok(()),
            Some(msr) => Err(StateError::Msr { index: self.index(), msr: msr.index, value: msr.value }),
        }
    }
}

/// The parts of a state whose length can be wrong, in the kernel's form.
pub(super) struct Prepared {
    cpuid: CpuId,
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    lapic: kvm_lapic_state,
}

impl Prepared {
    /// Brings `state` into the form of a kernel whose XSAVE area has `xsave_size` bytes.
    pub(super) fn new(state: &VcpuState, xsave_size: usize) -> Result<Self, StateError> {
        let wrong = |part, found, expected| StateError::Length { index: state.index, part, found, expected };
        let entries: Vec<_> = state.cpuid.iter().copied().map(kvm_cpuid_entry2::from).collect();
        let cpuid = CpuId::from_entries(&entries)
            .map_err(|_| wrong("cpuid", entries.len(), KVM_MAX_CPUID_ENTRIES))?;
        let xsave =
            fitted(&state.xsave, xsave_size).ok_or_else(|| wrong("xsave", state.xsave.len(), xsave_size))?;
        let xcrs = kernel_xcrs(&state.xcrs)
            .ok_or_else(|| wrong("xcrs", state.xcrs.len(), kvm_xcrs::default().xcrs.len()))?;
        let mut lapic = kvm_lapic_state::default();
        if state.lapic.len() != lapic.regs.len() {
            return Err(wrong("lapic", state.lapic.len(), lapic.regs.len()));
        }
        for (register, byte) in lapic.regs.iter_mut().zip(&state.lapic) {
            *register = byte.cast_signed();
        }
        if let Some(nested) = &state.nested {
            let expected = ioctl::nested_size(nested).unwrap_or(0);
            if expected != nested.len() {
                return Err(wrong("nested", nested.len(), expected));
            }
        }
        Ok(Self { cpuid, xsave, xcrs: (!state.xcrs.is_empty()).then_some(xcrs), lapic })
    }
}

/// `None` if there are more than the kernel takes.
fn kernel_xcrs(saved: &[Xcr]) -> Option<kvm_xcrs> {
    let mut xcrs = kvm_xcrs { nr_xcrs: u32::try_from(saved.len()).ok()?, ..Default::default() };
    for (to, from) in xcrs.xcrs.get_mut(..saved.len())?.iter_mut().zip(saved) {
        to.xcr = from.index;
        to.value = from.value;
    }
    Some(xcrs)
}
