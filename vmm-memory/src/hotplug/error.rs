//! `HotplugError`: why memory is not plugged, or not unplugged.

use super::{BlockState, HotplugLayout};
use crate::backing::BackingError;
use crate::change::ChangeError;
use crate::range::RamRange;

/// Why memory is not plugged or unplugged. All blocks are what they were before, but for what [`ChangeError::Incomplete`]
/// names: that is not in the guest, or cannot be taken from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HotplugError {
    /// The region cannot be divided so.
    #[error("no hotplug region of {} in blocks of {:#x} and chunks of {:#x} bytes: {why}", layout.range, layout.block_size, layout.chunk_size)]
    BadLayout {
        /// What was asked for.
        layout: HotplugLayout,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The host does not give the memory, or not the pages that were to be there ahead of their use.
    #[error("the host gives no memory for {range}")]
    Reserve {
        /// What it was for.
        range: RamRange,
        /// Why not.
        #[source]
        source: BackingError,
    },
    /// The range is not made of whole blocks, or not inside of the region.
    #[error("{range} is not made of blocks of {:#x} bytes inside of {}", layout.block_size, layout.range)]
    NotBlocks {
        /// What was asked for.
        range: RamRange,
        /// What there is.
        layout: HotplugLayout,
    },
    /// Some of the blocks that were to be plugged are so already, or the other way round.
    #[error("blocks of {range} are not all in the state to be changed: {state:?}")]
    WrongState {
        /// What was asked for.
        range: RamRange,
        /// What it is.
        state: BlockState,
    },
    /// Requests of devices are in flight in blocks that were to go.
    #[error("{range} is in use by {}", holders.join(", "))]
    Pinned {
        /// One of the blocks.
        range: RamRange,
        /// Whose requests they are.
        holders: Vec<String>,
    },
    /// Another change of the region is under way.
    #[error("the hotplug region is being changed already")]
    Changing,
    /// The address space refuses, or fails to follow.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl HotplugError {
    /// Whether the same change may succeed a little later: for a driver, the answer `VIRTIO_MEM_RESP_BUSY`.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Pinned { .. } | Self::Changing => true,
            Self::Change(error) => {
                matches!(error, ChangeError::Busy(_) | ChangeError::AllBusy | ChangeError::Quiesce { .. })
            }
            _ => false,
        }
    }
}
