//! `Bar`: a base address register as a value: which of its bits are address, and how many addresses it decodes (PCI Local
//! Bus 3.0, section 6.2.5.1).

/// Base address registers of a function; one of 64 bits takes two.
pub const BARS: usize = 6;

/// The smallest memory BAR: bits 3..0 say what kind it is.
const LEAST: u64 = 16;

const IS_64_BITS: u64 = 0b100;
const IS_PREFETCHABLE: u64 = 0b1000;

/// Why there is no such BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Not a power of two, less than 16, or more than half of what the register can address.
    #[error("a BAR of {width:?} cannot have {size:#x} bytes")]
    Size {
        /// Its bytes.
        size: u64,
        /// Its width.
        width: BarWidth,
    },
    /// The function has no such register, or it belongs to another BAR.
    #[error("BAR {0} is not free")]
    Taken(usize),
}

/// How many address bits a BAR has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarWidth {
    /// One register, addresses below 4 GiB.
    Bits32,
    /// Two registers, the lower half first.
    Bits64,
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    size: u64,
    width: BarWidth,
    is_prefetchable: bool,
}

impl Bar {
    /// A BAR of `size` bytes that are registers: reading them may have an effect.
    ///
    /// # Errors
    /// [`BarError::Size`].
    pub fn registers(size: u64, width: BarWidth) -> Result<Self, BarError> {
        Self::new(size, width, false)
    }

    /// A BAR of `size` bytes that are memory: reading them has no effect.
    ///
    /// # Errors
    /// [`BarError::Size`].
    pub fn memory(size: u64, width: BarWidth) -> Result<Self, BarError> {
        Self::new(size, width, true)
    }

    fn new(size: u64, width: BarWidth, is_prefetchable: bool) -> Result<Self, BarError> {
        let most = match width {
            BarWidth::Bits32 => 1 << 31,
            BarWidth::Bits64 => 1 << 63,
        };
        if size.is_power_of_two() && (LEAST..=most).contains(&size) {
            Ok(Self { size, width, is_prefetchable })
        } else {
            Err(BarError::Size { size, width })
        }
    }

    /// How many addresses it decodes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// How many registers it takes.
    #[must_use]
    pub fn register_count(self) -> usize {
        match self.width {
            BarWidth::Bits32 => 1,
            BarWidth::Bits64 => 2,
        }
    }

    /// The bits that software may write: written with ones they read back as the size.
    pub(super) fn writable(self) -> u64 {
        let address = self.size.wrapping_neg();
        match self.width {
            BarWidth::Bits32 => address & 0xffff_ffff,
            BarWidth::Bits64 => address,
        }
    }

    /// The bits that say what kind it is.
    pub(super) fn kind(self) -> u64 {
        let width = match self.width {
            BarWidth::Bits32 => 0,
            BarWidth::Bits64 => IS_64_BITS,
        };
        width | if self.is_prefetchable { IS_PREFETCHABLE } else { 0 }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_power_of_two_that_leaves_room_for_the_kind() {
        for (size, width, is_good) in [
            (0, BarWidth::Bits32, false),
            (8, BarWidth::Bits32, false),
            (16, BarWidth::Bits32, true),
            (0x1800, BarWidth::Bits64, false),
            (1 << 31, BarWidth::Bits32, true),
            (1 << 32, BarWidth::Bits32, false),
            (1 << 32, BarWidth::Bits64, true),
            (1 << 63, BarWidth::Bits64, true),
        ] {
            assert_eq!(Bar::registers(size, width).is_ok(), is_good, "{size:#x} {width:?}");
        }
    }

    #[test]
    fn the_writable_bits_are_the_address_and_no_others() {
        let of = |size, width| Bar::memory(size, width).unwrap();
        assert_eq!(of(0x4000, BarWidth::Bits32).writable(), 0xffff_c000);
        assert_eq!(of(0x4000, BarWidth::Bits64).writable(), 0xffff_ffff_ffff_c000);
        assert_eq!(of(1 << 40, BarWidth::Bits64).writable(), 0xffff_ff00_0000_0000);
        assert_eq!((of(16, BarWidth::Bits32).kind(), of(16, BarWidth::Bits64).kind()), (0b1000, 0b1100));
    }
}
