//! The memory balloon (virtio 1.3, section 5.5): guest RAM that is given back to the host while the guest runs.
//!
//! The host says how large the balloon is to be; the guest's driver takes that much of its memory, says which pages it is, and
//! they are given back. With free page reporting the guest besides says of free pages, whenever it has some, that they can
//! go. Statistics of the guest's memory come when they are asked for. Hints about free pages are kept and nothing more is done with them:
//! `hint` says why.
//!
//! * `config`: the configuration, features and numbers of queues; `hint`: a round of hints (pure);
//! * `give_back`: ranges of guest addresses to host memory; `partial`: pages of the host that are in the balloon in part;
//! * `pages`, `report`, `statistics`, `hint_queue`: what is done with the chains;
//! * `shared`: what the host, the driver and the queues have in common.

pub mod calls;
mod config;
mod counters;
mod device;
mod give_back;
mod hint;
mod hint_queue;
mod pages;
mod partial;
mod report;
mod shared;
mod statistics;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use counters::BalloonCounts;
pub use device::{Balloon, BalloonOptions};
pub use hint::HintState;
pub use shared::{BalloonError, BalloonSettings, BalloonStatus, HintStatus};
pub use statistics::{GuestStatistics, Sample};

/// The unit in which a driver counts: VIRTIO_BALLOON_PFN_SHIFT is 12 (section 5.5.6).
pub const PAGE: u64 = 1 << 12;
