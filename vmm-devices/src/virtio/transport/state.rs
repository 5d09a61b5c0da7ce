//! `Registers`: status, features and the set-up of queues, one state machine for all transports, without a device behind it.
//!
//! virtio 1.3, sections 2.1, 2.2, 2.6.1 and 3.1. A write that a driver may not make at that time changes nothing and is
//! counted; a reset is always possible.

use super::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::virtio::features;
use crate::virtio::queue::QueueState;

/// What a driver does not see of a queue that is not there.
const NO_QUEUE: u16 = 0;

/// What follows from a write to the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Nothing beyond the register.
    None,
    /// The driver is ready: the device is to be started with the queues that are enabled.
    Start,
    /// The driver wants a reset. All is as it was until [`Registers::reset`].
    Reset,
}

/// One of the three areas of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueArea {
    /// The descriptor table.
    Descriptors,
    /// The available ring, called driver area.
    Available,
    /// The used ring, called device area.
    Used,
}

/// The registers of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    setup: QueueState,
    max: u16,
    enabled: bool,
    resetting: bool,
}

impl QueueRegisters {
    fn new(index: usize, max: u16) -> Self {
        Self { setup: QueueState::new(index, max), max, enabled: false, resetting: false }
    }

    /// The largest size.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max
    }

    /// The size that the driver wants; 0 if it is none that the queue can have.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// Whether the driver has enabled it.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether a reset of this queue has not come to its end.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Where an area is.
    #[must_use]
    pub fn address(&self, area: QueueArea) -> u64 {
        match area {
            QueueArea::Descriptors => self.setup.descriptor_table,
            QueueArea::Available => self.setup.available_ring,
            QueueArea::Used => self.setup.used_ring,
        }
    }

    fn address_mut(&mut self, area: QueueArea) -> &mut u64 {
        match area {
            QueueArea::Descriptors => &mut self.setup.descriptor_table,
            QueueArea::Available => &mut self.setup.available_ring,
            QueueArea::Used => &mut self.setup.used_ring,
        }
    }
}

/// The registers of one device that both transports have.
#[derive(Debug)]
pub struct Registers {
    offered: u64,
    accepted: u64,
    status: u8,
    resetting: bool,
    device_select: u32,
    driver_select: u32,
    queue_select: u32,
    queues: Box<[QueueRegisters]>,
    ignored: u64,
}

impl Registers {
    /// The registers of a device that offers `features` of its own and has queues of at most these sizes.
    #[must_use]
    pub fn new(features: u64, queue_sizes: &[u16]) -> Self {
        debug_assert_eq!(features & !features::OF_DEVICE, 0, "bits that are not a device's to offer");
        let queues = queue_sizes.iter().enumerate().map(|(index, &max)| QueueRegisters::new(index, max));
        Self {
            offered: features & features::OF_DEVICE | features::OF_TRANSPORT,
            accepted: 0,
            status: 0,
            resetting: false,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues: queues.collect(),
            ignored: 0,
        }
    }

    /// The same of a device whose rings have these features alone.
    #[must_use]
    pub fn with_rings(self, features: u64) -> Self {
        let rings = features & features::OF_RINGS;
        Self { offered: self.offered & !features::OF_RINGS | rings, ..self }
    }

    /// The status, without NEEDS_RESET.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The features that the driver has accepted, of those that are offered.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many writes were ignored because a driver may not make them.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Counts a write that was ignored.
    pub fn ignore(&mut self) {
        self.ignored = self.ignored.saturating_add(1);
    }

    /// The driver writes the status.
    pub fn set_status(&mut self, value: u8) -> StatusChange {
        if self.resetting {
            // Another reset waits for the one that is under way.
            return if value == 0 { StatusChange::Reset } else { self.refuse() };
        }
        if value == 0 {
            self.resetting = true;
            return StatusChange::Reset;
        }
        // A driver writes back what it has read.
        let value = value & !NEEDS_RESET;
        if !self.may_follow(value) {
            return self.refuse();
        }
        let new = value & !self.status;
        if new & FEATURES_OK != 0 && self.accepted & features::VERSION_1 == 0 {
            // Everything else is taken: the driver looks whether the bit has stayed.
            self.status = value & !FEATURES_OK;
            self.ignore();
            return StatusChange::None;
        }
        self.status = value;
        if new & DRIVER_OK != 0 { StatusChange::Start } else { StatusChange::None }
    }

    /// Whether this status may follow the one that is there: none of its bits is taken back, none comes before those that it
    /// needs, FEATURES_OK and DRIVER_OK do not come at once, and after FAILED nothing comes (section 2.1.1).
    fn may_follow(&self, value: u8) -> bool {
        const STEPS: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        let known = STEPS.iter().fold(FAILED, |known, step| known | step);
        let new = value & !self.status;
        let in_order = STEPS.windows(2).all(|pair| match pair {
            [before, after] => value & after == 0 || value & before != 0,
            _ => true,
        });
        let gave_up = self.status & FAILED != 0 && new != 0;
        let skips = new & DRIVER_OK != 0 && self.status & FEATURES_OK == 0;
        value & !known == 0 && self.status & !value == 0 && in_order && !gave_up && !skips
    }

    fn refuse(&mut self) -> StatusChange {
        self.ignore();
        StatusChange::None
    }

    /// The reset that the driver wanted has come to its end: everything is as in the beginning.
    pub fn reset(&mut self) {
        let queues = self.queues.iter().enumerate();
        self.queues = queues.map(|(index, queue)| QueueRegisters::new(index, queue.max)).collect();
        self.accepted = 0;
        self.status = 0;
        self.resetting = false;
        self.device_select = 0;
        self.driver_select = 0;
        self.queue_select = 0;
    }

    /// Whether a reset has not come to its end.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// The driver selects 32 of the offered features.
    pub fn select_offered(&mut self, page: u32) {
        self.device_select = page;
    }

    /// Which of the offered features are selected.
    #[must_use]
    pub fn offered_page(&self) -> u32 {
        self.device_select
    }

    /// The 32 offered features that are selected; none beyond the second page.
    #[must_use]
    pub fn offered(&self) -> u32 {
        page(self.offered, self.device_select)
    }

    /// The driver selects 32 of the features that it accepts.
    pub fn select_accepted(&mut self, page: u32) {
        self.driver_select = page;
    }

    /// Which of the accepted features are selected.
    #[must_use]
    pub fn accepted_page(&self) -> u32 {
        self.driver_select
    }

    /// The 32 accepted features that are selected.
    #[must_use]
    pub fn accepted_selected(&self) -> u32 {
        page(self.accepted, self.driver_select)
    }

    /// The driver accepts features: those that are not offered stay out, and after FEATURES_OK nothing changes
    /// (section 3.1.1).
    pub fn accept(&mut self, bits: u32) {
        let may = self.is_set_up_by_driver() && self.status & FEATURES_OK == 0;
        let shift = match self.driver_select {
            0 => 0,
            1 => 32,
            _ => return self.ignore(),
        };
        let bits = u64::from(bits) << shift;
        if !may || bits & !self.offered != 0 {
            self.ignore();
        }
        if may {
            let others = self.accepted & !(u64::from(u32::MAX) << shift);
            self.accepted = others | bits & self.offered;
        }
    }

    /// Number of queues.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The driver selects a queue.
    pub fn select_queue(&mut self, index: u32) {
        self.queue_select = index;
    }

    /// Which queue is selected.
    #[must_use]
    pub fn queue_index(&self) -> u32 {
        self.queue_select
    }

    /// The queue that is selected, if the device has it.
    #[must_use]
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The driver says how many descriptors the selected queue has.
    pub fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.queue_to_set_up() {
            let possible = |size: &u16| size.is_power_of_two() && *size <= queue.max;
            queue.setup.size = u16::try_from(size).ok().filter(possible).unwrap_or(NO_QUEUE);
        }
    }

    /// The driver says where an area of the selected queue is: the lower or the upper half of the address.
    pub fn set_queue_address(&mut self, area: QueueArea, upper: bool, half: u32) {
        if let Some(queue) = self.queue_to_set_up() {
            let address = queue.address_mut(area);
            let (kept, shift) = if upper { (u64::from(u32::MAX), 32) } else { (!u64::from(u32::MAX), 0) };
            *address = *address & kept | u64::from(half) << shift;
        }
    }

    /// The driver enables the selected queue. `Some`: of a device that runs, so that the queue, which was reset before, is
    /// to be started now.
    pub fn enable_queue(&mut self) -> Option<QueueState> {
        let live = self.is_live();
        let queue = self.queue_to_set_up()?;
        queue.enabled = true;
        live.then_some(queue.setup)
    }

    /// The driver takes the selected queue back, as long as the device does not run.
    pub fn disable_queue(&mut self) {
        let may = self.status & FEATURES_OK != 0 && !self.is_live() && !self.resetting;
        match self.selected().filter(|_| may) {
            Some(queue) => queue.enabled = false,
            None => self.ignore(),
        }
    }

    /// The driver resets the selected queue (section 2.6.1). `Some`: it runs, and is to be stopped; it is as it was until
    /// [`queue_was_reset`](Self::queue_was_reset).
    pub fn reset_queue(&mut self) -> Option<usize> {
        let may = self.accepted & features::RING_RESET != 0 && self.is_live();
        let queue = self.selected().filter(|queue| may && queue.enabled && !queue.resetting);
        match queue {
            Some(queue) => {
                queue.resetting = true;
                Some(queue.setup.index)
            }
            None => {
                self.ignore();
                None
            }
        }
    }

    /// The reset of queue `index` has come to its end.
    pub fn queue_was_reset(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index)
            && queue.resetting
        {
            *queue = QueueRegisters::new(index, queue.max);
        }
    }

    /// Whether the reset of some queue has not come to its end.
    #[must_use]
    pub fn is_any_queue_resetting(&self) -> bool {
        self.queues.iter().any(QueueRegisters::is_resetting)
    }

    /// The queues that are enabled, as the driver has set them up.
    pub fn enabled(&self) -> impl Iterator<Item = QueueState> {
        self.queues.iter().filter(|queue| queue.enabled).map(|queue| queue.setup)
    }

    /// Whether the driver has said that it is ready.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.resetting
    }

    fn is_set_up_by_driver(&self) -> bool {
        self.status & DRIVER != 0 && self.status & FAILED == 0 && !self.resetting
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue, if the driver may set it up now: the features are negotiated, it is not enabled, and either the
    /// device does not run yet or rings can be reset (sections 3.1.1 and 2.6.1).
    fn queue_to_set_up(&mut self) -> Option<&mut QueueRegisters> {
        let negotiated = self.is_set_up_by_driver() && self.status & FEATURES_OK != 0;
        let may = negotiated && (!self.is_live() || self.accepted & features::RING_RESET != 0);
        let is_free = |queue: &&mut QueueRegisters| may && !queue.enabled && !queue.resetting;
        if self.selected().filter(is_free).is_none() {
            self.ignore();
            return None;
        }
        self.selected()
    }
}

/// 32 bits of 64; none beyond.
fn page(bits: u64, page: u32) -> u32 {
    let shifted = match page {
        0 => bits,
        1 => bits >> 32,
        _ => 0,
    };
    (shifted & 0xffff_ffff) as u32
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
