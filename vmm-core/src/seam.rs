//! The seams: one small trait for each family of VM ioctls.
//!
//! [`Vm`](crate::Vm) implements them with KVM, `FakeVm` (feature `test-util`) by recording the calls and failing
//! where a test wants it. What is built on the seams (slots, doorbells, interrupt lines) is RAII: creating registers,
//! dropping deregisters.

use std::sync::Weak;

use vmm_sys_util::eventfd::EventFd;

use crate::irq::MsiMessage;
use crate::{DirtyMechanism, IoctlError, RingCollector, RingItem};

/// A KVM memory slot: host memory that the guest sees at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySlot {
    /// Slot number, below `KVM_CAP_NR_MEMSLOTS`.
    pub id: u32,
    /// Guest-physical address of the first byte, a multiple of the page size.
    pub guest_address: u64,
    /// Length in bytes, a multiple of the page size; 0 deletes the slot.
    pub size: u64,
    /// Host-virtual address of the first byte, a multiple of the page size.
    pub host_address: u64,
    /// Guest writes become MMIO exits.
    pub read_only: bool,
    /// KVM tracks the pages that the guest writes to. May change while the slot exists.
    pub log_dirty: bool,
}

/// The memory slots of a VM (`KVM_SET_USER_MEMORY_REGION`).
pub trait MemorySlots: Send + Sync {
    /// How many slots there can be; their numbers are below (`KVM_CAP_NR_MEMSLOTS`).
    fn slot_limit(&self) -> u32;

    /// Creates, moves or (with size 0) deletes one slot.
    ///
    /// # Safety
    /// From the moment of the call until the slot is deleted or the VM is gone, the guest reads and writes the host
    /// memory that the slot names: it must stay mapped and must hold nothing but guest RAM.
    #[expect(unsafe_code, reason = "the guest writes to the memory behind a slot")]
    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError>;
}

/// What KVM tracks of slots with [`log_dirty`](MemorySlot::log_dirty).
pub trait DirtyLog: MemorySlots {
    /// How it does so.
    fn dirty_mechanism(&self) -> DirtyMechanism;
    /// The pages of `slot` that were written to, a bit each (`KVM_GET_DIRTY_LOG`). They are clean then, unless the mechanism
    /// is [`DirtyMechanism::ManualProtect`]. Not with rings.
    fn dirty_log(&self, slot: &MemorySlot) -> Result<Vec<u64>, IoctlError>;
    /// Makes the pages of `slot` clean that have a bit in `pages`, whose first bit is page `first`, a multiple of 64
    /// (`KVM_CLEAR_DIRTY_LOG`). Bits beyond the slot mean nothing.
    fn clear_dirty_log(&self, slot: &MemorySlot, first: u64, pages: &[u64]) -> Result<(), IoctlError>;
    /// Calls `each` with all that is in the rings, empties the rings and has the pages tracked again
    /// (`KVM_RESET_DIRTY_RINGS`). `each` must not look at a page.
    fn collect_rings(&self, each: &mut dyn FnMut(RingItem)) -> Result<(), IoctlError>;
    /// Says who is to be called when a vCPU cannot go on because its ring is full.
    fn set_ring_collector(&self, collector: Weak<dyn RingCollector>);
}

/// Which guest writes ring a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DoorbellAddress {
    /// The address space the write goes to.
    pub space: DoorbellSpace,
    /// Port number or guest-physical address.
    pub address: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8, or 0 for any.
    pub width: u32,
    /// If given, only a write of this value rings.
    pub datamatch: Option<u64>,
}

/// The address space of a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellSpace {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

/// Doorbells (`KVM_IOEVENTFD`): guest writes that signal an eventfd inside the kernel.
pub trait DoorbellFds: Send + Sync {
    /// Signals `fd` at each guest write that matches `address`.
    fn attach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError>;
    /// Undoes [`attach_doorbell`](Self::attach_doorbell) with the same arguments.
    fn detach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError>;
}

/// Interrupt descriptors (`KVM_IRQFD`): eventfd signals that raise an interrupt inside the kernel.
pub trait IrqFds: Send + Sync {
    /// Pulses `gsi` at each signal of `fd`; what was signalled before counts.
    fn attach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError>;
    /// Raises `gsi` at each signal of `fd`, until the guest has acknowledged the interrupt: then lowers it and signals
    /// `resample`.
    fn attach_resampled_irqfd(&self, gsi: u32, fd: &EventFd, resample: &EventFd) -> Result<(), IoctlError>;
    /// Undoes the attachment of `fd` to `gsi`, of either kind. Signals that wait in `fd` are lost.
    fn detach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError>;
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqTarget {
    /// A pin of KVM's I/O APIC.
    Ioapic {
        /// 0 to 23.
        pin: u32,
    },
    /// An input of one of KVM's 8259s.
    Pic {
        /// Of the second one.
        second: bool,
        /// 0 to 7.
        input: u32,
    },
    /// A message to the local APICs.
    Message(MsiMessage),
}

/// One entry of KVM's routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqRoute {
    /// The global system interrupt.
    pub gsi: u32,
    /// Where it leads. A GSI may have two entries, one to an I/O APIC and one to an 8259.
    pub target: IrqTarget,
}

/// The routing table (`KVM_SET_GSI_ROUTING`).
pub trait IrqRoutes: Send + Sync {
    /// Replaces the whole table. Irqfds stay attached and follow their GSI.
    fn set_routes(&self, routes: &[IrqRoute]) -> Result<(), IoctlError>;
}

/// Interrupts by ioctl, for hosts without irqfd, and what the in-kernel controllers say about them.
pub trait IrqInjection: Send + Sync {
    /// Raises or lowers `gsi` (`KVM_IRQ_LINE`). Does nothing, and says it was done, with the split irqchip.
    fn set_line(&self, gsi: u32, high: bool) -> Result<(), IoctlError>;
    /// Delivers a message (`KVM_SIGNAL_MSI`).
    fn signal_message(&self, message: MsiMessage) -> Result<(), IoctlError>;
    /// Whether the guest has masked `pin` of the in-kernel I/O APIC, as it is after a reset. A pin that does not exist
    /// counts as masked.
    fn ioapic_pin_masked(&self, pin: u32) -> Result<bool, IoctlError>;
}

/// All that interrupts need of a VM.
pub trait InterruptVm: IrqFds + IrqRoutes + IrqInjection {}

impl<V: IrqFds + IrqRoutes + IrqInjection> InterruptVm for V {}
