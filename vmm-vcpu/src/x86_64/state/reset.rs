//! Resetting: a `Vcpu` that has run, back to the `VcpuState` that it had before.

use std::io;

use super::restore::Prepared;
use super::{StateError, VcpuState};
use crate::kick::KickTarget;
use crate::run_loop::RunVcpu;
use crate::{Mechanism, ThreadTarget, Vcpu, VcpuExit, ioctl};

/// Most exits that one instruction leads to: KVM hands out a string access in up to 1024 of them, an element of which can
/// cross a page.
const MOST_EXITS: usize = 4096;

impl Vcpu {
    /// Gives this vCPU, whose thread has ended, the state `birth` that it had before it ran for the first time: whatever the guest
    /// has done with it, nothing of that is left. Its CPUID table is the one that it had then. To be called on the thread
    /// that has the vCPU now; `mechanism` is how `KVM_RUN` is made to return there.
    ///
    /// The VM has no guest memory meanwhile, and nobody raises interrupts: what KVM would still read or write there it does not
    /// find.
    ///
    /// # Errors
    /// Whatever KVM refuses: the vCPU is to be dropped then.
    pub fn reset(&mut self, birth: &VcpuState, mechanism: Mechanism) -> Result<(), StateError> {
        let index = self.index();
        if birth.index != index {
            return Err(StateError::Index { index, saved: birth.index });
        }
        let prepared = Prepared::new(birth, ioctl::xsave_size(self.kvm()))?;
        // First: the next `KVM_RUN` would complete it, with registers of the next guest.
        self.complete(mechanism).map_err(|source| StateError::Pending { index, source })?;
        // KVM takes an INIT or a SIPI that is on its way here.
        self.fd().get_mp_state().map_err(self.state_error("KVM_GET_MP_STATE"))?;
        // Out of SMM and of a nested guest, in which control registers would be those of the guest's guest.
        self.fd().set_vcpu_events(&birth.events).map_err(self.state_error("KVM_SET_VCPU_EVENTS"))?;
        self.set_nested(birth)?;
        self.set_state(birth, &prepared)
    }

    /// Has KVM complete the access with which the vCPU has left the guest, and runs nothing further. Nobody serves what comes
    /// of it: reads are all ones, writes go nowhere.
    fn complete(&mut self, mechanism: Mechanism) -> io::Result<()> {
        let target = ThreadTarget::new(mechanism, self.immediate_exit());
        target.settle(self)?;
        for _ in 0..MOST_EXITS {
            target.arm_own();
            let returned = self.run();
            target.disarm();
            match returned {
                Ok(()) => {
                    if let VcpuExit::PortRead { data, .. } | VcpuExit::MmioRead { data, .. } =
                        VcpuExit::decode(self.page())
                    {
                        data.fill(u8::MAX);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => return Ok(()),
                    // Woken while it waits for INIT and SIPI, or told to be entered again.
                    Some(libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::other("it leads to exit after exit"))
    }
}
