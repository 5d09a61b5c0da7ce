//! The probe of HLT exits: a VM of one page that halts, to see whether KVM leaves that to the processor as it was told.
//!
//! Its vCPU starts where a reset puts it, with `sti; hlt`. The VM has no interrupt controller in the kernel, so that a halt
//! that exits comes out as `KVM_EXIT_HLT`; and KVM is asked to return as soon as the guest would take an interrupt, which
//! is not before it has executed the `hlt` (`sti` takes effect one instruction later) and while it halts. So one of two
//! exits comes at once, and says which it is.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_EXIT_HLT, KVM_EXIT_IRQ_WINDOW_OPEN};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::seam::MemorySlots;
use vmm_core::{Deferred, DisabledExits, Kvm, Vm};
use vmm_memory::{AddressSpace, Backing, RamRange};
use vmm_vcpu::{ExitHandler, RunVcpu, ThreadOptions, Vcpu, VcpuEnd, VcpuThread};

use crate::machine::layout;

/// What a halt does on this host, where HLT exits are disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The vCPU halts in the guest.
    StaysInGuest,
    /// It leaves the guest all the same.
    Exits,
    /// The probe has shown neither.
    Unknown,
}

/// Time in which the probe has to show it, on a busy host. A processor on which neither exit comes halts until then.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last page below 4 GiB, and in it the instruction that a vCPU executes first after a reset.
const PAGE: RamRange = RamRange { start: 0xffff_f000, size: 0x1000 };
const RESET: u64 = 0xffff_fff0;

/// `sti`, `hlt`, and a jump back to the `hlt`.
const CODE: [u8; 4] = [0xfb, 0xf4, 0xeb, 0xfd];
/// The instruction pointer, in the segment of a reset, behind the `hlt`.
const HALTED: u64 = 0xfff2;

/// A guest that has no devices.
struct Nothing;

impl ExitHandler for Nothing {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// Tries it out. KVM must offer to disable HLT exits.
///
/// # Errors
/// The step that failed. Nothing of the VM is left, then as otherwise.
pub(crate) fn probe(kvm: &Kvm) -> Result<Halt> {
    let vm = Arc::new(Vm::create(kvm).context("no VM can be made")?);
    vm.disable_exits(DisabledExits::HLT)?;
    vm.set_vmx_pages(layout::TSS, layout::IDENTITY_MAP).context("KVM gets no pages for itself")?;
    let memory = AddressSpace::new(Arc::clone(&vm) as Arc<dyn MemorySlots>);
    memory.map(&[PAGE], &Backing::default()).context("the guest gets no memory")?;
    memory.memory().write_slice(&CODE, GuestAddress(RESET)).context("guest memory")?;
    let mut vcpu = Vcpu::create(kvm, &vm, 0).context("no vCPU can be made")?;
    vcpu.page().request_interrupt_window();
    let (sender, seen) = mpsc::channel();
    let on_end = move |vcpu: &Vcpu, end| {
        let rip = vcpu.regs().map(|regs| regs.rip).ok();
        // Fails when nobody waits any longer.
        let _ = sender.send(judge(&end, rip));
    };
    let thread = VcpuThread::spawn(vcpu, Arc::new(Nothing), ThreadOptions::default(), on_end)
        .context("the vCPU gets no thread")?;
    thread.resume();
    let in_time = seen.recv_timeout(PATIENCE);
    // Stopped and joined: it has reported by now, if only where it has stopped.
    drop(thread);
    Ok(in_time.or_else(|_| seen.try_recv()).unwrap_or(Halt::Unknown))
}

/// What the end of the vCPU says, which is at `rip` then.
fn judge(end: &VcpuEnd, rip: Option<u64>) -> Halt {
    match end {
        VcpuEnd::UnexpectedExit(KVM_EXIT_HLT) => Halt::Exits,
        VcpuEnd::UnexpectedExit(KVM_EXIT_IRQ_WINDOW_OPEN) | VcpuEnd::Stopped if rip == Some(HALTED) => {
            Halt::StaysInGuest
        }
        _ => {
            tracing::debug!(?end, ?rip, "the probe of HLT exits has shown nothing");
            Halt::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_that_comes_out_exits() {
        assert_eq!(judge(&VcpuEnd::UnexpectedExit(KVM_EXIT_HLT), Some(HALTED)), Halt::Exits);
    }

    #[test]
    fn a_guest_that_is_behind_its_halt_without_that_exit_has_halted_by_itself() {
        for end in [VcpuEnd::UnexpectedExit(KVM_EXIT_IRQ_WINDOW_OPEN), VcpuEnd::Stopped] {
            assert_eq!(judge(&end, Some(HALTED)), Halt::StaysInGuest);
        }
    }

    #[test]
    fn a_guest_that_has_not_halted_proves_nothing() {
        for rip in [None, Some(HALTED - 1), Some(HALTED - 2)] {
            assert_eq!(judge(&VcpuEnd::UnexpectedExit(KVM_EXIT_IRQ_WINDOW_OPEN), rip), Halt::Unknown);
            assert_eq!(judge(&VcpuEnd::Stopped, rip), Halt::Unknown);
        }
        assert_eq!(judge(&VcpuEnd::TripleFault, Some(HALTED)), Halt::Unknown);
    }

    #[test]
    fn the_code_is_where_a_reset_puts_the_instruction_pointer() {
        const RESET_SEGMENT: u64 = 0xffff_0000;
        assert_eq!(RESET, RESET_SEGMENT + 0xfff0);
        // Behind the `hlt`, which is the second instruction.
        assert_eq!((CODE[1], RESET_SEGMENT + HALTED), (0xf4, RESET + 2));
        assert!(PAGE.start <= RESET && RESET + CODE.len() as u64 <= PAGE.start + PAGE.size);
    }
}
