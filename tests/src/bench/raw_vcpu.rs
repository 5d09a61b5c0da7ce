//! `RawVcpu`: a vCPU of the raw baseline, its descriptor and its run page.
#![expect(unsafe_code, reason = "the run page is shared with KVM")]

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_IO_OUT, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4 as PortExit};

use crate::bench::raw_ioctl as kvm;
use crate::bench::raw_mapping::Mapping;
use crate::bench::raw_vm::{RawMachine, owned};

/// A vCPU, which keeps its machine.
#[derive(Debug)]
pub struct RawVcpu {
    // Dropped in this order: the machine's memory is unmapped only after KVM has let go of it.
    run: Arc<Mapping>,
    fd: OwnedFd,
    _machine: Arc<RawMachine>,
}

/// Why the guest left to user space.
#[derive(Debug, PartialEq, Eq)]
pub enum RawExit<'a> {
    /// It writes `data` to a port.
    Out {
        /// The port.
        port: u16,
        /// The bytes of all elements.
        data: &'a [u8],
    },
    /// It reads `data`, to be filled in, from a port.
    In {
        /// The port.
        port: u16,
        /// The bytes of all elements.
        data: &'a mut [u8],
    },
    /// Another `KVM_EXIT_*` reason.
    Other(u32),
}

impl RawVcpu {
    /// Makes the vCPU `index` of `machine`.
    pub(super) fn create(kvm: &File, machine: &Arc<RawMachine>, index: u32) -> io::Result<Self> {
        let fd = owned(kvm::CREATE_VCPU.call(machine, index.into())?);
        let size = kvm::GET_VCPU_MMAP_SIZE.call(kvm, 0)?;
        let run = Mapping::shared(fd.as_raw_fd(), usize::try_from(size).map_err(io::Error::other)?)?;
        Ok(Self { run: Arc::new(run), fd, _machine: Arc::clone(machine) })
    }

    /// Runs the guest until its next exit.
    ///
    /// # Errors
    ///
    /// That of `KVM_RUN`; EINTR if a signal came.
    pub fn enter(&mut self) -> io::Result<()> {
        kvm::RUN.call(&self.fd, 0).map(drop)
    }

    /// The `KVM_EXIT_*` reason of the last exit.
    pub fn exit_reason(&self) -> u32 {
        let reason = self.field(offset_of!(kvm_run, exit_reason)).cast();
        // SAFETY:
        // - aligned as in a `kvm_run`, see `field`;
        // - KVM writes to the page only in `enter`, which borrows `self` exclusively.
        unsafe { reason.read() }
    }

    /// The elements that the last exit, a port access, covers.
    pub fn port_elements(&self) -> u32 {
        self.port_exit().count
    }

    /// The last exit. Of one whose `immediate_exit` was handed out, the data cannot be had.
    pub fn exit(&mut self) -> RawExit<'_> {
        let reason = self.exit_reason();
        if reason != KVM_EXIT_IO {
            return RawExit::Other(reason);
        }
        let exit = self.port_exit();
        let data = usize::try_from(exit.data_offset).ok().zip(usize::try_from(exit.count).ok());
        let run = Arc::get_mut(&mut self.run);
        let data = data
            .zip(run)
            .and_then(|((start, count), run)| run.get(start, usize::from(exit.size).checked_mul(count)?));
        match data {
            Some(data) if u32::from(exit.direction) == KVM_EXIT_IO_OUT => {
                RawExit::Out { port: exit.port, data }
            }
            Some(data) => RawExit::In { port: exit.port, data },
            None => RawExit::Other(reason),
        }
    }

    /// The byte that makes `KVM_RUN` return at once.
    pub fn immediate_exit(&self) -> RawFlag {
        RawFlag(Arc::clone(&self.run))
    }

    fn port_exit(&self) -> PortExit {
        let exit = self.field(offset_of!(kvm_run, __bindgen_anon_1)).cast();
        // SAFETY:
        // - as in `exit_reason`; every member of the union begins where the union does;
        // - all fields are integers, so whatever the union holds is a valid value.
        unsafe { exit.read() }
    }

    /// Where a field of `kvm_run` is. The page is never borrowed as a whole: `immediate_exit` is stored to at any time.
    fn field(&self, offset: usize) -> NonNull<u8> {
        // SAFETY:
        // - the callers pass an offset in `kvm_run`, with which the mapping begins and which is smaller.
        unsafe { self.run.start().add(offset) }
    }
}

impl AsFd for RawVcpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `immediate_exit` of a vCPU; outlives it.
#[derive(Debug)]
pub struct RawFlag(Arc<Mapping>);

impl RawFlag {
    /// Makes the next `KVM_RUN` return with EINTR.
    pub fn set(&self) {
        self.byte().store(1, Ordering::SeqCst);
    }

    /// Takes that back.
    pub fn clear(&self) {
        self.byte().store(0, Ordering::SeqCst);
    }

    fn byte(&self) -> &AtomicU8 {
        // SAFETY:
        // - the offset is inside the mapping.
        let byte = unsafe { self.0.start().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY:
        // - the mapping lives as long as `self`, to which the result is bound;
        // - a byte needs no alignment; in this process it is accessed only through this function.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}
