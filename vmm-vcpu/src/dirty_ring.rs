//! `RingPages`: our mapping of a vCPU's dirty ring. What is in it, others read: see `vmm_core::DirtyRings`.
#![expect(unsafe_code, reason = "a mapping shared with the kernel")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::KVM_DIRTY_LOG_PAGE_OFFSET;
use vmm_core::{RingEntry, RingMapping};

use crate::mapping::Mapping;

/// The kernel's pages, by which a mapping of a vCPU descriptor says what it is of.
const PAGE: i64 = 4096;

/// See the module documentation.
pub(crate) struct RingPages(Mapping);

impl RingPages {
    /// Maps the dirty ring of the vCPU descriptor `vcpu`; `length` is what the VM was made with.
    pub(crate) fn map(vcpu: &impl AsRawFd, length: usize) -> io::Result<Self> {
        let offset = PAGE * i64::from(KVM_DIRTY_LOG_PAGE_OFFSET);
        Ok(Self(Mapping::new(vcpu.as_raw_fd(), libc::MAP_SHARED, length, offset)?))
    }
}

impl RingMapping for RingPages {
    fn entries(&self) -> &[RingEntry] {
        let count = self.0.length() / size_of::<RingEntry>();
        // SAFETY:
        // - so many entries are in the mapping, which starts at a page and lives as long as `self`;
        // - an entry is made of atomics, of which each bit pattern is a value; the kernel too changes them by whole words.
        unsafe { std::slice::from_raw_parts(self.0.base().as_ptr().cast(), count) }
    }
}
