//! `FakeVm`: the seams without KVM. Records every call, keeps the tables that KVM keeps, and fails the calls that a test
//! names.

mod dirty;
mod interrupts;
mod slots;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::IoctlError;
use crate::irq::MsiMessage;
use crate::seam::{DoorbellAddress, DoorbellFds, MemorySlot};
use dirty::Dirty;
use interrupts::Interrupts;
use slots::Slots;

/// A call that reached the fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeCall {
    /// [`MemorySlots::set_memory_slot`](crate::seam::MemorySlots::set_memory_slot).
    SetSlot(MemorySlot),
    /// [`DirtyLog::dirty_log`](crate::seam::DirtyLog::dirty_log) of this slot.
    DirtyLog(u32),
    /// [`DirtyLog::clear_dirty_log`](crate::seam::DirtyLog::clear_dirty_log) of this slot, from this page on.
    ClearDirtyLog(u32, u64),
    /// [`DirtyLog::collect_rings`](crate::seam::DirtyLog::collect_rings).
    CollectRings,
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
    slots: Slots,
    dirty: Dirty,
    doorbells: Vec<(DoorbellAddress, RawFd)>,
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

    /// The doorbells that are attached, in the order in which they were.
    #[must_use]
    pub fn doorbells(&self) -> Vec<DoorbellAddress> {
        self.state().doorbells.iter().map(|doorbell| doorbell.0).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, ioctl: &'static str, call: FakeCall) -> Result<(), IoctlError> {
        self.state().record(ioctl, call)
    }
}

impl State {
    fn record(&mut self, ioctl: &'static str, call: FakeCall) -> Result<(), IoctlError> {
        let nth = self.calls.len();
        self.calls.push(call);
        match self.failures.iter().find(|failure| failure.0 == nth) {
            Some(&(_, errno)) => Err(failed(ioctl, errno)),
            None => Ok(()),
        }
    }
}

fn failed(ioctl: &'static str, errno: i32) -> IoctlError {
    IoctlError { ioctl, source: io::Error::from_raw_os_error(errno) }
}

/// Whether KVM takes two doorbells for the same (`ioeventfd_check_collision`).
fn collide(one: &DoorbellAddress, other: &DoorbellAddress) -> bool {
    let same_values =
        one.datamatch.is_none() || other.datamatch.is_none() || one.datamatch == other.datamatch;
    (one.space, one.address) == (other.space, other.address)
        && (one.width == 0 || other.width == 0 || one.width == other.width && same_values)
}

impl DoorbellFds for FakeVm {
    fn attach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError> {
        let mut state = self.state();
        state.record("KVM_IOEVENTFD", FakeCall::AttachDoorbell(*address))?;
        if state.doorbells.iter().any(|(other, _)| collide(address, other)) {
            return Err(failed("KVM_IOEVENTFD", libc::EEXIST));
        }
        state.doorbells.push((*address, fd.as_raw_fd()));
        Ok(())
    }

    fn detach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError> {
        let mut state = self.state();
        state.record("KVM_IOEVENTFD (deassign)", FakeCall::DetachDoorbell(*address))?;
        let known = (*address, fd.as_raw_fd());
        let position = state.doorbells.iter().position(|doorbell| *doorbell == known);
        let position = position.ok_or_else(|| failed("KVM_IOEVENTFD (deassign)", libc::ENOENT))?;
        state.doorbells.remove(position);
        Ok(())
    }
}
