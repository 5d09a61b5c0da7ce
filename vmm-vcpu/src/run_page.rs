//! `RunPage`: our own mapping of a vCPU's `kvm_run`, shared with the kernel.
//!
//! The page is read and written by the vCPU's thread between two `KVM_RUN`s, with one exception: the byte
//! `immediate_exit`, which any thread stores to at any time, and which is therefore only ever reached through
//! [`ImmediateExit`], as an atomic. No `&kvm_run` is ever formed.
#![expect(unsafe_code, reason = "a mapping shared with the kernel and with the kickers")]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

use crate::mapping::Mapping;

/// The run page, for the one who runs the vCPU. Unmapped when it and the last of the kickers are gone.
#[derive(Debug)]
pub struct RunPage(Arc<Mapping>);

impl RunPage {
    /// Maps the run page of the vCPU descriptor `vcpu`; `length` is what `KVM_GET_VCPU_MMAP_SIZE` says.
    pub(crate) fn map(vcpu: &impl AsRawFd, length: usize) -> io::Result<Self> {
        if length < size_of::<kvm_run>() {
            return Err(io::Error::other(format!("a run page of {length} bytes is too small for kvm_run")));
        }
        Ok(Self(Arc::new(Mapping::new(vcpu.as_raw_fd(), libc::MAP_SHARED, length, 0)?)))
    }

    /// A page without a kernel behind it, for scripted vCPUs: `kvm_run` and one page of port data.
    #[cfg(any(test, feature = "test-util"))]
    pub fn anonymous() -> io::Result<Self> {
        let length = size_of::<kvm_run>().next_multiple_of(4096) + 4096;
        Ok(Self(Arc::new(Mapping::new(-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, length, 0)?)))
    }

    /// The handle of the kickers.
    #[must_use]
    pub fn immediate_exit(&self) -> ImmediateExit {
        ImmediateExit(Arc::clone(&self.0))
    }

    /// Asks KVM to return (`KVM_EXIT_IRQ_WINDOW_OPEN`) as soon as the guest would take an interrupt. For VMs whose
    /// interrupt controller is not in the kernel; of others it means nothing.
    pub fn request_interrupt_window(&mut self) {
        if let Some(request) = self.bytes(offset_of!(kvm_run, request_interrupt_window), 1) {
            request.fill(1);
        }
    }

    /// Where `length` bytes at `offset` lie, if that is inside the page and apart from `immediate_exit`.
    fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        let apart =
            offset > offset_of!(kvm_run, immediate_exit) || end <= offset_of!(kvm_run, immediate_exit);
        if end > self.0.length() || !apart {
            return None;
        }
        // SAFETY:
        // - `offset` is inside the mapping, by the check above.
        Some(unsafe { self.0.base().add(offset) })
    }

    /// Reads a field of `kvm_run`. Gives 0 for a field that is not on the page, which no `offset_of!` does.
    #[inline]
    pub(crate) fn field<T: Field>(&self, offset: usize) -> T {
        let Some(at) = self.at(offset, size_of::<T>()) else {
            return T::default();
        };
        // SAFETY:
        // - `at` points at `size_of::<T>()` bytes of the mapping, which any thread but ours leaves alone;
        // - every bit pattern is a `T`, see `Field`.
        unsafe { at.cast::<T>().read_unaligned() }
    }

    /// Borrows `length` bytes at `offset` to be read or filled in place.
    #[inline]
    pub(crate) fn bytes(&mut self, offset: usize, length: usize) -> Option<&mut [u8]> {
        let at = self.at(offset, length)?;
        // SAFETY:
        // - the range is inside the mapping and does not contain `immediate_exit`, see `at`;
        // - `self` is the only way to the rest of the mapping and is borrowed mutably for as long as the slice lives;
        // - the kernel touches the page only inside `KVM_RUN`, which needs `&mut` of the vCPU that owns `self`.
        Some(unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), length) })
    }
}

/// The integers that `kvm_run` is made of.
pub(crate) trait Field: Copy + Default {}
impl Field for u8 {}
impl Field for u16 {}
impl Field for u32 {}
impl Field for u64 {}

/// The byte that makes `KVM_RUN` return at once. Clones reach the same byte; it outlives the vCPU's thread.
#[derive(Clone, Debug)]
pub struct ImmediateExit(Arc<Mapping>);

impl ImmediateExit {
    fn byte(&self) -> &AtomicU8 {
        // SAFETY:
        // - the offset is inside the mapping, whose length was checked when it was made;
        let byte = unsafe { self.0.base().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY:
        // - the mapping lives as long as `self`, to which the result is bound;
        // - a byte needs no alignment; in this process it is accessed only through this function;
        // - the kernel's own access to it is a single-byte read.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    /// Makes the next `KVM_RUN` return with `EINTR`, after it has completed a pending port or MMIO access.
    pub fn set(&self) {
        self.byte().store(1, Ordering::Release);
    }

    /// Takes [`set`](Self::set) back; returns whether it was set.
    #[must_use]
    pub fn take(&self) -> bool {
        self.byte().swap(0, Ordering::Acquire) != 0
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn no_borrow_of_the_page_contains_immediate_exit() {
        let mut page = RunPage::anonymous().unwrap();
        let flag = offset_of!(kvm_run, immediate_exit);
        assert!(page.bytes(0, flag).is_some());
        assert!(page.bytes(0, flag + 1).is_none());
        assert!(page.bytes(flag, 1).is_none());
        assert!(page.bytes(flag + 1, 16).is_some());
    }

    #[test]
    fn a_range_past_the_end_is_refused() {
        let mut page = RunPage::anonymous().unwrap();
        let length = page.0.length();
        assert!(page.bytes(length - 8, 8).is_some());
        assert!(page.bytes(length - 8, 9).is_none());
        assert!(page.bytes(usize::MAX, 2).is_none());
    }

    #[test]
    fn immediate_exit_is_the_second_byte_and_survives_the_page() {
        let page = RunPage::anonymous().unwrap();
        let flag = page.immediate_exit();
        flag.set();
        assert_eq!(offset_of!(kvm_run, immediate_exit), 1);
        drop(page);
        assert!(flag.take());
        assert!(!flag.take());
    }
}
