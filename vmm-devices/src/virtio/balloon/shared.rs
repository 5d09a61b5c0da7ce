//! `Shared`: what the host, the driver and the queues of a balloon have in common.
//!
//! Lock order: `state` is the only lock here. Drivers are told under it, which takes none.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_memory::RamRange;
use vmm_sys_util::eventfd::EventFd;

use super::PAGE;
use super::config::{Config, FREE_PAGE_HINT};
use super::counters::Counters;
use super::hint::{HintState, Hints};
use super::statistics::Sample;
use crate::sync::lock;
use crate::virtio::DeviceStatus;

/// What the host has set. It may outlive the device: a machine that starts again finds it as it was.
///
/// The fields stand for themselves: whoever changes one tells those whom it concerns.
#[derive(Debug)]
pub struct BalloonSettings {
    /// In pages.
    target: AtomicU32,
    /// In milliseconds; 0: statistics are not asked for.
    interval: AtomicU64,
}

impl BalloonSettings {
    /// A balloon that is to have `target` bytes, of which whole pages count, and statistics that are asked for so often; of zero, only
    /// those that the driver brings by itself.
    #[must_use]
    pub fn new(target: u64, statistics_interval: Duration) -> Arc<Self> {
        let settings = Self { target: AtomicU32::new(pages(target)), interval: AtomicU64::new(0) };
        settings.set_interval(statistics_interval);
        Arc::new(settings)
    }

    /// How large the balloon is to be, in bytes.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.target.load(Ordering::Relaxed)).saturating_mul(PAGE)
    }

    /// How often statistics are asked for; zero: never.
    #[must_use]
    pub fn statistics_interval(&self) -> Duration {
        Duration::from_millis(self.interval.load(Ordering::Relaxed))
    }

    fn set_interval(&self, interval: Duration) {
        self.interval.store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Whole pages of so many bytes, as many as a driver can be told.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

/// Why a balloon is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum BalloonError {
    #[error("a balloon of {bytes} bytes is larger than the guest's RAM of {most}")]
    TooLarge { bytes: u64, most: u64 },
    #[error("a balloon of {bytes} bytes is not made of whole pages of 4096")]
    NotPages { bytes: u64 },
    #[error("the guest has no driver for its balloon, or not yet")]
    NoDriver,
    #[error("the guest's driver gives no hints about free pages")]
    NoHints,
}

/// How a balloon is, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Whether the guest has a driver for it.
    pub has_driver: bool,
    /// How large it is to be, in bytes.
    pub target: u64,
    /// How large it is, as the driver says.
    pub actual: u64,
    /// How often statistics are asked for; zero: never.
    pub statistics_interval: Duration,
    /// The freshest statistics.
    pub sample: Option<Sample>,
    /// The round of free page hinting.
    pub hints: HintStatus,
}

/// How far a round of free page hinting is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintStatus {
    /// How far.
    pub state: HintState,
    /// Bytes of the pages that the driver has named in it.
    pub bytes: u64,
}

/// A driver that is ready.
struct Live {
    status: DeviceStatus,
    features: u64,
    /// Of the queue of statistics.
    statistics: Option<Arc<EventFd>>,
}

#[derive(Default)]
struct State {
    actual: u32,
    poison: u32,
    hints: Hints,
    sample: Option<Sample>,
    live: Option<Live>,
}

pub(super) struct Shared {
    settings: Arc<BalloonSettings>,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(settings: Arc<BalloonSettings>) -> Self {
        Self { settings, counters: Arc::default(), state: Mutex::default() }
    }

    pub(super) fn settings(&self) -> &BalloonSettings {
        &self.settings
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// A driver is ready, whose balloon is empty.
    pub(super) fn start(&self, status: DeviceStatus, features: u64, statistics: Option<Arc<EventFd>>) {
        let mut state = lock(&self.state);
        state.actual = 0;
        state.live = Some(Live { status, features, statistics });
    }

    /// It is not any more: it has taken its pages, or has forgotten them.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.state);
        // Which ids there were is not forgotten: none is used twice.
        let mut hints = std::mem::take(&mut state.hints);
        hints.end();
        *state = State { hints, ..State::default() };
    }

    pub(super) fn config(&self) -> Config {
        self.config_of(&lock(&self.state))
    }

    fn config_of(&self, state: &State) -> Config {
        let target = self.settings.target.load(Ordering::Relaxed);
        Config { target, actual: state.actual, hint: state.hints.command(), poison: state.poison }
    }

    /// The driver writes the configuration.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        let mut config = self.config_of(&state);
        config.write(offset, data);
        (state.actual, state.poison) = (config.actual, config.poison);
    }

    /// What the driver fills free pages with.
    pub(super) fn poison(&self) -> u32 {
        lock(&self.state).poison
    }

    pub(super) fn with_hints<T>(&self, act: impl FnOnce(&mut Hints) -> T) -> T {
        act(&mut lock(&self.state).hints)
    }

    /// Statistics have come.
    pub(super) fn sampled(&self, sample: Sample) {
        lock(&self.state).sample = Some(sample);
    }

    /// The balloon is to have `bytes`; the driver is told.
    pub(super) fn set_target(&self, bytes: u64) {
        self.settings.target.store(pages(bytes), Ordering::Relaxed);
        if let Some(live) = &lock(&self.state).live {
            live.status.config_changed();
        }
    }

    /// Statistics are to be asked for so often.
    pub(super) fn set_statistics_interval(&self, interval: Duration) {
        self.settings.set_interval(interval);
        if let Some(doorbell) = lock(&self.state).live.as_ref().and_then(|live| live.statistics.as_ref()) {
            // It fails only when 2^64 - 2 rings wait already.
            let _ = doorbell.write(1);
        }
    }

    /// Asks the driver for a new round of hints.
    pub(super) fn begin_hints(&self) -> Result<(), BalloonError> {
        let mut state = lock(&self.state);
        let State { live, hints, .. } = &mut *state;
        let live = live.as_ref().ok_or(BalloonError::NoDriver)?;
        if live.features & FREE_PAGE_HINT == 0 {
            return Err(BalloonError::NoHints);
        }
        hints.begin();
        live.status.config_changed();
        Ok(())
    }

    /// Ends the round that there may be: the driver has its pages again.
    pub(super) fn end_hints(&self) {
        let mut state = lock(&self.state);
        if state.hints.state() == HintState::Idle {
            return;
        }
        state.hints.end();
        if let Some(live) = &state.live {
            live.status.config_changed();
        }
    }

    pub(super) fn hinted(&self) -> Vec<RamRange> {
        lock(&self.state).hints.ranges()
    }

    pub(super) fn status(&self) -> BalloonStatus {
        let state = lock(&self.state);
        let has_driver = state.live.is_some();
        let bytes = state.hints.ranges().iter().map(|range| range.size).fold(0, u64::saturating_add);
        BalloonStatus {
            has_driver,
            target: self.settings.target(),
            // What a driver has written that is not ready says nothing.
            actual: if has_driver { u64::from(state.actual).saturating_mul(PAGE) } else { 0 },
            statistics_interval: self.settings.statistics_interval(),
            sample: state.sample,
            hints: HintStatus { state: state.hints.state(), bytes },
        }
    }
}
