//! `Statistic`: one of the kernel's statistics: its name, what kind of number it is, and in which unit.

use std::ops::Range;

/// What the values of a statistic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A count that only rises.
    Cumulative,
    /// What is the case now.
    Instant,
    /// The highest that an instant value has been.
    Peak,
    /// Counts by value, in buckets of one width.
    LinearHistogram {
        /// The width of a bucket.
        bucket_size: u32,
    },
    /// Counts by value, in buckets each of which is as wide as all before it together.
    LogHistogram,
    /// A kind of this number, from a kernel that is newer than this program.
    Unknown(u8),
}

/// What is counted or measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Events or things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Clock cycles of the processor.
    Cycles,
    /// 0 and 1, for no and yes.
    Boolean,
    /// A unit of this number, from a kernel that is newer than this program.
    Unknown(u8),
}

/// What is raised to the power of a statistic's exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// 10.
    Ten,
    /// 2.
    Two,
    /// A base of this number, from a kernel that is newer than this program.
    Unknown(u8),
}

/// One statistic. A value v of it stands for v × base^exponent units; so with base 10 and exponent −9 the unit
/// [`Unit::Seconds`] makes nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// The kernel's name for it: printable ASCII.
    pub name: Box<str>,
    /// What its values are.
    pub kind: Kind,
    /// What they count or measure.
    pub unit: Unit,
    /// The base of their scale.
    pub base: Base,
    /// The exponent of their scale.
    pub exponent: i16,
    /// Where its values are in the data block, in bytes.
    pub(super) bytes: Range<usize>,
    /// Where they are in a sample.
    pub(super) values: Range<usize>,
}

impl Statistic {
    /// Whether the values are the buckets of a histogram.
    #[must_use]
    pub fn is_histogram(&self) -> bool {
        matches!(self.kind, Kind::LinearHistogram { .. } | Kind::LogHistogram)
    }

    /// The lowest value that no longer falls into bucket `index` of a histogram; `None` if there is none: that is so for
    /// the last bucket, and for what is no histogram.
    #[must_use]
    pub fn bucket_end(&self, index: usize) -> Option<u64> {
        if index >= self.values.len().saturating_sub(1) {
            return None;
        }
        let index = u32::try_from(index).ok()?;
        match self.kind {
            Kind::LinearHistogram { bucket_size } => {
                u64::from(bucket_size).checked_mul(u64::from(index).checked_add(1)?)
            }
            Kind::LogHistogram => 1_u64.checked_shl(index),
            Kind::Cumulative | Kind::Instant | Kind::Peak | Kind::Unknown(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, values: usize) -> Statistic {
        Statistic {
            name: "a".into(),
            kind,
            unit: Unit::Count,
            base: Base::Ten,
            exponent: 0,
            bytes: 0..8 * values,
            values: 0..values,
        }
    }

    #[test]
    fn buckets_end_where_the_kernel_ends_them() {
        let ends = |kind| [0, 1, 2, 3, 4].map(|index| of(kind, 4).bucket_end(index));
        assert_eq!(ends(Kind::LogHistogram), [Some(1), Some(2), Some(4), None, None]);
        assert_eq!(
            ends(Kind::LinearHistogram { bucket_size: 10 }),
            [Some(10), Some(20), Some(30), None, None]
        );
        assert_eq!(ends(Kind::Cumulative), [None; 5]);
    }

    #[test]
    fn a_bucket_beyond_64_bits_has_no_end() {
        assert_eq!(of(Kind::LogHistogram, 100).bucket_end(63), Some(1 << 63));
        assert_eq!(of(Kind::LogHistogram, 100).bucket_end(64), None);
        assert_eq!(of(Kind::LogHistogram, 0).bucket_end(0), None);
    }
}
