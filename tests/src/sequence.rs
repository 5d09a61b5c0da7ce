//! `Sequence`: a device that gives each byte of a sequence once and takes those of another, and hears how far the guest
//! has come. The other side is in `tests/guests/state.inc` and `state_io.S`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use vmm_core::Deferred;
use vmm_vcpu::ExitHandler;

const ROUND_PORT: u16 = 0x590;
const WRONG_PORT: u16 = 0x594;
const XSAVE_PORT: u16 = 0x598;
const SEQUENCE_PORT: u16 = 0x5a0;
const SEQUENCE: std::ops::Range<u64> = 0xd000_0000..0xd000_2000;
const CELL: u64 = 0xd000_2ffc;
const READ_FACTOR: u32 = 0x1e37_79b1;
const WRITE_FACTOR: u32 = 0x05eb_ca6b;

/// Byte `number` of the sequence of `factor`.
fn byte(factor: u32, number: u32) -> u8 {
    number.wrapping_mul(factor).to_le_bytes()[2]
}

#[derive(Default)]
struct State {
    read: u32,
    written: u32,
    /// Memory across a page, which the guest increments in place.
    cell: [u8; 8],
    rounds: u64,
    wrong: Vec<String>,
}

impl State {
    fn give(&mut self, data: &mut [u8]) {
        for to in data {
            *to = byte(READ_FACTOR, self.read);
            self.read = self.read.wrapping_add(1);
        }
    }

    fn take(&mut self, data: &[u8]) {
        for found in data {
            let expected = byte(WRITE_FACTOR, self.written);
            if *found != expected {
                self.wrong.push(format!("byte {} written is {found:#x}, not {expected:#x}", self.written));
            }
            self.written = self.written.wrapping_add(1);
        }
    }

    /// The bytes of the cell at `address`.
    fn cell(&mut self, address: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(address.checked_sub(CELL)?).ok()?;
        self.cell.get_mut(start..)?.get_mut(..length)
    }

    fn unknown(&mut self, what: &str, address: u64) {
        self.wrong.push(format!("{what} at {address:#x}"));
    }
}

/// The device. One sequence goes through all its ports and addresses.
#[derive(Default)]
pub struct Sequence {
    /// Whether the guest can use XSAVE.
    xsave: bool,
    state: Mutex<State>,
}

impl Sequence {
    /// A device at the beginning of its sequences, for a guest that can use XSAVE or not.
    #[must_use]
    pub fn new(xsave: bool) -> Self {
        Self { xsave, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many rounds the guest has done.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.state().rounds
    }

    /// Looks whether everything was right so far, as the guest and as the device see it.
    ///
    /// # Errors
    ///
    /// What was not.
    pub fn ensure_right(&self) -> Result<()> {
        let state = self.state();
        ensure!(state.wrong.is_empty(), "after {} rounds: {}", state.rounds, state.wrong.join(", "));
        Ok(())
    }
}

impl ExitHandler for Sequence {
    fn port_read(&self, port: u16, _size: usize, data: &mut [u8]) {
        match port {
            SEQUENCE_PORT => self.state().give(data),
            XSAVE_PORT => data.fill(self.xsave.into()),
            _ => self.state().unknown("read of port", port.into()),
        }
    }

    fn port_write(&self, port: u16, _size: usize, data: &[u8]) -> Option<Deferred> {
        let mut state = self.state();
        match port {
            SEQUENCE_PORT => state.take(data),
            ROUND_PORT => state.rounds += 1,
            WRONG_PORT => {
                let check = data.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
                state.wrong.push(format!("check {check:#x} of the guest failed"));
            }
            _ => state.unknown("write of port", port.into()),
        }
        None
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let mut state = self.state();
        if SEQUENCE.contains(&address) {
            state.give(data);
        } else if let Some(cell) = state.cell(address, data.len()) {
            data.copy_from_slice(cell);
        } else {
            state.unknown("load", address);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        let mut state = self.state();
        if SEQUENCE.contains(&address) {
            state.take(data);
        } else if let Some(cell) = state.cell(address, data.len()) {
            cell.copy_from_slice(data);
        } else {
            state.unknown("store", address);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_left_out_or_comes_twice_is_found() {
        let device = Sequence::default();
        let bytes: Vec<u8> = (0..4).map(|number| byte(WRITE_FACTOR, number)).collect();
        device.port_write(SEQUENCE_PORT, 1, &bytes[..2]);
        assert!(device.ensure_right().is_ok());
        device.port_write(SEQUENCE_PORT, 1, &bytes[3..]);
        assert!(device.ensure_right().is_err());
        let device = Sequence::default();
        device.port_write(SEQUENCE_PORT, 1, &[bytes[0], bytes[0]]);
        assert!(device.ensure_right().is_err());
    }

    #[test]
    fn the_cell_is_memory_across_a_page() {
        let device = Sequence::default();
        device.mmio_write(CELL, &[1, 2, 3, 4]);
        device.mmio_write(CELL + 4, &[5, 6, 7, 8]);
        let mut data = [0; 8];
        device.mmio_read(CELL, &mut data);
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
        device.mmio_read(CELL + 1, &mut data);
        assert!(device.ensure_right().is_err());
    }
}
