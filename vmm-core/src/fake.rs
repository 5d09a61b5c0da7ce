//! `FakeVm`: the seams without KVM. Records every call and fails the ones that a test names.

mod interrupts;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::IoctlError;
use crate::irq::MsiMessage;
use crate::seam::{DoorbellAddress, DoorbellFds, MemorySlot, MemorySlots};
use interrupts::Interrupts;

/// A call that reached the fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeCall {
    /// [`MemorySlots::set_memory_slot`].
    SetSlot(MemorySlot),
    /// [`DoorbellFds::attach_doorbell`].
    AttachDoorbell(DoorbellAddress),
    /// [`DoorbellFds::detach_doorbell`].
    DetachDoorbell(DoorbellAddress),
    /// [`IrqFds::attach_irqfd`](crate::seam::IrqFds::attach_irqfd).
    AttachIrqfd(u32),
    /// [`IrqFds::attach_resampled_irqfd`](crate::seam::IrqFds::attach_resampled_irqfd).
    AttachResampledIrqfd(u32),
    /// [`IrqFds::detach_irqfd`](crate::seam::IrqFds::detach_irqfd).
    DetachIrqfd(u32),
    /// [`IrqRoutes::set_routes`](crate::seam::IrqRoutes::set_routes), with so many routes to messages.
    SetRoutes(usize),
    /// [`IrqInjection::set_line`](crate::seam::IrqInjection::set_line).
    SetLine(u32, bool),
    /// [`IrqInjection::signal_message`](crate::seam::IrqInjection::signal_message).
    SignalMessage(MsiMessage),
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<FakeCall>,
    failures: Vec<(usize, i32)>,
    interrupts: Interrupts,
}

/// A VM that exists only in the records of a test.
#[derive(Debug, Default)]
pub struct FakeVm(Mutex<State>);

impl FakeVm {
    /// Makes the `nth` call (counted from 0 over all families) fail with `errno`. The call is recorded all the same.
    pub fn fail_call(&self, nth: usize, errno: i32) {
        self.state().failures.push((nth, errno));
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<FakeCall> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, ioctl: &'static str, call: FakeCall) -> Result<(), IoctlError> {
        let mut state = self.state();
        let nth = state.calls.len();
        state.calls.push(call);
        match state.failures.iter().find(|failure| failure.0 == nth) {
            Some(&(_, errno)) => Err(IoctlError { ioctl, source: io::Error::from_raw_os_error(errno) }),
            None => Ok(()),
        }
    }
}

impl MemorySlots for FakeVm {
    #[expect(unsafe_code, reason = "the trait's contract; the fake never touches the memory")]
    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        self.record("KVM_SET_USER_MEMORY_REGION", FakeCall::SetSlot(*slot))
    }
}

impl DoorbellFds for FakeVm {
    fn attach_doorbell(&self, address: &DoorbellAddress, _fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IOEVENTFD", FakeCall::AttachDoorbell(*address))
    }

    fn detach_doorbell(&self, address: &DoorbellAddress, _fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IOEVENTFD", FakeCall::DetachDoorbell(*address))
    }
}
