//! `Region`: the blocks of the device, and the rules by which they are plugged and unplugged.
//!
//! Lock order: `changes` and `live` are each taken alone; under `live` the driver is told of a change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vmm_core::LogLimit;
use vmm_memory::{BlockState, HotplugError, HotplugLayout, HotplugRegion, RamRange};

use super::counters::{Counters, MemCounts};
use super::request::{Answer, Blocks, Request};
use crate::sync::lock;
use crate::virtio::DeviceStatus;

/// Why a guest cannot be asked for a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is more than there are blocks.
    #[error("{bytes} bytes are more than the {region} bytes that can be plugged")]
    BeyondRegion {
        /// What was asked for.
        bytes: u64,
        /// What there is.
        region: u64,
    },
    /// It is no number of blocks.
    #[error("{bytes} bytes are not made of blocks of {block} bytes")]
    NotBlocks {
        /// What was asked for.
        bytes: u64,
        /// Bytes of a block.
        block: u64,
    },
}

/// What a request asks to be changed, after it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Plug(RamRange),
    Unplug(RamRange),
    UnplugAll,
}

/// What is to be done about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered at once.
    Answer(Answer),
    /// It is answered when this has been tried.
    Change(Change),
}

/// Whether a change is being made, and whether there are to be more.
#[derive(Default)]
struct Changes {
    is_one_under_way: bool,
    have_ended: bool,
}

/// The blocks, and how many of them the guest is to have.
pub(super) struct Region {
    blocks: HotplugRegion,
    /// Bytes; a number of blocks, no more than there are.
    requested: Arc<AtomicU64>,
    /// Who is told of another size: a driver that is ready.
    live: Mutex<Option<DeviceStatus>>,
    changes: Mutex<Changes>,
    /// A change has come to its end.
    idle: Condvar,
    pub(super) counters: Counters,
    log: LogLimit,
}

impl Region {
    pub(super) fn new(blocks: HotplugRegion, requested: Arc<AtomicU64>) -> Self {
        Self {
            blocks,
            requested,
            live: Mutex::default(),
            changes: Mutex::default(),
            idle: Condvar::new(),
            counters: Counters::default(),
            log: LogLimit::default(),
        }
    }

    pub(super) fn layout(&self) -> HotplugLayout {
        self.blocks.layout()
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::Acquire)
    }

    pub(super) fn plugged(&self) -> u64 {
        self.blocks.plugged_size()
    }

    /// Says how much the guest is to have, and tells a driver that is ready.
    pub(super) fn request(&self, bytes: u64) -> Result<(), SizeError> {
        let HotplugLayout { range, block_size, .. } = self.layout();
        if bytes > range.size {
            return Err(SizeError::BeyondRegion { bytes, region: range.size });
        }
        if !bytes.is_multiple_of(block_size) {
            return Err(SizeError::NotBlocks { bytes, block: block_size });
        }
        let set = || self.requested.store(bytes, Ordering::Release);
        match &*lock(&self.live) {
            Some(status) => status.change_config(set),
            None => set(),
        }
        Ok(())
    }

    /// A driver is ready, or not any more.
    pub(super) fn set_live(&self, status: Option<DeviceStatus>) {
        *lock(&self.live) = status;
    }

    /// Looks at a request. Waits for nothing.
    pub(super) fn consider(&self, request: Request) -> Verdict {
        match request {
            Request::Plug(blocks) => self.consider_plugging(blocks),
            Request::Unplug(blocks) => match self.state(blocks) {
                Some(BlockState::Plugged) => Verdict::Change(Change::Unplug(self.range(blocks))),
                _ => Verdict::Answer(Answer::Error),
            },
            Request::UnplugAll => Verdict::Change(Change::UnplugAll),
            Request::State(blocks) => {
                Verdict::Answer(self.state(blocks).map_or(Answer::Error, Answer::State))
            }
            Request::Unknown => Verdict::Answer(Answer::Error),
        }
    }

    fn consider_plugging(&self, blocks: Blocks) -> Verdict {
        let range = self.range(blocks);
        if self.state(blocks) != Some(BlockState::Unplugged) {
            return Verdict::Answer(Answer::Error);
        }
        if self.plugged().saturating_add(range.size) > self.requested() {
            return Verdict::Answer(Answer::Nack);
        }
        Verdict::Change(Change::Plug(range))
    }

    /// `None`: these are no blocks, or none of these.
    fn state(&self, blocks: Blocks) -> Option<BlockState> {
        self.blocks.state(self.range(blocks)).ok()
    }

    fn range(&self, blocks: Blocks) -> RamRange {
        blocks.range(self.layout().block_size)
    }

    /// Tries a change. Waits for the readers of guest RAM and perhaps for a standstill of the machine, so never in a read section.
    pub(super) fn make(&self, change: Change) -> Answer {
        let Some(_under_way) = UnderWay::begin(self) else { return Answer::Busy };
        let made = match change {
            Change::Plug(range) => self.blocks.plug(range),
            Change::Unplug(range) => self.blocks.unplug(range),
            Change::UnplugAll => self.blocks.unplug_all(),
        };
        let Err(error) = made else {
            let Counters { plugs, unplugs, .. } = &self.counters;
            let counter = if matches!(change, Change::Plug(_)) { plugs } else { unplugs };
            counter.one();
            return Answer::Ack;
        };
        if matches!(error, HotplugError::WrongState { .. } | HotplugError::NotBlocks { .. }) {
            return Answer::Error;
        }
        // What the host lacks now it may have later. It is not the driver's fault either.
        if !error.is_busy()
            && let Some(left_out) = self.log.permit()
        {
            let error = &error as &(dyn std::error::Error + 'static);
            tracing::error!(error, ?change, left_out, "memory is not plugged or unplugged");
        }
        Answer::Busy
    }

    /// Counts what was answered and is not counted as done.
    pub(super) fn count(&self, answer: Answer) {
        match answer {
            Answer::Ack => {}
            Answer::State(_) => self.counters.states.one(),
            Answer::Nack => self.counters.beyond.one(),
            Answer::Busy => self.counters.busy.one(),
            Answer::Error => self.counters.errors.one(),
        }
    }

    pub(super) fn counts(&self) -> MemCounts {
        let HotplugLayout { range, block_size, .. } = self.layout();
        let Counters { plugs, unplugs, states, beyond, busy, errors } = &self.counters;
        MemCounts {
            block_bytes: block_size,
            region_bytes: range.size,
            requested_bytes: self.requested(),
            plugged_bytes: self.plugged(),
            plugs: plugs.get(),
            unplugs: unplugs.get(),
            states: states.get(),
            beyond_requested: beyond.get(),
            busy: busy.get(),
            broken: errors.get(),
        }
    }

    /// Lets no change begin any more, and waits for the end of the one that is under way.
    pub(super) fn end(&self) {
        let mut changes = lock(&self.changes);
        changes.have_ended = true;
        while changes.is_one_under_way {
            changes = self.idle.wait(changes).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A change that is being made. Dropped, it is not.
struct UnderWay<'a>(&'a Region);

impl<'a> UnderWay<'a> {
    fn begin(region: &'a Region) -> Option<Self> {
        let mut changes = lock(&region.changes);
        let may_begin = !changes.have_ended && !changes.is_one_under_way;
        changes.is_one_under_way |= may_begin;
        may_begin.then(|| Self(region))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.changes).is_one_under_way = false;
        self.0.idle.notify_all();
    }
}
