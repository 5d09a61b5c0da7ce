//! `VcpuExit`: why `KVM_RUN` returned, decoded in place.
//!
//! Fields by the kernel's `Documentation/virt/kvm/api.rst`, section 5, "The kvm_run structure". Data of port and MMIO
//! accesses is borrowed from the run page: a handler fills it where the kernel will read it.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_2 as FailEntry, kvm_run__bindgen_ty_1__bindgen_ty_4 as Io,
    kvm_run__bindgen_ty_1__bindgen_ty_6 as Mmio, kvm_run__bindgen_ty_1__bindgen_ty_13 as Internal,
};

use crate::run_page::RunPage;

/// Where the union of exit data starts in `kvm_run`.
const DATA: usize = offset_of!(kvm_run, __bindgen_anon_1);

/// Why a vCPU left the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum VcpuExit<'a> {
    /// The guest reads `data.len() / size` elements of `size` bytes from one port (more than one: `rep ins`).
    PortRead {
        /// Port number.
        port: u16,
        /// Bytes of an element: 1, 2 or 4.
        size: usize,
        /// To be filled; what is left alone the guest reads as it is.
        data: &'a mut [u8],
    },
    /// The guest writes `data.len() / size` elements of `size` bytes to one port (more than one: `rep outs`).
    PortWrite {
        /// Port number.
        port: u16,
        /// Bytes of an element: 1, 2 or 4.
        size: usize,
        /// What the guest writes.
        data: &'a [u8],
    },
    /// The guest reads memory that has no slot.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled; 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes memory that has no slot or a read-only one.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What the guest writes; 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest has ended an interrupt that an I/O APIC in user space may have sent.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
    /// The vCPU cannot go on before somebody has read its dirty ring.
    DirtyRingFull,
    /// A signal arrived and KVM reported it as an exit.
    Interrupted,
    /// The guest can execute nothing more: a triple fault.
    Shutdown,
    /// The processor refused to enter the guest.
    FailEntry {
        /// The processor's reason, architecture specific.
        reason: u64,
        /// The host CPU it happened on.
        cpu: u32,
    },
    /// KVM cannot go on, for example because its emulator lacks an instruction.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`; 1 is an emulation failure.
        suberror: u32,
        /// Details by suberror.
        data: [u64; 2],
    },
    /// An exit that nothing in this program asked KVM for, by its number.
    Unexpected(u32),
}

impl<'a> VcpuExit<'a> {
    /// Decodes what `KVM_RUN` left on `page`.
    #[inline]
    pub fn decode(page: &'a mut RunPage) -> Self {
        let reason: u32 = page.field(offset_of!(kvm_run, exit_reason));
        match reason {
            KVM_EXIT_IO => Self::port(page),
            KVM_EXIT_MMIO => Self::mmio(page),
            // The union is `eoi` then, whose only member is the vector.
            KVM_EXIT_IOAPIC_EOI => Self::EndOfInterrupt { vector: page.field(DATA) },
            KVM_EXIT_DIRTY_RING_FULL => Self::DirtyRingFull,
            KVM_EXIT_INTR => Self::Interrupted,
            KVM_EXIT_SHUTDOWN => Self::Shutdown,
            KVM_EXIT_FAIL_ENTRY => Self::FailEntry {
                reason: page.field(DATA + offset_of!(FailEntry, hardware_entry_failure_reason)),
                cpu: page.field(DATA + offset_of!(FailEntry, cpu)),
            },
            KVM_EXIT_INTERNAL_ERROR => {
                let count: u32 = page.field(DATA + offset_of!(Internal, ndata));
                let word = |index: usize| {
                    if index < count as usize {
                        page.field(DATA + offset_of!(Internal, data) + 8 * index)
                    } else {
                        0
                    }
                };
                let data = [word(0), word(1)];
                Self::InternalError { suberror: page.field(DATA + offset_of!(Internal, suberror)), data }
            }
            other => Self::Unexpected(other),
        }
    }

    #[inline]
    fn port(page: &'a mut RunPage) -> Self {
        let direction: u8 = page.field(DATA + offset_of!(Io, direction));
        let size = usize::from(page.field::<u8>(DATA + offset_of!(Io, size)));
        let port: u16 = page.field(DATA + offset_of!(Io, port));
        let count: u32 = page.field(DATA + offset_of!(Io, count));
        let offset: u64 = page.field(DATA + offset_of!(Io, data_offset));
        let data = usize::try_from(offset).ok().and_then(|offset| page.bytes(offset, size * count as usize));
        match data {
            Some(data) if u32::from(direction) == KVM_EXIT_IO_OUT => Self::PortWrite { port, size, data },
            Some(data) => Self::PortRead { port, size, data },
            None => Self::Unexpected(KVM_EXIT_IO),
        }
    }

    #[inline]
    fn mmio(page: &'a mut RunPage) -> Self {
        let address: u64 = page.field(DATA + offset_of!(Mmio, phys_addr));
        let length: u32 = page.field(DATA + offset_of!(Mmio, len));
        let is_write: u8 = page.field(DATA + offset_of!(Mmio, is_write));
        match page.bytes(DATA + offset_of!(Mmio, data), (length as usize).min(8)) {
            Some(data) if is_write != 0 => Self::MmioWrite { address, data },
            Some(data) => Self::MmioRead { address, data },
            None => Self::Unexpected(KVM_EXIT_MMIO),
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::fake::Script;

    #[test]
    fn a_string_access_carries_all_its_elements() {
        let mut page = RunPage::anonymous().unwrap();
        Script::PortRead { port: 0x60, size: 2, count: 3 }.write_to(&mut page);
        match VcpuExit::decode(&mut page) {
            VcpuExit::PortRead { port: 0x60, size: 2, data } => assert_eq!(data.len(), 6),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_handler_fills_in_is_on_the_page() {
        let mut page = RunPage::anonymous().unwrap();
        Script::MmioRead { address: 0xd000_0000, length: 4 }.write_to(&mut page);
        match VcpuExit::decode(&mut page) {
            VcpuExit::MmioRead { address: 0xd000_0000, data } => data.copy_from_slice(&[1, 2, 3, 4]),
            other => panic!("{other:?}"),
        }
        assert_eq!(page.bytes(DATA + offset_of!(Mmio, data), 4).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn port_data_outside_the_page_is_not_followed() {
        let mut page = RunPage::anonymous().unwrap();
        Script::PortRead { port: 1, size: 4, count: u32::MAX }.write_to(&mut page);
        assert_eq!(VcpuExit::decode(&mut page), VcpuExit::Unexpected(KVM_EXIT_IO));
    }

    #[test]
    fn an_end_of_interrupt_carries_its_vector() {
        let mut page = RunPage::anonymous().unwrap();
        Script::EndOfInterrupt { vector: 0x51 }.write_to(&mut page);
        assert_eq!(VcpuExit::decode(&mut page), VcpuExit::EndOfInterrupt { vector: 0x51 });
    }

    #[test]
    fn an_unknown_reason_is_reported_by_number() {
        let mut page = RunPage::anonymous().unwrap();
        Script::Other(999).write_to(&mut page);
        assert_eq!(VcpuExit::decode(&mut page), VcpuExit::Unexpected(999));
    }
}
