//! What is where in the BAR of a virtio device.
//!
//! MSI-X table and pending bits have pages of their own, as PCI Local Bus 3.0, section 6.8.2, advises, and so have the
//! notifications.

use std::ops::Range;

/// The BAR that everything is in.
pub const BAR: u8 = 0;
/// Its bytes.
pub const LENGTH: u64 = 0x8000;

/// The common configuration.
pub const COMMON: Range<u64> = 0..0x40;
/// The ISR status.
pub const ISR: Range<u64> = 0x100..0x104;
/// The configuration of the device.
pub const DEVICE: Range<u64> = 0x1000..0x2000;
/// The MSI-X table.
pub const MSIX_TABLE: Range<u64> = 0x2000..0x3000;
/// The MSI-X pending bits.
pub const MSIX_PENDING: Range<u64> = 0x3000..0x4000;
/// The notification addresses.
pub const NOTIFICATIONS: Range<u64> = 0x4000..0x5000;

/// Bytes from the notification address of one queue to that of the next.
pub const NOTIFY_OFF_MULTIPLIER: u32 = 4;
const NOTIFY_STRIDE: u64 = NOTIFY_OFF_MULTIPLIER as u64;
/// Queues that have a notification address.
pub const MAX_QUEUES: usize = 1024;
/// Vectors that the table has room for.
pub const MAX_VECTORS: usize = 256;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Common,
    Isr,
    Device,
    MsixTable,
    MsixPending,
    Notifications,
}

/// The part that all of `length` bytes from `offset` on are in, and where in it.
pub(super) fn part(offset: u64, length: usize) -> Option<(Part, u64)> {
    let parts = [
        (Part::Common, COMMON),
        (Part::Isr, ISR),
        (Part::Device, DEVICE),
        (Part::MsixTable, MSIX_TABLE),
        (Part::MsixPending, MSIX_PENDING),
        (Part::Notifications, NOTIFICATIONS),
    ];
    let end = offset.checked_add(length as u64)?;
    let found = parts.into_iter().find(|(_, range)| range.contains(&offset) && end <= range.end);
    found.map(|(part, range)| (part, offset.wrapping_sub(range.start)))
}

/// The notification address of queue `index`.
pub(super) fn notification(index: usize) -> u64 {
    let offset = (index as u64).saturating_mul(NOTIFY_STRIDE);
    NOTIFICATIONS.start.saturating_add(offset)
}

/// The queue that a write at `offset` in the notifications is for.
pub(super) fn queue_notified(offset: u64) -> usize {
    usize::try_from(offset / NOTIFY_STRIDE).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn fault_b2_an_access_belongs_to_a_part_only_with_all_its_bytes() {
        assert_eq!(part(0x3c, 4), Some((Part::Common, 0x3c)));
        assert_eq!(part(0x100, 1), Some((Part::Isr, 0)));
        assert_eq!(part(0x4ffc, 4), Some((Part::Notifications, 0xffc)));
        for (offset, length) in
            [(0x3d, 4), (0x40, 1), (0xfe, 4), (0x1ffc, 8), (0x5000, 1), (u64::MAX, 1), (u64::MAX, 2)]
        {
            assert_eq!(part(offset, length), None, "{offset:#x}");
        }
    }

    #[test]
    fn each_queue_has_a_notification_address_inside_the_part() {
        for index in [0, 1, MAX_QUEUES - 1] {
            let (found, offset) = part(notification(index), 4).unwrap();
            assert_eq!((found, queue_notified(offset)), (Part::Notifications, index));
        }
        assert_eq!(part(notification(MAX_QUEUES), 1), None);
        assert_eq!(MSIX_TABLE.end - MSIX_TABLE.start, 16 * MAX_VECTORS as u64);
    }
}
