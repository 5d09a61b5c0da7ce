//! `FakeVm`: the seams without KVM. Records every call and fails the ones that a test names.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::IoctlError;
use crate::seam::{DoorbellAddress, DoorbellFds, IrqFds, MemorySlot, MemorySlots};

/// A call that reached the fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeCall {
    /// [`MemorySlots::set_memory_slot`].
    SetSlot(MemorySlot),
    /// [`DoorbellFds::attach_doorbell`].
    AttachDoorbell(DoorbellAddress),
    /// [`DoorbellFds::detach_doorbell`].
    DetachDoorbell(DoorbellAddress),
    /// [`IrqFds::attach_irqfd`].
    AttachIrqfd(u32),
    /// [`IrqFds::detach_irqfd`].
    DetachIrqfd(u32),
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<FakeCall>,
    failures: Vec<(usize, i32)>,
}

/// A VM that exists only in the records of a test.
#[derive(Debug, Default)]
pub struct FakeVm(Mutex<State>);

impl FakeVm {
    /// Makes the `nth` call (counted from 0 over all families) fail with `errno`. The call is recorded all the same.
    pub fn fail_call(&self, nth: usize, errno: i32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failures.push((nth, errno));
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<FakeCall> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).calls.clone()
    }

    fn record(&self, ioctl: &'static str, call: FakeCall) -> Result<(), IoctlError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

impl IrqFds for FakeVm {
    fn attach_irqfd(&self, gsi: u32, _fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IRQFD", FakeCall::AttachIrqfd(gsi))
    }

    fn detach_irqfd(&self, gsi: u32, _fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IRQFD", FakeCall::DetachIrqfd(gsi))
    }
}
