//! Where things are in the guest's address spaces.

use std::ops::Range;

use vmm_memory::RamRange;

use crate::boot::{E820Entry, E820Kind};

/// RAM below this address, devices from here to 4 GiB.
const HOLE_START: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;

/// The ACPI tables, in what was the place of a PC's BIOS.
pub(crate) const ACPI_START: u64 = 0xe_0000;
pub(crate) const ACPI_END: u64 = RESET_VECTOR;

/// f000:fff0, where the BIOS of a PC begins.
pub(super) const RESET_VECTOR: u64 = EXTENDED_START - 16;

/// Ports, as on a PC.
pub(crate) const COM1: u16 = 0x3f8;

/// Ports of the ACPI registers.
pub(crate) const POWER_PORTS: u16 = 0xb00;
pub(crate) const EVENTS_PORT: u16 = 0xb04;
pub(crate) const HOTPLUG_PORTS: u16 = 0xb10;

/// Irqchip pins; the first is that of a PC, the second that of its SCI.
pub(crate) const SERIAL_LINE: u32 = 4;
pub(crate) const EVENTS_LINE: u32 = 9;

/// The place of a PC's firmware: 16 MiB below 4 GiB. The pages that KVM uses for itself are in it.
pub(super) const FLASH: (u64, u64) = (0xff00_0000, HOLE_END - 0xff00_0000);

/// The panic device.
pub(crate) const PVPANIC_BASE: u32 = 0xd000_1000;

/// Base address registers of PCI functions: first address and length.
pub(crate) const PCI_BARS: (u32, u32) = (0xc000_0000, 0x1000_0000);

/// Configuration space of the PCI bus, 1 MiB.
pub(crate) const PCI_ECAM: u32 = 0xe000_0000;

/// The self-test device.
pub(super) const SELFTEST_BASE: u64 = 0xd000_0000;
pub(super) const SELFTEST_PORTS: u16 = 0xd00;
pub(super) const SELFTEST_LINE: u32 = 5;

/// The places of virtio-mmio devices, a page each, and their irqchip pins, a pin each: what a PC has for ISA cards, and those
/// beyond the ISA interrupts.
pub(super) const VIRTIO_MMIO_BASE: u64 = 0xd001_0000;
pub(super) const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
pub(super) const VIRTIO_MMIO_LINES: Range<u32> = 10..24;

/// Pages for KVM's own use on VMX hosts, below the firmware's place at the end of the hole.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
pub(crate) const TSS: u32 = 0xfffb_d000;

/// End of conventional memory; the last KiB below 640 KiB is left to the extended BIOS data area, as on a PC.
const CONVENTIONAL_END: u64 = 0x9_fc00;
const EXTENDED_START: u64 = 0x10_0000;

/// The RAM of a guest of `size` bytes: below the hole, and what does not fit there above 4 GiB.
pub(crate) fn ram(size: u64) -> Vec<RamRange> {
    let low = size.min(HOLE_START);
    let ranges = [RamRange { start: 0, size: low }, RamRange { start: HOLE_END, size: size - low }];
    ranges.into_iter().filter(|range| range.size != 0).collect()
}

/// Where what a guest can plug begins is a multiple of the largest block. Linux aligns what it plugs at once by itself, to less than
/// that in machines of less than 64 GiB.
const PLUGGED_ALIGNMENT: u64 = 1 << 30;

/// The place of `size` bytes that a guest with `ram` bytes of RAM can plug: above 4 GiB and all of the RAM. No other device has addresses
/// there.
pub(crate) fn plugged(ram: u64, size: u64) -> RamRange {
    let end = self::ram(ram).last().map_or(0, |range| range.start + range.size);
    RamRange { start: end.max(HOLE_END).next_multiple_of(PLUGGED_ALIGNMENT), size }
}

/// The memory map that the guest is told.
pub(crate) fn e820(size: u64) -> Vec<E820Entry> {
    let entry = |start, end: u64, kind| E820Entry { start, size: end.saturating_sub(start), kind };
    let low = size.min(HOLE_START);
    let entries = [
        entry(0, low.min(CONVENTIONAL_END), E820Kind::Ram),
        entry(CONVENTIONAL_END, EXTENDED_START, E820Kind::Reserved),
        entry(EXTENDED_START, low, E820Kind::Ram),
        entry(HOLE_END, HOLE_END + (size - low), E820Kind::Ram),
    ];
    entries.into_iter().filter(|entry| entry.size != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_leaves_the_hole_free_and_loses_nothing() {
        for size in [1 << 20, GIB, 3 * GIB, 3 * GIB + 4096, 512 * GIB] {
            let ranges = ram(size);
            assert_eq!(ranges.iter().map(|range| range.size).sum::<u64>(), size);
            assert!(ranges.iter().all(|r| r.start + r.size <= HOLE_START || r.start >= HOLE_END));
        }
    }

    #[test]
    fn the_memory_map_calls_ram_only_what_is_ram() {
        for size in [1 << 20, 128 << 20, 3 * GIB, 6 * GIB] {
            let ranges = ram(size);
            for entry in e820(size).into_iter().filter(|entry| entry.kind == E820Kind::Ram) {
                let backed = |range: &RamRange| {
                    range.start <= entry.start && entry.start + entry.size <= range.start + range.size
                };
                assert!(ranges.iter().any(backed), "{size:#x}: {entry:?}");
            }
        }
    }
}
