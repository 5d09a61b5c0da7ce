//! `DirtyMechanism`: how KVM says which pages a guest has written to. And the rings of the one that has rings.

mod ring;
#[cfg(all(test, loom))]
mod ring_loom;
mod rings;

pub use ring::{RingEntry, RingItem, RingMapping, RingPage};
pub use rings::{DirtyRings, RingCollector, RingFullError};

use crate::Capabilities;

/// How KVM tracks the pages that vCPUs write to. A VM has one of them from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyMechanism {
    /// A bitmap for each slot. Reading it (`KVM_GET_DIRTY_LOG`) clears it and protects all pages anew that were written to.
    #[default]
    Bitmap,
    /// The same, but reading leaves it alone, and pages are cleared and protected in parts (`KVM_CLEAR_DIRTY_LOG`), so that
    /// vCPUs do not wait for the whole (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    ManualProtect {
        /// All pages of a slot are dirty when tracking starts, and are protected when they are cleared for the first
        /// time: starting costs nothing, and who copies all of the memory first needs no more (Linux 5.8).
        initially_set: bool,
    },
    /// A ring for each vCPU, in which KVM names each page (`KVM_CAP_DIRTY_LOG_RING`): costs by what is written and not by
    /// what there is.
    Ring {
        /// Bytes of each ring: a power of two, a page at least, at most [`Capabilities::dirty_ring`]. A page is named by 16.
        bytes: u32,
    },
}

impl DirtyMechanism {
    /// The bitmap in the best form that the host has. Rings are for those who ask for them.
    #[must_use]
    pub fn of_host(capabilities: &Capabilities) -> Self {
        match capabilities.manual_dirty_log {
            Some(initially_set) => Self::ManualProtect { initially_set },
            None => Self::Bitmap,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_is_protected_by_hand_where_the_host_can() {
        let of = |manual_dirty_log| {
            DirtyMechanism::of_host(&Capabilities { manual_dirty_log, ..Capabilities::default() })
        };
        assert_eq!(of(None), DirtyMechanism::Bitmap);
        assert_eq!(of(Some(true)), DirtyMechanism::ManualProtect { initially_set: true });
    }
}
