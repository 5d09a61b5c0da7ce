//! The reset vector: where the BIOS of a PC begins, and where a kernel jumps that wants the BIOS to reset the machine.
//!
//! Linux does so on a hardware-reduced ACPI platform without EFI (`reboot_init`, `machine_real_restart(MRR_BIOS)`): it goes
//! to real mode and jumps to f000:fff0. Without code there, it would run through whatever memory holds.

use vmm_devices::acpi::{PowerControl, RESET_VALUE};

use super::layout::POWER_PORTS;

/// Real-mode code that writes the reset register, and halts until the machine is gone.
pub(super) const fn code() -> [u8; 9] {
    let port = (POWER_PORTS + PowerControl::RESET as u16).to_le_bytes();
    [
        0xb0, // mov al, RESET_VALUE
        RESET_VALUE,
        0xba, // mov dx, port
        port[0],
        port[1],
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, // jmp to the hlt
        0xfd,
    ]
}
