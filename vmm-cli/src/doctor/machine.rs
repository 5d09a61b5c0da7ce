//! The smallest machine: made as `run` makes its own, entered, and taken apart.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::irq::{IrqOptions, IrqRouter, Irqchip};
use vmm_core::seam::{InterruptVm, MemorySlots};
use vmm_core::{Deferred, Kvm, Vm};
use vmm_memory::{AddressSpace, Backing, RamRange};
use vmm_vcpu::x86_64::{BootRegs, CpuidTemplate};
use vmm_vcpu::{ExitHandler, ThreadOptions, Vcpu, VcpuEnd, VcpuThread};

use crate::machine::layout;

/// Time in which the guest has to answer, on a busy host.
const PATIENCE: Duration = Duration::from_secs(10);

const ENTRY: u32 = 0x1000;
const PORT: u16 = 0xf4;
const ENTERED: u8 = 1;
const EXECUTED: u8 = 2;

/// Says `ENTERED`, executes an instruction that every processor has and KVM's emulator lacks, says `EXECUTED` and
/// waits to be stopped. 32-bit code.
const CODE: [u8; 11] = [
    0xb0, ENTERED, 0xe6, 0xf4, // mov al, ENTERED; out PORT, al
    0x37, // aaa
    0xb0, EXECUTED, 0xe6, 0xf4, // mov al, EXECUTED; out PORT, al
    0xeb, 0xfe, // jmp to itself
];

/// KVM's emulator met an instruction that it does not know (`KVM_INTERNAL_ERROR_EMULATION`).
const EMULATION_FAILED: u32 = 1;

/// Who executes the code of a guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Execution {
    /// The processor.
    Native,
    /// KVM's instruction emulator, which knows what small guests need.
    Interpreted,
}

/// What the guest did.
#[derive(Debug)]
enum Sign {
    Said(u8),
    Ended(VcpuEnd),
}

/// The guest's only device.
struct Port(Sender<Sign>);

impl ExitHandler for Port {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, port: u16, _size: usize, data: &[u8]) -> Option<Deferred> {
        if let (PORT, Some(&value)) = (port, data.first()) {
            // Fails when nobody waits any longer.
            let _ = self.0.send(Sign::Said(value));
        }
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// Makes the machine, runs it and takes it apart; returns who executed its code, and how long it all took.
///
/// # Errors
/// The step that failed. Nothing of the machine is left, then as otherwise.
pub(super) fn try_out(kvm: &Kvm) -> Result<(Execution, Duration)> {
    let started = Instant::now();
    let vm = Arc::new(Vm::create(kvm).context("no VM can be made")?);
    vm.set_vmx_pages(layout::TSS, layout::IDENTITY_MAP).context("KVM gets no pages for itself")?;
    let memory = AddressSpace::new(Arc::clone(&vm) as Arc<dyn MemorySlots>);
    memory
        .map(&[RamRange { start: 0, size: 1 << 20 }], &Backing::default())
        .context("the guest gets no memory")?;
    vm.create_irqchip().context("there are no interrupt controllers")?;
    let options = IrqOptions::of_host(kvm.capabilities(), Irqchip::Kernel);
    let router = IrqRouter::new(Arc::clone(&vm) as Arc<dyn InterruptVm>, options);
    let line = router.edge_line(layout::SERIAL_LINE, "doctor").context("there is no interrupt line")?;
    memory.memory().write_slice(&CODE, GuestAddress(ENTRY.into())).context("guest memory")?;
    let vcpu = vcpu(kvm, &vm)?;
    let (sender, signs) = mpsc::channel();
    let ends = sender.clone();
    let on_end = move |_: &Vcpu, end| {
        let _ = ends.send(Sign::Ended(end));
    };
    let thread = VcpuThread::spawn(vcpu, Arc::new(Port(sender)), ThreadOptions::default(), on_end)
        .context("the vCPU gets no thread")?;
    thread.resume();
    let execution = watch(&signs)?;
    drop((thread, line, memory, vm));
    Ok((execution, started.elapsed()))
}

fn vcpu(kvm: &Kvm, vm: &Vm) -> Result<Vcpu> {
    let supported = kvm.supported_cpuid().context("KVM supports no CPUID table")?;
    let cpuid = CpuidTemplate::new(&supported, kvm.capabilities(), 1).for_vcpu(0)?;
    let vcpu = Vcpu::create(kvm, vm, 0).context("no vCPU can be made")?;
    let boot = BootRegs::Pvh { entry: ENTRY, start_info: 0 };
    vcpu.configure(&cpuid, Some(&boot)).context("the vCPU cannot be set up")?;
    Ok(vcpu)
}

/// Waits until the guest has shown who executes it.
fn watch(signs: &Receiver<Sign>) -> Result<Execution> {
    let mut entered = false;
    loop {
        match signs.recv_timeout(PATIENCE) {
            Ok(Sign::Said(ENTERED)) => entered = true,
            Ok(Sign::Said(EXECUTED)) if entered => return Ok(Execution::Native),
            Ok(Sign::Ended(VcpuEnd::InternalError { suberror: EMULATION_FAILED, .. })) if entered => {
                return Ok(Execution::Interpreted);
            }
            Ok(sign) => bail!("the guest was to say {ENTERED} and {EXECUTED}, but: {sign:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("the guest does not answer in {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the vCPU's thread is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(said: Vec<Sign>) -> Result<Execution> {
        let (sender, signs) = mpsc::channel();
        said.into_iter().for_each(|sign| sender.send(sign).unwrap());
        drop(sender);
        watch(&signs)
    }

    fn emulation_failed() -> Sign {
        Sign::Ended(VcpuEnd::InternalError { suberror: 1, data: [0, 0] })
    }

    #[test]
    fn a_guest_that_goes_on_runs_on_the_processor() {
        let execution = watched(vec![Sign::Said(ENTERED), Sign::Said(EXECUTED)]).unwrap();
        assert_eq!(execution, Execution::Native);
    }

    #[test]
    fn a_guest_that_stops_at_what_the_emulator_lacks_is_interpreted() {
        assert_eq!(watched(vec![Sign::Said(ENTERED), emulation_failed()]).unwrap(), Execution::Interpreted);
    }

    #[test]
    fn a_guest_that_never_began_proves_nothing() {
        for said in [
            vec![],
            vec![emulation_failed()],
            vec![Sign::Said(EXECUTED)],
            vec![Sign::Said(ENTERED), Sign::Ended(VcpuEnd::TripleFault)],
        ] {
            assert!(watched(said).is_err());
        }
    }
}
