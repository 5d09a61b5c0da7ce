//! What a network device has done: frames, bytes, and what has become of those that did not arrive.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Declares the counters, and what they came to at a moment.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Counted by the queues, read by anybody. Relaxed: the numbers are about different moments.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// What was counted of a network device, at a moment. The guest receives, and transmits.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct NetCounts {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn counts(&self) -> NetCounts {
                NetCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames that the guest has received.
    received_frames,
    /// Their bytes, without the headers of virtio.
    received_bytes,
    /// Frames that were dropped because no buffers of the guest can be long enough.
    received_too_long,
    /// Frames that were dropped because they were none.
    received_malformed,
    /// How often frames were left in the host's queue, or may have been, because the guest had no buffers.
    received_no_buffers,
    /// Frames that waited for the rate limiter.
    received_throttled,
    /// Receive buffers that are too short for a header; they were given back.
    refused_buffers,
    /// Frames of the guest that the host has taken.
    transmitted_frames,
    /// Their bytes, without the headers of virtio.
    transmitted_bytes,
    /// Frames of the guest that the host did not take; they were dropped.
    transmitted_failed,
    /// Frames of the guest that waited for the rate limiter.
    transmitted_throttled,
    /// Requests for transmission that were none: too short, too long, in too many pieces; they were dropped.
    refused_frames,
    /// Commands of the control queue that were refused, or failed.
    refused_commands,
    /// Rings of the doorbells of the pairs, those that came together included; none where the kernel serves them.
    notifications,
    /// Interrupts for frames that have come or gone; none where the kernel serves the pairs.
    interrupts,
    /// Answers of the host that are errors, to whatever it was asked.
    host_errors,
    /// How often the interface was lost.
    link_losses,
    /// How often it was there again.
    link_returns,
}

/// Adds to a counter that others write too.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
