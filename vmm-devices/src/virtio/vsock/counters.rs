//! What a vsock device has done: connections, packets and bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counted on the device's worker, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: Counter,
    pub(super) opened_by_guest: Counter,
    pub(super) opened_by_host: Counter,
    pub(super) refused_by_guest: Counter,
    pub(super) refused_by_host: Counter,
    pub(super) dismissed: Counter,
    pub(super) broken: Counter,
    pub(super) resets: Counter,
    pub(super) packets_to_guest: Counter,
    pub(super) packets_to_host: Counter,
    pub(super) bytes_to_guest: Counter,
    pub(super) bytes_to_host: Counter,
}

/// What was counted of a vsock device, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VsockCounts {
    /// Connections that there are now, those that are about to begin or to end included.
    pub connections: u64,
    /// Connections that the guest has asked for, and that the host has accepted.
    pub opened_by_guest: u64,
    /// Connections that the host has asked for, and that the guest has accepted.
    pub opened_by_host: u64,
    /// Connections that the host has asked for, and that the guest has refused or not answered.
    pub refused_by_guest: u64,
    /// Connections that the guest has asked for, and that nobody has accepted.
    pub refused_by_host: u64,
    /// Programs of the host that were sent away: they did not say what they wanted, or there was no place.
    pub dismissed: u64,
    /// Packets and buffers of the guest that break a rule.
    pub broken: u64,
    /// Resets that the guest was sent, those that complete an orderly end included.
    pub resets: u64,
    /// Packets to the guest, resets included.
    pub packets_to_guest: u64,
    /// Packets of the guest.
    pub packets_to_host: u64,
    /// Bytes of data to the guest.
    pub bytes_to_guest: u64,
    /// Bytes of data that the host has taken of the guest's.
    pub bytes_to_host: u64,
}

/// A number that only one thread at a time changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn set(&self, count: usize) {
        self.0.store(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn counts(&self) -> VsockCounts {
        VsockCounts {
            connections: self.connections.get(),
            opened_by_guest: self.opened_by_guest.get(),
            opened_by_host: self.opened_by_host.get(),
            refused_by_guest: self.refused_by_guest.get(),
            refused_by_host: self.refused_by_host.get(),
            dismissed: self.dismissed.get(),
            broken: self.broken.get(),
            resets: self.resets.get(),
            packets_to_guest: self.packets_to_guest.get(),
            packets_to_host: self.packets_to_host.get(),
            bytes_to_guest: self.bytes_to_guest.get(),
            bytes_to_host: self.bytes_to_host.get(),
        }
    }
}
