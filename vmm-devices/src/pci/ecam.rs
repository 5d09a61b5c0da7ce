//! `Ecam`: configuration space as memory (PCI Express 5.0, section 7.2.2), of one bus.

use std::sync::Arc;

use vmm_core::Deferred;

use super::root::{PciAddress, PciRoot};
use crate::BusDevice;

/// Bytes of a function. Those after the first 256 are none of a conventional function's.
const FUNCTION: usize = 4096;

/// The window. An access of any width at any offset is one to each function that it touches.
pub struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// Bytes of the window: 256 functions.
    pub const LENGTH: u64 = 256 * FUNCTION as u64;

    /// The window to the functions of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self(root)
    }
}

/// Function and register at `offset`, and how many bytes there are to the end of the function.
fn target(offset: u64) -> (PciAddress, usize, usize) {
    let register = (offset & 0xfff) as usize;
    (PciAddress::from_bits((offset >> 12 & 0xff) as u8), register, FUNCTION.wrapping_sub(register))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (address, register, left) = target(offset);
        match data.split_at_mut_checked(left) {
            Some((head, tail)) if !tail.is_empty() => {
                self.0.read(address, register, head);
                self.read(offset.saturating_add(left as u64), tail);
            }
            _ => self.0.read(address, register, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Nobody can wait for it here; buses call the other one.
        drop(self.write_deferred(offset, data));
    }

    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        let (address, register, left) = target(offset);
        match data.split_at_checked(left) {
            Some((head, tail)) if !tail.is_empty() => {
                let deferred = self.0.write(address, register, head);
                crate::bus::both(deferred, self.write_deferred(offset.saturating_add(left as u64), tail))
            }
            _ => self.0.write(address, register, data),
        }
    }
}
