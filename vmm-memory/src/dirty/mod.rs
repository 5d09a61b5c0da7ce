//! Dirty tracking: which pages of guest RAM have been written to, by the guest, by devices and by loaders.

mod map;
mod page_bits;
mod pages;
mod tracker;
#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tracker_tests;

pub use map::DirtyMap;
pub use pages::DirtyPages;
pub use tracker::{DirtyError, DirtyTracker};
