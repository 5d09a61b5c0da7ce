//! `Chain`: the buffers of one request, walked from the descriptor table with every field checked and read once.
//!
//! virtio 1.3, section 2.7.5. The walk ends after as many descriptors as the queue has, whatever the driver wrote and
//! writes meanwhile; the descriptor that leads to an indirect table is not counted, those in the table are.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vmm_memory::GuestMemory;

use super::buffers::{Buffer, Buffers};
use super::setup::DESCRIPTOR;

/// Descriptors that are no chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor is not in its table.
    #[error("descriptor {index} is beyond a table of {entries}")]
    OutOfTable {
        /// Its index.
        index: u16,
        /// Number of descriptors in the table.
        entries: u16,
    },
    /// More descriptors than the queue has: a loop, or a chain that no queue of this size may have.
    #[error("more than {limit} descriptors")]
    TooLong {
        /// The size of the queue.
        limit: u16,
    },
    /// An indirect table though VIRTIO_F_INDIRECT_DESC was not negotiated.
    #[error("an indirect table was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect table inside one.
    #[error("an indirect table in an indirect table")]
    NestedIndirect,
    /// A descriptor that leads to an indirect table and goes on.
    #[error("a descriptor both leads to an indirect table and has a next one")]
    IndirectAndNext,
    /// An indirect table that is empty, or no whole number of descriptors, or has more than a chain can name.
    #[error("an indirect table of {length} bytes")]
    IndirectLength {
        /// Its length in bytes.
        length: u32,
    },
    /// A readable buffer after a writable one (virtio 1.3, section 2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// More than 2^32 - 1 bytes.
    #[error("the buffers are longer than 2^32 - 1 bytes together")]
    TooManyBytes,
    /// A buffer that is not in guest RAM from its first byte to its last.
    #[error("the buffer at {address:#x}, {length} bytes, is not in guest RAM")]
    NotRam {
        /// Where it is.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// A descriptor table that is not in guest RAM.
    #[error("descriptor {index} cannot be read")]
    Table {
        /// Index of the descriptor.
        index: u16,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
}

/// The buffers of one request. It belongs to the queue that gave it out, and goes back to it.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// The readable ones come first.
    buffers: Vec<Buffer>,
    /// How many of them are readable.
    readable: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Chain {
    /// The index of its first descriptor, which no other chain in flight has.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver has written for the device.
    #[must_use]
    pub fn readable(&self) -> Buffers<'_> {
        let readable = self.buffers.get(..self.readable).unwrap_or_default();
        Buffers::new(readable, self.readable_bytes)
    }

    /// What the device writes for the driver.
    #[must_use]
    pub fn writable(&self) -> Buffers<'_> {
        let writable = self.buffers.get(self.readable..).unwrap_or_default();
        Buffers::new(writable, self.writable_bytes)
    }

    pub(super) fn into_buffers(self) -> Vec<Buffer> {
        self.buffers
    }

    fn add(&mut self, descriptor: &Descriptor, memory: &GuestMemory) -> Result<(), ChainError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        let total = self.readable_bytes.checked_add(self.writable_bytes);
        total.and_then(|total| total.checked_add(length)).ok_or(ChainError::TooManyBytes)?;
        if length != 0 {
            check_buffer(address, length, memory)?;
            self.buffers.push(Buffer { address, length });
        }
        if descriptor.is_write_only() {
            self.writable_bytes = self.writable_bytes.saturating_add(length);
        } else {
            self.readable = self.buffers.len();
            self.readable_bytes = self.readable_bytes.saturating_add(length);
        }
        Ok(())
    }
}

fn check_buffer(address: GuestAddress, length: u32, memory: &GuestMemory) -> Result<(), ChainError> {
    let wraps = address.checked_add(length.into()).is_none();
    if wraps || !memory.check_range(address, length as usize) {
        return Err(ChainError::NotRam { address: address.0, length });
    }
    Ok(())
}

/// A table of descriptors.
#[derive(Clone, Copy)]
pub(super) struct Table {
    start: GuestAddress,
    entries: u16,
}

impl Table {
    /// The table of a queue.
    pub(super) fn direct(start: GuestAddress, entries: u16) -> Self {
        Self { start, entries }
    }

    /// The table to which `descriptor` leads. Whether it can be written does not matter (section 2.7.5.3.2).
    fn indirect(descriptor: &Descriptor) -> Result<Self, ChainError> {
        let length = descriptor.len();
        let bad = ChainError::IndirectLength { length };
        let whole = u64::from(length).is_multiple_of(DESCRIPTOR) && length != 0;
        let entries = u16::try_from(u64::from(length) / DESCRIPTOR).ok().filter(|_| whole).ok_or(bad)?;
        Ok(Self { start: descriptor.addr(), entries })
    }

    /// One read of the whole descriptor.
    fn read(&self, index: u16, memory: &GuestMemory) -> Result<Descriptor, ChainError> {
        let entries = self.entries;
        if index >= entries {
            return Err(ChainError::OutOfTable { index, entries });
        }
        let offset = DESCRIPTOR.saturating_mul(index.into());
        let address = self.start.checked_add(offset).ok_or(GuestMemoryError::GuestAddressOverflow);
        address
            .and_then(|address| memory.read_obj(address))
            .map_err(|source| ChainError::Table { index, source })
    }
}

/// What a walk is about.
pub(super) struct Walk<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) table: Table,
    /// Most descriptors of a chain.
    pub(super) limit: u16,
    /// Whether indirect tables were negotiated.
    pub(super) indirect: bool,
}

impl Walk<'_> {
    /// The chain that begins at `head`; its buffers are put into `buffers`.
    pub(super) fn from(self, head: u16, mut buffers: Vec<Buffer>) -> Result<Chain, ChainError> {
        buffers.clear();
        let mut chain = Chain { head, buffers, readable: 0, readable_bytes: 0, writable_bytes: 0 };
        let (mut table, mut index) = (self.table, head);
        let (mut nested, mut writable, mut count) = (false, false, 0_u16);
        loop {
            let descriptor = table.read(index, self.memory)?;
            if descriptor.refers_to_indirect_table() {
                self.check_indirect(&descriptor, nested)?;
                (table, index, nested) = (Table::indirect(&descriptor)?, 0, true);
                continue;
            }
            if count >= self.limit {
                return Err(ChainError::TooLong { limit: self.limit });
            }
            count = count.saturating_add(1);
            if writable && !descriptor.is_write_only() {
                return Err(ChainError::ReadableAfterWritable);
            }
            writable = descriptor.is_write_only();
            chain.add(&descriptor, self.memory)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    fn check_indirect(&self, descriptor: &Descriptor, nested: bool) -> Result<(), ChainError> {
        match () {
            () if !self.indirect => Err(ChainError::IndirectNotNegotiated),
            () if nested => Err(ChainError::NestedIndirect),
            () if descriptor.has_next() => Err(ChainError::IndirectAndNext),
            () => Ok(()),
        }
    }
}
