//! What has become of a back end, and of requests without one.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counted by whoever finds it, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) failed_requests: AtomicU64,
}

/// The counters of a device at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VhostUserCounts {
    /// 1 while there is a back end, else 0.
    pub connected: u64,
    /// How often there came to be one.
    pub connections: u64,
    /// How often it was lost: it has gone, has not answered in time, or has broken the protocol.
    pub losses: u64,
    /// Requests that were answered with an error because there was none.
    pub failed_requests: u64,
}

impl Counters {
    pub(super) fn counts(&self, connected: bool) -> VhostUserCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VhostUserCounts {
            connected: connected.into(),
            connections: of(&self.connections),
            losses: of(&self.losses),
            failed_requests: of(&self.failed_requests),
        }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
