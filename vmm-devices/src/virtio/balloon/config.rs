//! `Config`: the configuration of a balloon (virtio 1.3, section 5.5.4), its features, and which queue is which.

use crate::virtio::features;

/// VIRTIO_BALLOON_F_MUST_TELL_HOST: the driver tells of pages before it uses them again (section 5.5.3).
pub(super) const MUST_TELL_HOST: u64 = 1 << 0;
/// VIRTIO_BALLOON_F_STATS_VQ.
pub(super) const STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_FREE_PAGE_HINT.
pub(super) const FREE_PAGE_HINT: u64 = 1 << 3;
/// VIRTIO_BALLOON_F_PAGE_POISON.
pub(super) const PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING.
pub(super) const PAGE_REPORTING: u64 = 1 << 5;

/// What every balloon offers.
pub(super) const ALWAYS: u64 = STATS_VQ | FREE_PAGE_HINT | PAGE_POISON | features::RING_RESET;

/// What a queue is for (section 5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages go into the balloon.
    Inflate,
    /// Pages come out of it.
    Deflate,
    Statistics,
    Hint,
    Report,
    /// There is none of this number.
    None,
}

/// The queues behind the first two, each there with its feature.
const OPTIONAL: [(u64, Role); 3] =
    [(STATS_VQ, Role::Statistics), (FREE_PAGE_HINT, Role::Hint), (PAGE_REPORTING, Role::Report)];

/// Which queue is which. By the specification each has its number, and those without their feature are missing. Linux numbers those
/// that there are one after the other: it is taken at its word if it has enabled a queue that would be a missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Roles([Role; 5]);

impl Roles {
    /// Of a driver that has negotiated `features` and enabled these queues.
    pub(super) fn new(features: u64, enabled: impl Iterator<Item = usize>) -> Self {
        let named = OPTIONAL.map(|(feature, role)| if features & feature == 0 { Role::None } else { role });
        let by_number = Self::with(named);
        if enabled.into_iter().all(|index| by_number.of(index) != Role::None) {
            return by_number;
        }
        let mut dense = [Role::None; 3];
        let there = named.into_iter().filter(|role| *role != Role::None);
        dense.iter_mut().zip(there).for_each(|(place, role)| *place = role);
        Self::with(dense)
    }

    fn with([third, fourth, fifth]: [Role; 3]) -> Self {
        Self([Role::Inflate, Role::Deflate, third, fourth, fifth])
    }

    /// What queue `index` is for.
    pub(super) fn of(&self, index: usize) -> Role {
        self.0.get(index).copied().unwrap_or(Role::None)
    }
}

/// Bytes of the configuration.
const LENGTH: usize = 16;

/// The configuration. What of it the driver writes is `actual` and `poison`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Pages that the balloon is to have.
    pub(super) target: u32,
    /// Pages that it has, as the driver says.
    pub(super) actual: u32,
    /// The command of free page hinting.
    pub(super) hint: u32,
    /// What the driver fills free pages with, if it does.
    pub(super) poison: u32,
}

impl Config {
    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let fields = [self.target, self.actual, self.hint, self.poison];
        let (places, _) = bytes.as_chunks_mut::<4>();
        places.iter_mut().zip(fields).for_each(|(place, field)| *place = field.to_le_bytes());
        bytes
    }

    /// The driver writes `data` at `offset`. What is the device's, and what is beyond the end, is left as it is.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = self.bytes();
        let Ok(offset) = usize::try_from(offset) else { return };
        for (index, byte) in data.iter().enumerate() {
            if let Some(place) = bytes.get_mut(offset.saturating_add(index)) {
                *place = *byte;
            }
        }
        let ([_, actual, _, poison], _) = bytes.as_chunks::<4>() else { return };
        self.actual = u32::from_le_bytes(*actual);
        self.poison = u32::from_le_bytes(*poison);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn roles(features: u64, enabled: &[usize]) -> [Role; 6] {
        let roles = Roles::new(features, enabled.iter().copied());
        [0, 1, 2, 3, 4, usize::MAX].map(|index| roles.of(index))
    }

    #[test]
    fn queues_have_their_numbers_whether_missing_ones_are_counted_or_not() {
        use Role::{Deflate, Hint, Inflate, None, Report, Statistics};
        let all = STATS_VQ | FREE_PAGE_HINT | PAGE_REPORTING;
        assert_eq!(roles(all, &[0, 1, 2, 3, 4]), [Inflate, Deflate, Statistics, Hint, Report, None]);
        assert_eq!(roles(0, &[0, 1]), [Inflate, Deflate, None, None, None, None]);
        let without = STATS_VQ | PAGE_REPORTING;
        assert_eq!(roles(without, &[0, 1, 2, 4]), [Inflate, Deflate, Statistics, None, Report, None]);
        assert_eq!(roles(without, &[0, 1, 2, 3]), [Inflate, Deflate, Statistics, Report, None, None]);
        assert_eq!(roles(FREE_PAGE_HINT | PAGE_REPORTING, &[0, 1, 2, 3])[2..4], [Hint, Report]);
        assert_eq!(roles(FREE_PAGE_HINT | PAGE_REPORTING, &[0, 1, 3, 4])[3..5], [Hint, Report]);
        assert_eq!(roles(PAGE_REPORTING, &[0, 1, 2])[2..], [Report, None, None, None]);
        // Queues that are for nothing.
        assert_eq!(roles(0, &[0, 1, 2, 3, 4])[2..], [None; 4]);
        assert_eq!(roles(STATS_VQ, &[4])[2..], [Statistics, None, None, None]);
    }

    #[test]
    fn fault_b2_a_driver_writes_what_is_its_own_and_nothing_else() {
        let before = Config { target: 1, actual: 2, hint: 3, poison: 4 };
        assert_eq!(before.bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        let written = |offset, data: &[u8]| {
            let mut config = before;
            config.write(offset, data);
            config
        };
        assert_eq!(written(4, &[5, 6, 7, 8]), Config { actual: 0x0807_0605, ..before });
        assert_eq!(written(12, &[0xff; 4]), Config { poison: u32::MAX, ..before });
        assert_eq!(written(5, &[1]), Config { actual: 0x0102, ..before });
        assert_eq!(written(0, &[9; 16]), Config { actual: 0x0909_0909, poison: 0x0909_0909, ..before });
        assert_eq!(written(2, &[9; 4]), Config { actual: 0x0909, ..before });
        assert_eq!(written(15, &[9; 8]), Config { poison: 0x0900_0004, ..before });
        for offset in [0, 8, 16, 17, u64::MAX - 1, u64::MAX] {
            assert_eq!(written(offset, &[9; 4]), before, "offset {offset}");
        }
    }
}
