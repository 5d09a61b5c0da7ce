//! `Configuration`: the configuration space of one function as a value: registers, and which bits of them software may
//! write (PCI Local Bus 3.0, chapter 6).
//!
//! A write changes the bits that are writable and nothing else happens here: what it means is for [`Function`](super::Function).
//! So sizing a BAR needs no code: the bits below its size are not writable.

use super::bar::{BARS, Bar, BarError};

/// Bytes of configuration space.
pub(super) const SIZE: usize = 256;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
pub(super) const HEADER_TYPE: usize = 0x0e;
const FIRST_BAR: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// What follows the header of type 0.
const FIRST_CAPABILITY: usize = 0x40;

/// In the command register.
const MEMORY_SPACE: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;
/// In the upper byte of the command register: bit 10.
const INTERRUPT_DISABLE: u8 = 1 << 2;
/// In the status register.
const CAPABILITIES_LIST: u8 = 1 << 4;

/// Who a function is, as its driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Vendor id of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Base class, sub-class and programming interface, 8 bits each.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// A capability does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("capability {id:#x} of {length} bytes: {left} bytes of configuration space are left")]
pub struct CapabilityError {
    /// Its id.
    pub id: u8,
    /// Its bytes, with the header of two.
    pub length: usize,
    /// What is left.
    pub left: usize,
}

/// One function's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    registers: [u8; SIZE],
    /// Ones where software may write.
    writable: [u8; SIZE],
    bars: [Option<Bar>; BARS],
    /// The register that names the next capability.
    link: usize,
    /// Where it would be.
    free: usize,
}

impl Configuration {
    /// The registers of a function without BARs and capabilities, after a reset: it decodes nothing.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut new = Self {
            registers: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BARS],
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        let [interface, sub_class, base_class, _] = identity.class.to_le_bytes();
        new.put(VENDOR, &identity.vendor.to_le_bytes());
        new.put(DEVICE, &identity.device.to_le_bytes());
        new.put(REVISION, &[identity.revision]);
        new.put(CLASS, &[interface, sub_class, base_class]);
        new.put(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        new.put(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        new.allow(COMMAND, &[MEMORY_SPACE | BUS_MASTER, INTERRUPT_DISABLE]);
        // No effect; software keeps notes there (sections 6.2.4 and 6.2.2).
        new.allow(CACHE_LINE, &[0xff]);
        new.allow(INTERRUPT_LINE, &[0xff]);
        new
    }

    /// Gives the function `bar` as number `index`, at address 0.
    ///
    /// # Errors
    /// [`BarError::Taken`].
    pub fn add_bar(&mut self, index: usize, bar: Bar) -> Result<(), BarError> {
        let upper_of = |lower: Option<usize>| {
            let lower = lower.and_then(|lower| self.bars.get(lower).copied().flatten());
            lower.is_some_and(|lower| lower.register_count() == 2)
        };
        let end = index.saturating_add(bar.register_count());
        let is_free = self.bars.get(index..end).is_some_and(|bars| bars.iter().all(Option::is_none));
        let place = self.bars.get(index);
        if place.is_none() || !is_free || upper_of(index.checked_sub(1)) {
            return Err(BarError::Taken(index));
        }
        if let Some(place) = self.bars.get_mut(index) {
            *place = Some(bar);
        }
        let length = bar_length(bar);
        self.put(bar_register(index), bar.kind().to_le_bytes().get(..length).unwrap_or_default());
        self.allow(bar_register(index), bar.writable().to_le_bytes().get(..length).unwrap_or_default());
        Ok(())
    }

    /// Adds the capability `id` with what follows its header; `writable` has ones where software may write. Returns where
    /// it is.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, CapabilityError> {
        let length = body.len().saturating_add(2);
        let left = SIZE.saturating_sub(self.free);
        let at = u8::try_from(self.free).ok().filter(|_| length <= left);
        let at = at.ok_or(CapabilityError { id, length, left })?;
        self.put(STATUS, &[CAPABILITIES_LIST]);
        self.put(self.link, &[at]);
        self.put(self.free, &[id, 0]);
        self.put(self.free.saturating_add(2), body);
        self.allow(self.free.saturating_add(2), writable);
        self.link = self.free.saturating_add(1);
        self.free = self.free.saturating_add(length).next_multiple_of(4);
        Ok(at)
    }

    /// Where the first capability `id` is.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<usize> {
        let next = |at: usize| self.get(at).map(|[at]| usize::from(at)).filter(|at| *at != 0);
        let mut places = std::iter::successors(next(CAPABILITIES), |at| next(at.saturating_add(1)));
        places.find(|at| self.get(*at) == Some([id]))
    }

    /// Reads from `offset` on. What is beyond the space stays as it was in `data`.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(self.registers.iter().skip(offset)) {
            *byte = *register;
        }
    }

    /// Writes from `offset` on: the bits that are writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let registers = self.registers.iter_mut().zip(&self.writable);
        for ((register, writable), byte) in registers.skip(offset).zip(data) {
            *register = *register & !writable | byte & writable;
        }
    }

    /// What is at `offset`, whole or not at all.
    #[must_use]
    pub fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.registers.get(offset..)?.first_chunk().copied()
    }

    /// Sets registers, also those that software cannot write.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (register, byte) in self.registers.iter_mut().skip(offset).zip(bytes) {
            *register = *byte;
        }
    }

    /// Lets software write bits.
    pub(super) fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (writable, bits) in self.writable.iter_mut().skip(offset).zip(bits) {
            *writable = *bits;
        }
    }

    /// BAR `index`, if there is one.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// The address in BAR `index`, whether or not the function decodes it.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let mut value = [0; 8];
        self.read(bar_register(index), value.get_mut(..bar_length(bar))?);
        Some(u64::from_le_bytes(value) & bar.writable())
    }

    /// Sets the address in BAR `index`, as firmware does. Bits that are not writable stay.
    pub fn set_bar_address(&mut self, index: usize, address: u64) {
        if let Some(bar) = self.bar(index) {
            self.write(bar_register(index), address.to_le_bytes().get(..bar_length(bar)).unwrap_or_default());
        }
    }

    /// Whether the function may access memory and send messages (section 6.2.2).
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.get(COMMAND).is_some_and(|[command]| command & BUS_MASTER != 0)
    }

    /// Which addresses the function decodes: the first one of each BAR if memory space is on in the command register.
    #[must_use]
    pub fn decoded(&self) -> [Option<u64>; BARS] {
        let is_on = self.get(COMMAND).is_some_and(|[command]| command & MEMORY_SPACE != 0);
        std::array::from_fn(|index| self.bar_address(index).filter(|_| is_on))
    }
}

fn bar_register(index: usize) -> usize {
    FIRST_BAR.saturating_add(index.saturating_mul(4))
}

fn bar_length(bar: Bar) -> usize {
    bar.register_count().saturating_mul(4)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
