//! `Driver`: one split virtqueue from the driver's side.
#![expect(
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "for tests, which fail by a panic"
)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_memory::AddressSpace;

use crate::virtio::queue::{Queue, QueueState};

/// Bytes from the start of a driver's memory to its buffers: room for the rings of the largest queue that tests use.
const BUFFERS: u64 = 0x1_0000;

/// Flags of a descriptor.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes the buffer.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A request that was made available.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its first descriptor.
    pub head: u16,
    /// Addresses and lengths of its writable buffers.
    pub writable: Vec<(u64, u32)>,
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The first descriptor of the chain.
    pub head: u32,
    /// How many bytes the device says it has written.
    pub written: u32,
}

/// A driver of one queue. It never looks whether descriptors are free: a test makes no more requests than the queue has
/// room for, or means to.
pub struct Driver {
    memory: Arc<AddressSpace>,
    setup: QueueState,
    available: u16,
    used: u16,
    next_descriptor: u16,
    next_buffer: u64,
}

impl Driver {
    /// The driver of queue `index` of `size` descriptors, whose rings and buffers are at `base` and after it.
    #[must_use]
    pub fn new(memory: &Arc<AddressSpace>, index: usize, size: u16, base: u64) -> Self {
        let table = u64::from(size) * 16;
        let available = table + (6 + 2 * u64::from(size)).next_multiple_of(16);
        assert!(available + 6 + 8 * u64::from(size) <= BUFFERS, "no room for a queue of {size}");
        let mut setup = QueueState::new(index, size);
        setup.descriptor_table = base;
        setup.available_ring = base + table;
        setup.used_ring = base + available;
        let memory = Arc::clone(memory);
        Self { memory, setup, available: 0, used: 0, next_descriptor: 0, next_buffer: base + BUFFERS }
    }

    /// The same with indices that begin at `index`, as of a queue that was in use before.
    #[must_use]
    pub fn starting_at(mut self, index: u16) -> Self {
        self.setup.next_available = index;
        self.setup.next_used = index;
        self.available = index;
        self.used = index;
        self.set_available_index(index);
        self.store(self.setup.used_ring + 2, index);
        self
    }

    /// How the queue is set up.
    #[must_use]
    pub fn setup(&self) -> QueueState {
        self.setup
    }

    /// The device's side of the queue, with `features` negotiated.
    #[must_use]
    pub fn queue(&self, features: u64) -> Queue {
        Queue::new(&self.setup, features, &self.memory.memory()).expect("a queue that can be")
    }

    /// Makes a request available: one descriptor a buffer, the readable ones first and with these contents, the writable ones
    /// of these lengths.
    pub fn submit(&mut self, readable: &[&[u8]], writable: &[u32]) -> Request {
        let (buffers, request) = self.lend(readable, writable);
        let head = self.next_descriptor;
        let size = self.setup.size;
        for (at, &(address, length, flags)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % size;
            let next = if at + 1 < buffers.len() { NEXT } else { 0 };
            self.set_descriptor(index, Descriptor::new(address, length, flags | next, (index + 1) % size));
        }
        self.make_available(head);
        Request { head, ..request }
    }

    /// As [`submit`](Self::submit), with an indirect table.
    pub fn submit_indirect(&mut self, readable: &[&[u8]], writable: &[u32]) -> Request {
        let (buffers, request) = self.lend(readable, writable);
        let table = self.allocate(16 * buffers.len() as u64);
        for (at, &(address, length, flags)) in buffers.iter().enumerate() {
            let next = if at + 1 < buffers.len() { NEXT } else { 0 };
            let descriptor = Descriptor::new(address, length, flags | next, at as u16 + 1);
            self.write_obj(table + 16 * at as u64, descriptor);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.setup.size;
        self.set_descriptor(head, Descriptor::new(table, 16 * buffers.len() as u32, INDIRECT, 0));
        self.make_available(head);
        Request { head, ..request }
    }

    /// Buffers with their flags.
    fn lend(&mut self, readable: &[&[u8]], writable: &[u32]) -> (Vec<(u64, u32, u16)>, Request) {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.allocate(data.len() as u64);
            self.write(address, data);
            buffers.push((address, data.len() as u32, 0));
        }
        let mut lent = Vec::new();
        for &length in writable {
            let address = self.allocate(length.into());
            buffers.push((address, length, WRITE));
            lent.push((address, length));
        }
        (buffers, Request { head: 0, writable: lent })
    }

    /// Fresh memory of the driver.
    pub fn allocate(&mut self, length: u64) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += length.next_multiple_of(16);
        address
    }

    /// Makes the chain of `head` available.
    pub fn make_available(&mut self, head: u16) {
        self.set_available_entry(self.available, head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// The next chain that the device has used, if there is one.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used == self.used_index() {
            return None;
        }
        let slot = u64::from(self.used % self.setup.size);
        self.used = self.used.wrapping_add(1);
        let element = self.setup.used_ring + 4 + 8 * slot;
        let [head, written] = [0, 4].map(|offset| {
            u32::from_le(
                self.memory.memory().read_obj(GuestAddress(element + offset)).expect("the used ring"),
            )
        });
        Some(Used { head, written })
    }

    /// Whether a driver that has just made chains available, the index having been `before`, has to notify.
    #[must_use]
    pub fn must_notify(&self, before: u16, event_idx: bool) -> bool {
        fence(Ordering::SeqCst);
        if event_idx {
            let event = self.available_event();
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// Asks for an interrupt when the next chain is used, in both ways; whether one is used already, so that none may come.
    #[must_use]
    pub fn ask_for_interrupt(&self) -> bool {
        self.set_available_flags(0);
        self.set_used_event(self.used);
        fence(Ordering::SeqCst);
        self.used_index() != self.used
    }

    /// The driver's index.
    #[must_use]
    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// Writes a descriptor of the queue's table.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_obj(self.setup.descriptor_table + 16 * u64::from(index), descriptor);
    }

    /// Writes the entry of the available ring for an index.
    pub fn set_available_entry(&self, index: u16, head: u16) {
        let slot = u64::from(index % self.setup.size);
        self.store(self.setup.available_ring + 4 + 2 * slot, head);
    }

    /// Writes the available index, and nothing else.
    pub fn set_available_index(&self, index: u16) {
        self.store(self.setup.available_ring + 2, index);
    }

    /// Writes the flags of the available ring.
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.setup.available_ring, flags);
    }

    /// Writes `used_event`.
    pub fn set_used_event(&self, event: u16) {
        self.store(self.setup.available_ring + 4 + 2 * u64::from(self.setup.size), event);
    }

    /// Reads the used index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.load(self.setup.used_ring + 2)
    }

    /// Reads the flags of the used ring.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.load(self.setup.used_ring)
    }

    /// Reads `avail_event`.
    #[must_use]
    pub fn available_event(&self) -> u16 {
        self.load(self.setup.used_ring + 4 + 8 * u64::from(self.setup.size))
    }

    /// Bytes of guest memory.
    #[must_use]
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.memory().read_slice(&mut data, GuestAddress(address)).expect("guest RAM");
        data
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.memory().write_slice(data, GuestAddress(address)).expect("guest RAM");
    }

    /// Writes a descriptor anywhere.
    pub fn write_obj(&self, address: u64, descriptor: Descriptor) {
        self.memory.memory().write_obj(descriptor, GuestAddress(address)).expect("guest RAM");
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .memory()
            .store(value.to_le(), GuestAddress(address), Ordering::Release)
            .expect("guest RAM");
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(self.memory.memory().load(GuestAddress(address), Ordering::Acquire).expect("guest RAM"))
    }
}
