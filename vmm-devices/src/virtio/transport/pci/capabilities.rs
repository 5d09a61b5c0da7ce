//! The capabilities that say what is where in the BAR (virtio 1.3, section 4.1.4).

use std::ops::Range;

use super::{layout, offset};
use crate::pci::{AccessWindow, CapabilityError, Configuration};

/// Vendor-specific (PCI Local Bus 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 9;

const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Bytes of a capability with its header, and of one that has a word more.
const LENGTH: u8 = 16;
const LONG: u8 = 20;

/// Adds all of them; returns the one through which the BAR is reached.
pub(super) fn add(configuration: &mut Configuration) -> Result<AccessWindow, CapabilityError> {
    for (kind, part) in [(COMMON_CFG, layout::COMMON), (ISR_CFG, layout::ISR), (DEVICE_CFG, layout::DEVICE)] {
        configuration.add_capability(VENDOR_SPECIFIC, &body(LENGTH, kind, &part), &[])?;
    }
    let mut notify = body(LONG, NOTIFY_CFG, &layout::NOTIFICATIONS).to_vec();
    notify.extend(layout::NOTIFY_OFF_MULTIPLIER.to_le_bytes());
    configuration.add_capability(VENDOR_SPECIFIC, &notify, &[])?;
    let mut access = body(LONG, PCI_CFG, &(0..0)).to_vec();
    access.extend([0; 4]);
    // BAR, offset, length and data are the driver's.
    let writable =
        [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let at = configuration.add_capability(VENDOR_SPECIFIC, &access, &writable)?;
    Ok(AccessWindow::new(at))
}

/// What follows the header: length, kind, BAR, id, padding, offset and length of the part.
fn body(length: u8, kind: u8, part: &Range<u64>) -> [u8; 14] {
    let [o0, o1, o2, o3] = offset(part.start).to_le_bytes();
    let [l0, l1, l2, l3] = offset(part.end.saturating_sub(part.start)).to_le_bytes();
    [length, kind, layout::BAR, 0, 0, 0, o0, o1, o2, o3, l0, l1, l2, l3]
}
