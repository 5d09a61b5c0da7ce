//! `Flash`: the place of a PC's firmware, the end of the address space of 32-bit code.

use crate::BusDevice;

/// A flash chip without firmware: it reads as zeros and cannot be written.
///
/// Programs that were made for other monitors (kvm-unit-tests) take these addresses for readable, and for zero.
pub struct Flash;

impl BusDevice for Flash {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_zeros_whatever_is_written() {
        let mut bytes = [0xff; 8];
        Flash.write(0, &[1, 2, 3]);
        Flash.read(0, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
}
