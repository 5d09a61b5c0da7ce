//! `Ioapic`: the I/O APIC of a machine whose KVM has only the local ones (Intel 82093AA, with the EOI register of version
//! 0x20).
//!
//! It keeps what the guest writes and programs the pins with it; lines reach the guest past this device.

use std::sync::{Mutex, PoisonError};

use vmm_core::LogLimit;
use vmm_core::irq::{IOAPIC_PINS, IoapicPins, MsiMessage};

use crate::BusDevice;

/// Offsets of the registers that the processor sees.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;

/// Highest pin and version, section 3.2.2; from version 0x20 on there is an EOI register.
const VERSION_VALUE: u32 = (IOAPIC_PINS - 1) << 16 | 0x20;
const ID_BITS: u32 = 0xf << 24;

/// Bits of a redirection entry, section 3.2.4: what a guest can write, and those with a meaning here.
const WRITABLE: u64 = 0xffff_0000_0001_afff;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// Bits of a message, Intel SDM, volume 3, 11.11.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;
const MESSAGE_LOGICAL: u64 = 1 << 2;
const MESSAGE_ASSERT: u32 = 1 << 14;
const MESSAGE_LEVEL: u32 = 1 << 15;

struct Registers {
    select: u8,
    id: u32,
    entries: [u64; IOAPIC_PINS as usize],
}

/// The I/O APIC.
pub struct Ioapic {
    pins: IoapicPins,
    /// Held while an access is carried out, over the change of a route; comes before the router's lock.
    registers: Mutex<Registers>,
    refusals: LogLimit,
}

/// The message that an entry sends, and whether it is masked.
fn message(entry: u64) -> (MsiMessage, bool) {
    let destination = entry >> 56;
    // Bits 14..8 of the destination, for guests that were told that they may use them.
    let extended = entry >> 49 & 0x7f;
    let mut address = MESSAGE_ADDRESS | destination << 12 | extended << 5;
    if entry & LOGICAL != 0 {
        address |= MESSAGE_LOGICAL;
    }
    // Vector and delivery mode are where the message has them.
    let mut data = (entry & 0x7ff) as u32;
    if entry & LEVEL != 0 {
        data |= MESSAGE_LEVEL | MESSAGE_ASSERT;
    }
    (MsiMessage { address, data }, entry & MASKED != 0)
}

/// The pin of a redirection register, and whether it is the upper half of the entry.
fn redirection(select: u8) -> Option<(u32, bool)> {
    let index = select.checked_sub(REDIRECTION)?;
    let pin = u32::from(index >> 1);
    (pin < IOAPIC_PINS).then_some((pin, index & 1 != 0))
}

impl Ioapic {
    /// Where a PC has it, and how much room it takes.
    pub const ADDRESS: u64 = 0xfec0_0000;
    /// Bytes of MMIO space.
    pub const LENGTH: u64 = 0x100;

    /// An I/O APIC after reset: every pin masked.
    #[must_use]
    pub fn new(pins: IoapicPins) -> Self {
        let registers = Registers { select: 0, id: 0, entries: [MASKED; IOAPIC_PINS as usize] };
        Self { pins, registers: Mutex::new(registers), refusals: LogLimit::default() }
    }

    fn window(&self, registers: &Registers) -> u32 {
        match registers.select {
            ID | ARBITRATION => registers.id,
            VERSION => VERSION_VALUE,
            select => {
                let Some((pin, upper)) = redirection(select) else { return 0 };
                let entry = registers.entries.get(pin as usize).copied().unwrap_or(MASKED);
                let in_service = if self.pins.in_service(pin) { REMOTE_IRR } else { 0 };
                let entry = entry | in_service;
                if upper { (entry >> 32) as u32 } else { (entry & 0xffff_ffff) as u32 }
            }
        }
    }

    fn set_window(&self, registers: &mut Registers, value: u32) {
        if registers.select == ID {
            registers.id = value & ID_BITS;
        }
        let Some((pin, upper)) = redirection(registers.select) else { return };
        let Some(entry) = registers.entries.get_mut(pin as usize) else { return };
        let value = u64::from(value);
        let new = if upper { *entry & 0xffff_ffff | value << 32 } else { *entry & !0xffff_ffff | value };
        *entry = new & WRITABLE;
        let (message, masked) = message(*entry);
        if let Err(error) = self.pins.program(pin, message, masked)
            && let Some(left_out) = self.refusals.permit()
        {
            tracing::error!(pin, %error, left_out, "an I/O APIC pin keeps what it was programmed to before");
        }
    }
}

impl BusDevice for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let value = match offset {
            SELECT => u32::from(registers.select),
            WINDOW => self.window(&registers),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // A narrower access is one of the register's lower bytes and zeros, as KVM's own I/O APIC has it.
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(bytes);
        let [low, ..] = bytes;
        if offset == END_OF_INTERRUPT {
            // Without the lock, as the end of interrupt that KVM reports.
            return self.pins.end_of_interrupt(low);
        }
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            SELECT => registers.select = low,
            WINDOW => self.set_window(&mut registers, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_core::fake::{FakeCall, FakeVm};
    use vmm_core::irq::{IrqOptions, IrqRouter, Irqchip};

    use super::*;

    fn machine() -> (Arc<FakeVm>, IrqRouter, Ioapic) {
        let vm = Arc::new(FakeVm::default());
        let options = IrqOptions { irqchip: Irqchip::Split, ..IrqOptions::all() };
        let router = IrqRouter::new(vm.clone(), options);
        let ioapic = Ioapic::new(router.ioapic_pins());
        (vm, router, ioapic)
    }

    fn set(ioapic: &Ioapic, register: u8, value: u32) {
        ioapic.write(SELECT, &[register, 0, 0, 0]);
        ioapic.write(WINDOW, &value.to_le_bytes());
    }

    fn get(ioapic: &Ioapic, register: u8) -> u32 {
        ioapic.write(SELECT, &[register]);
        let mut data = [0xff; 4];
        ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    /// The registers of a pin's entry: lower half, upper half.
    fn entry(pin: u8) -> (u8, u8) {
        (REDIRECTION + 2 * pin, REDIRECTION + 2 * pin + 1)
    }

    #[test]
    fn it_says_that_it_has_24_pins_and_an_eoi_register_and_that_all_are_masked() {
        let (_vm, _router, ioapic) = machine();
        assert_eq!(get(&ioapic, VERSION), 0x0017_0020);
        for pin in 0..24 {
            assert_eq!((get(&ioapic, entry(pin).0), get(&ioapic, entry(pin).1)), (0x1_0000, 0));
        }
        set(&ioapic, ID, u32::MAX);
        assert_eq!((get(&ioapic, ID), get(&ioapic, ARBITRATION)), (0x0f00_0000, 0x0f00_0000));
    }

    #[test]
    fn an_entry_becomes_the_message_that_the_manual_says() {
        let (vm, _router, ioapic) = machine();
        let (low, high) = entry(4);
        set(&ioapic, high, 3 << 24);
        assert_eq!(vm.calls(), [], "masked");
        set(&ioapic, low, 0x31);
        assert_eq!(vm.message(4), Some(MsiMessage { address: 0xfee0_3000, data: 0x31 }));
        // Lowest priority, logical, level-triggered.
        set(&ioapic, low, 0x8931);
        assert_eq!(vm.message(4), Some(MsiMessage { address: 0xfee0_3004, data: 0xc131 }));
        // Destination 0x12c in the extended form.
        set(&ioapic, high, 0x2c << 24 | 1 << 17);
        assert_eq!(vm.message(4), Some(MsiMessage { address: 0xfee2_c024, data: 0xc131 }));
        set(&ioapic, low, 0x1_0031);
        assert_eq!((vm.message(4), get(&ioapic, low)), (None, 0x1_0031));
    }

    #[test]
    fn a_level_line_shows_that_it_is_in_service_until_its_end_by_exit_or_by_register() {
        let (vm, router, ioapic) = machine();
        let line = router.level_line(10, "pci").unwrap();
        let input = line.input();
        let (low, _) = entry(10);
        set(&ioapic, low, 0x8041);
        input.set(true);
        assert_eq!((vm.signals(10), get(&ioapic, low)), (1, 0xc041));
        ioapic.write(END_OF_INTERRUPT, &0x41_u32.to_le_bytes());
        assert_eq!((vm.signals(10), get(&ioapic, low)), (1, 0xc041), "still asserted");
        input.set(false);
        router.ioapic_pins().end_of_interrupt(0x41);
        assert_eq!((vm.signals(10), get(&ioapic, low)), (0, 0x8041));
    }

    #[test]
    fn read_only_bits_keep_their_values() {
        let (_vm, _router, ioapic) = machine();
        let (low, high) = entry(23);
        set(&ioapic, low, u32::MAX);
        set(&ioapic, high, u32::MAX);
        assert_eq!((get(&ioapic, low), get(&ioapic, high)), (0x1_afff, 0xffff_0000));
        set(&ioapic, VERSION, 0);
        assert_eq!(get(&ioapic, VERSION), 0x0017_0020);
    }

    #[test]
    fn fault_b1_other_registers_widths_and_offsets_are_harmless() {
        let (vm, _router, ioapic) = machine();
        for register in (3..REDIRECTION).chain(REDIRECTION + 48..=u8::MAX) {
            set(&ioapic, register, u32::MAX);
            assert_eq!(get(&ioapic, register), 0, "{register:#x}");
        }
        for (offset, width) in [(1, 1), (0x11, 2), (0x14, 4), (0xff, 1), (0, 8), (0xf8, 8)] {
            ioapic.write(offset, &vec![0xff; width]);
            let mut data = vec![0xff; width];
            ioapic.read(offset, &mut data);
            assert!(data.iter().skip(1).all(|byte| *byte == 0), "{offset:#x}");
        }
        assert_eq!(vm.calls(), []);
    }

    #[test]
    fn a_route_that_is_refused_is_tried_again_with_the_next_write() {
        let (vm, _router, ioapic) = machine();
        vm.fail_call(0, libc::ENOMEM);
        let (low, _) = entry(4);
        set(&ioapic, low, 0x31);
        assert_eq!(vm.message(4), None);
        set(&ioapic, low, 0x31);
        assert!(vm.message(4).is_some());
        assert_eq!(vm.calls(), [FakeCall::SetRoutes(1), FakeCall::SetRoutes(1)]);
    }
}
