//! Statistics of the guest's memory (virtio 1.3, section 5.5.6.3): what they are, and what is done with the chains of their queue.
//!
//! The driver lends one buffer with statistics. Given back, it is filled with new ones and lent again; so statistics come when the
//! device wants them, which is after the interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_memory::GuestMemory;

use super::shared::Shared;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};
use crate::{Timer, Wakeup};

/// Bytes of a statistic: a tag of 16 bits and a value of 64, packed.
const ENTRY: usize = 10;
/// Most of them that are read of a buffer: there are tags for 16.
const MOST: usize = 64;
/// Chains of one batch.
const BATCH: usize = 4;

/// What a guest says about its memory. Each is there if the driver says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it; docs/balloon.md has the meaning of each")]
pub struct GuestStatistics {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped_in_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swapped_out_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_allocated: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages_failed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation_stalls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scanned_pages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scanned_pages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaimed_pages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaimed_pages: Option<u64>,
}

impl GuestStatistics {
    /// Reads a buffer of the driver. Tags that are not known mean nothing, the last of several of a tag holds, and what is behind the
    /// last whole entry is left out.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for [low, high, value @ ..] in entries {
            if let Some(place) = statistics.place(u16::from_le_bytes([*low, *high])) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
        statistics
    }

    /// Where the value of a tag belongs: VIRTIO_BALLOON_S_SWAP_IN and those that follow. Those from 10 on came with Linux 6.12.
    fn place(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swapped_in_bytes,
            1 => &mut self.swapped_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.cache_bytes,
            8 => &mut self.huge_pages_allocated,
            9 => &mut self.huge_pages_failed,
            10 => &mut self.oom_kills,
            11 => &mut self.allocation_stalls,
            12 => &mut self.async_scanned_pages,
            13 => &mut self.direct_scanned_pages,
            14 => &mut self.async_reclaimed_pages,
            15 => &mut self.direct_reclaimed_pages,
            _ => return None,
        })
    }
}

/// Statistics, and when they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// What the guest has said.
    pub statistics: GuestStatistics,
}

pub(super) struct StatisticsQueue {
    shared: Arc<Shared>,
    timer: Arc<Timer>,
    /// The buffer that is lent, and since when.
    held: Option<(Chain, Instant)>,
    bytes: Box<[u8; MOST * ENTRY]>,
}

impl StatisticsQueue {
    pub(super) fn new(shared: Arc<Shared>, timer: Arc<Timer>) -> Self {
        Self { shared, timer, held: None, bytes: Box::new([0; MOST * ENTRY]) }
    }

    fn read(&mut self, chain: &Chain, memory: &GuestMemory, at: Instant) -> Result<(), QueueError> {
        let readable = chain.readable();
        if readable.is_empty() {
            // The first one may be empty (section 5.5.5).
            if !chain.writable().is_empty() {
                self.shared.counters().broken.one();
            }
            return Ok(());
        }
        let length =
            usize::try_from(readable.len()).map_or(self.bytes.len(), |length| length.min(self.bytes.len()));
        let bytes = self.bytes.get_mut(..length).unwrap_or_default();
        readable.read(memory, bytes)?;
        self.shared.sampled(Sample { at, statistics: GuestStatistics::read(bytes) });
        self.shared.counters().statistics.one();
        Ok(())
    }

    /// How long a buffer that is held since `since` is to stay; `None`: until somebody wants statistics.
    fn left(&self, since: Instant) -> Option<Duration> {
        let interval = self.shared.settings().statistics_interval();
        (interval != Duration::ZERO).then(|| interval.saturating_sub(since.elapsed()))
    }
}

impl ServeQueue for StatisticsQueue {
    /// Called for the driver's notification, for the timer, and when the interval was changed.
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            let Some((chain, since)) = self.held.take() else {
                let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
                let now = Instant::now();
                self.read(&chain, memory, now)?;
                self.held = Some((chain, now));
                continue;
            };
            match self.left(since) {
                Some(Duration::ZERO) => queue.push(memory, chain, 0)?,
                left => {
                    self.held = Some((chain, since));
                    if let Some(left) = left
                        && let Err(error) = self.timer.set(left)
                    {
                        tracing::error!(%error, "the timer of a balloon cannot be set");
                    }
                    return Ok(Batch::Waiting);
                }
            }
        }
        Ok(Batch::Full)
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        vec![Arc::clone(&self.timer) as _]
    }

    fn untouched(&self) -> u16 {
        self.held.is_some().into()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_tag_in_any_order() {
        let entry = |(tag, value): (u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes: Vec<u8> = [(5, 512 << 20), (4, 7), (0xffff, 9), (16, 3), (4, 8), (15, 1)]
            .into_iter()
            .flat_map(entry)
            .collect();
        let expected = GuestStatistics {
            total_bytes: Some(512 << 20),
            free_bytes: Some(8),
            direct_reclaimed_pages: Some(1),
            ..GuestStatistics::default()
        };
        assert_eq!(GuestStatistics::read(&bytes), expected);
        let cut = GuestStatistics { direct_reclaimed_pages: None, ..expected };
        assert_eq!(GuestStatistics::read(&bytes[..bytes.len() - 1]), cut);
        assert_eq!(GuestStatistics::read(&[]), GuestStatistics::default());
    }

    #[test]
    fn every_tag_has_a_place_of_its_own() {
        let bytes: Vec<u8> = (0..16_u16)
            .flat_map(|tag| [&tag.to_le_bytes()[..], &u64::from(tag).to_le_bytes()].concat())
            .collect();
        let mut statistics = GuestStatistics::read(&bytes);
        for tag in 0..16 {
            assert_eq!(statistics.place(tag).copied(), Some(Some(tag.into())));
        }
        assert!((16..=u16::MAX).all(|tag| statistics.place(tag).is_none()));
    }
}
