//! `Doorbell`: a register whose writes signal an eventfd, inside the kernel (ioeventfd) where the host can.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_core::IoctlError;
use vmm_core::seam::{DoorbellAddress, DoorbellFds};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a doorbell cannot be made. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// The process or the host has no descriptor left.
    #[error("no descriptor left for the doorbell at {address:#x}")]
    NoDescriptor {
        /// Where the doorbell is.
        address: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No eventfd, for another reason.
    #[error("cannot make an eventfd for the doorbell at {address:#x}")]
    EventFd {
        /// Where the doorbell is.
        address: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM knows no such write (`EINVAL`): its width is none of 0, 1, 2, 4 and 8, or it is of any width and yet of one value,
    /// or it passes the end of the address space.
    #[error("the doorbell at {address:#x} of width {width} and value {datamatch:x?} is none that KVM has")]
    BadShape {
        /// Where the doorbell is.
        address: u64,
        /// Its width in bytes.
        width: u32,
        /// The value that rings it.
        datamatch: Option<u64>,
    },
    /// A doorbell is rung by the same write already (`EEXIST`).
    #[error("the doorbell at {address:#x} exists already")]
    Exists {
        /// Where the doorbell is.
        address: u64,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
    /// The descriptor or the address is in use otherwise (`EBUSY`).
    #[error("the doorbell at {address:#x} is busy")]
    Busy {
        /// Where the doorbell is.
        address: u64,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
    /// KVM's I/O bus has no place left (`ENOSPC`): it has 1,000, among which it does not count doorbells.
    #[error("KVM has no place left for the doorbell at {address:#x}")]
    NoSpace {
        /// Where the doorbell is.
        address: u64,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
    /// KVM refuses it for another reason.
    #[error("cannot attach the doorbell at {address:#x}")]
    Attach {
        /// Where the doorbell is.
        address: u64,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
}

impl DoorbellError {
    fn attach(address: u64, source: IoctlError) -> Self {
        match source.source.raw_os_error() {
            Some(libc::EEXIST) => Self::Exists { address, source },
            Some(libc::EBUSY) => Self::Busy { address, source },
            Some(libc::ENOSPC) => Self::NoSpace { address, source },
            _ => Self::Attach { address, source },
        }
    }

    fn eventfd(address: u64, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptor { address, source },
            _ => Self::EventFd { address, source },
        }
    }
}

/// An ioeventfd of KVM: exists as long as this value. Dropped, guest writes to its address exit to user space again.
pub struct IoEventFd {
    vm: Arc<dyn DoorbellFds>,
    address: DoorbellAddress,
    fd: Arc<EventFd>,
}

impl IoEventFd {
    /// Has KVM signal `fd` at each guest write that matches `address`. Several may be at one address if their widths or
    /// their values differ.
    ///
    /// # Errors
    /// See [`DoorbellError`].
    pub fn attach(
        vm: Arc<dyn DoorbellFds>,
        address: DoorbellAddress,
        fd: Arc<EventFd>,
    ) -> Result<Self, DoorbellError> {
        let DoorbellAddress { address: start, width, datamatch, .. } = address;
        let known_width = matches!(width, 0 | 1 | 2 | 4 | 8);
        let some_value_of_any_width = width == 0 && datamatch.is_some();
        if !known_width || some_value_of_any_width || start.checked_add(width.into()).is_none() {
            return Err(DoorbellError::BadShape { address: start, width, datamatch });
        }
        vm.attach_doorbell(&address, &fd).map_err(|source| DoorbellError::attach(start, source))?;
        Ok(Self { vm, address, fd })
    }

    /// Which writes it takes.
    #[must_use]
    pub fn address(&self) -> DoorbellAddress {
        self.address
    }
}

impl Drop for IoEventFd {
    fn drop(&mut self) {
        if let Err(error) = self.vm.detach_doorbell(&self.address, &self.fd) {
            tracing::error!(address = ?self.address, %error, "cannot detach a doorbell");
        }
    }
}

/// A doorbell of a device: an eventfd that a worker waits for, and what signals it.
///
/// Each guest write is counted once: KVM takes it, or it exits to the device, whose handler calls [`ring`](Self::ring). So
/// a device works the same on a host without ioeventfd, and in the moments in which one is made or taken back.
pub struct Doorbell {
    fd: Arc<EventFd>,
    /// `None`: the host has no ioeventfds.
    vm: Option<Arc<dyn DoorbellFds>>,
    /// Held across the ioctls of one change, which wait for no thread of this process, so that changes take turns.
    attached: Mutex<Option<IoEventFd>>,
}

impl Doorbell {
    /// A doorbell that nothing rings but [`ring`](Self::ring). `address` is for messages. Takes one descriptor.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(vm: Option<Arc<dyn DoorbellFds>>, address: u64) -> Result<Self, DoorbellError> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| DoorbellError::eventfd(address, source))?;
        Ok(Self { fd: Arc::new(fd), vm, attached: Mutex::new(None) })
    }

    /// The eventfd, non-blocking, for the one who is to be woken.
    #[must_use]
    pub fn eventfd(&self) -> Arc<EventFd> {
        Arc::clone(&self.fd)
    }

    /// Rings. Called by the handler of the register for writes that KVM has not taken.
    pub fn ring(&self) {
        // Fails when 2^64 - 2 rings wait already: one more says nothing.
        let _ = self.fd.write(1);
    }

    /// Has KVM take the writes that match `address`, and no others any more. Without ioeventfds it does nothing.
    ///
    /// KVM cannot move an ioeventfd: for a moment both addresses ring. No write to either is lost or counted twice as long
    /// as the register is on the bus at both, so that what is not taken exits to it. To move a register under load:
    /// `insert` it at the new address, rebind, tell the guest or let its access complete, `remove` it from the old one and
    /// wait.
    ///
    /// # Errors
    /// The new one cannot be attached; the old one is as before.
    pub fn rebind(&self, address: DoorbellAddress) -> Result<(), DoorbellError> {
        let Some(vm) = &self.vm else { return Ok(()) };
        let mut attached = self.lock();
        if attached.as_ref().is_some_and(|old| old.address == address) {
            return Ok(());
        }
        let new = IoEventFd::attach(Arc::clone(vm), address, Arc::clone(&self.fd))?;
        // The old one goes after the new one has come.
        *attached = Some(new);
        Ok(())
    }

    /// Lets all writes exit to the device again.
    pub fn unbind(&self) {
        *self.lock() = None;
    }

    /// Which writes KVM takes, if any.
    #[must_use]
    pub fn address(&self) -> Option<DoorbellAddress> {
        self.lock().as_ref().map(IoEventFd::address)
    }

    fn lock(&self) -> MutexGuard<'_, Option<IoEventFd>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmm_core::fake::{FakeCall, FakeVm};
    use vmm_core::seam::DoorbellSpace;

    use super::*;

    const ADDRESS: DoorbellAddress =
        DoorbellAddress { space: DoorbellSpace::Mmio, address: 0xd000_0010, width: 4, datamatch: None };

    fn at(address: u64) -> DoorbellAddress {
        DoorbellAddress { address, ..ADDRESS }
    }

    fn doorbell(vm: &Arc<FakeVm>) -> Doorbell {
        Doorbell::new(Some(Arc::clone(vm) as Arc<dyn DoorbellFds>), 0).unwrap()
    }

    fn attach(vm: &Arc<FakeVm>, address: DoorbellAddress) -> Result<IoEventFd, DoorbellError> {
        let fd = Doorbell::new(None, 0).unwrap().eventfd();
        IoEventFd::attach(Arc::clone(vm) as Arc<dyn DoorbellFds>, address, fd)
    }

    #[test]
    fn an_ioeventfd_is_attached_and_detached_by_its_lifetime() {
        let vm = Arc::new(FakeVm::default());
        let doorbell = attach(&vm, ADDRESS).unwrap();
        assert_eq!((vm.doorbells(), doorbell.address()), (vec![ADDRESS], ADDRESS));
        drop(doorbell);
        assert_eq!(vm.doorbells(), []);
    }

    #[test]
    fn several_share_an_address_if_a_write_rings_only_one() {
        let vm = Arc::new(FakeVm::default());
        let of = |width, datamatch| DoorbellAddress { width, datamatch, ..ADDRESS };
        let mut kept: Vec<_> = (0..4).map(|queue| attach(&vm, of(4, Some(queue))).unwrap()).collect();
        for width in [1, 2, 8] {
            kept.push(attach(&vm, of(width, None)).unwrap());
        }
        for same in [of(4, Some(3)), of(4, None), of(2, Some(0)), of(0, None)] {
            assert!(matches!(attach(&vm, same), Err(DoorbellError::Exists { .. })), "{same:?}");
        }
        kept.push(attach(&vm, DoorbellAddress { space: DoorbellSpace::Pio, ..of(0, None) }).unwrap());
        assert_eq!(vm.doorbells().len(), kept.len());
    }

    #[test]
    fn a_write_that_the_host_cannot_watch_for_is_refused_before_it_is_asked() {
        let vm = Arc::new(FakeVm::default());
        let of = |address, width, datamatch| DoorbellAddress { address, width, datamatch, ..ADDRESS };
        for bad in [of(0, 3, None), of(0, 16, Some(1)), of(0, 0, Some(1)), of(u64::MAX - 2, 4, None)] {
            assert!(matches!(attach(&vm, bad), Err(DoorbellError::BadShape { .. })), "{bad:?}");
        }
        assert_eq!(vm.calls(), []);
    }

    #[test]
    fn fault_b7_a_refused_ioeventfd_is_a_typed_error_and_is_not_detached() {
        for (errno, is_expected) in [
            (
                libc::EEXIST,
                (|error| matches!(error, DoorbellError::Exists { .. })) as fn(&DoorbellError) -> _,
            ),
            (libc::EBUSY, |error| matches!(error, DoorbellError::Busy { .. })),
            (libc::ENOSPC, |error| matches!(error, DoorbellError::NoSpace { .. })),
            (libc::ENOMEM, |error| matches!(error, DoorbellError::Attach { .. })),
        ] {
            let vm = Arc::new(FakeVm::default());
            vm.fail_call(0, errno);
            assert!(attach(&vm, ADDRESS).is_err_and(|error| is_expected(&error)), "errno {errno}");
            assert_eq!(vm.calls(), [FakeCall::AttachDoorbell(ADDRESS)]);
        }
    }

    #[test]
    fn fault_c1_a_missing_descriptor_is_told_from_other_failures() {
        let error = |errno| DoorbellError::eventfd(0, io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::EMFILE), DoorbellError::NoDescriptor { .. }));
        assert!(matches!(error(libc::ENFILE), DoorbellError::NoDescriptor { .. }));
        assert!(matches!(error(libc::ENOMEM), DoorbellError::EventFd { .. }));
    }

    #[test]
    fn a_doorbell_that_moves_is_attached_before_it_is_detached() {
        let vm = Arc::new(FakeVm::default());
        let doorbell = doorbell(&vm);
        doorbell.rebind(at(0x10)).unwrap();
        doorbell.rebind(at(0x20)).unwrap();
        doorbell.rebind(at(0x20)).unwrap();
        let expected = [
            FakeCall::AttachDoorbell(at(0x10)),
            FakeCall::AttachDoorbell(at(0x20)),
            FakeCall::DetachDoorbell(at(0x10)),
        ];
        assert_eq!((vm.calls(), doorbell.address()), (expected.to_vec(), Some(at(0x20))));
        doorbell.unbind();
        assert_eq!((vm.doorbells(), doorbell.address()), (vec![], None));
    }

    #[test]
    fn a_move_that_fails_leaves_the_doorbell_where_it_is() {
        let vm = Arc::new(FakeVm::default());
        let doorbell = doorbell(&vm);
        doorbell.rebind(at(0x10)).unwrap();
        let _in_the_way = attach(&vm, at(0x20)).unwrap();
        assert!(matches!(doorbell.rebind(at(0x20)), Err(DoorbellError::Exists { address: 0x20, .. })));
        assert_eq!((doorbell.address(), vm.doorbells()), (Some(at(0x10)), vec![at(0x10), at(0x20)]));
    }

    /// Four doorbells that are made, moved and dropped, with one call failing: whichever it is, what is left is what was
    /// there before, or whole.
    #[test]
    fn the_failure_of_any_call_leaves_no_half_doorbell() {
        let life = |vm: &Arc<FakeVm>| -> Result<(), DoorbellError> {
            let doorbells: Vec<_> = (0..4).map(|_| doorbell(vm)).collect();
            for base in [0x1000, 0x2000] {
                for (doorbell, queue) in doorbells.iter().zip(0..) {
                    doorbell.rebind(at(base + 4 * queue))?;
                }
            }
            Ok(())
        };
        let whole = Arc::new(FakeVm::default());
        life(&whole).unwrap();
        for nth in 0..whole.calls().len() {
            let vm = Arc::new(FakeVm::default());
            vm.fail_call(nth, libc::ENOMEM);
            let result = life(&vm);
            // A call that detaches may fail: then the doorbell stays in the table, and nowhere else.
            let detaching = matches!(vm.calls()[nth], FakeCall::DetachDoorbell(_));
            assert_eq!(
                (result.is_ok(), vm.doorbells().len()),
                (detaching, usize::from(detaching)),
                "call {nth}"
            );
        }
    }

    #[test]
    fn rings_of_the_handler_are_counted_without_a_host_that_takes_them() {
        let doorbell = Doorbell::new(None, 0x10).unwrap();
        doorbell.rebind(ADDRESS).unwrap();
        doorbell.ring();
        doorbell.ring();
        assert_eq!((doorbell.eventfd().read().unwrap(), doorbell.address()), (2, None));
    }
}
