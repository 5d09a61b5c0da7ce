//! `Sample`: the values of the statistics at one moment.

use std::sync::Arc;

use super::descriptor::{Kind, Statistic};
use super::schema::Schema;

/// What a file of statistics held when it was read. Independent of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    schema: Arc<Schema>,
    values: Box<[u64]>,
}

impl Sample {
    /// The sample that `data`, of [`Schema::data_length`] bytes, holds.
    pub(super) fn new(schema: &Arc<Schema>, data: &[u8]) -> Self {
        Self { schema: Arc::clone(schema), values: schema.values(data) }
    }

    /// Each statistic with its values, in the kernel's order: one value, or the buckets of a histogram.
    pub fn iter(&self) -> impl Iterator<Item = (&Statistic, &[u64])> {
        self.schema.statistics().iter().map(|statistic| (statistic, self.of(statistic)))
    }

    /// The values of the statistic called `name`, if the kernel has it.
    #[must_use]
    pub fn values(&self, name: &str) -> Option<&[u64]> {
        let statistic = self.schema.statistics().iter().find(|statistic| &*statistic.name == name)?;
        Some(self.of(statistic))
    }

    /// The statistics that the values are of.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The same without what `before`, an earlier one of the same file, has of counts and histograms. What is the case now, and
    /// the highest that has been, stay as they are.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for statistic in self.schema.statistics() {
            let is_counted = statistic.is_histogram() || statistic.kind == Kind::Cumulative;
            let earlier = before.values.get(statistic.values.clone()).filter(|_| is_counted);
            let now = self.values.get_mut(statistic.values.clone());
            if let (Some(now), Some(earlier)) = (now, earlier) {
                now.iter_mut().zip(earlier).for_each(|(now, earlier)| *now = now.saturating_sub(*earlier));
            }
        }
        self
    }

    fn of(&self, statistic: &Statistic) -> &[u64] {
        self.values.get(statistic.values.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_LOG_HIST, KVM_STATS_UNIT_NONE};

    use super::super::blob::{Blob, Described};

    #[test]
    fn what_was_counted_before_is_left_out_and_what_is_the_case_stays() {
        let at = |count, instant, bucket| {
            let described = |name, kind, values| {
                let flags = kind | KVM_STATS_UNIT_NONE;
                Described { name, flags, values, ..Described::default() }
            };
            let blob = Blob::default()
                .count("exits", count)
                .with(described("pages", KVM_STATS_TYPE_INSTANT, vec![instant]))
                .with(described("hist", KVM_STATS_TYPE_LOG_HIST, vec![bucket, 1]));
            blob.sample().unwrap()
        };
        let since = at(10, 3, 7).since(&at(4, 9, 2));
        assert_eq!(since.values("exits"), Some(&[6][..]));
        assert_eq!(since.values("pages"), Some(&[3][..]));
        assert_eq!(since.values("hist"), Some(&[5, 0][..]));
    }

    #[test]
    fn values_are_found_by_name() {
        let histogram = Described { name: "hist", values: vec![1, 2, 3], ..Described::default() };
        let sample = Blob::default().count("exits", 7).with(histogram).count("last", 9).sample().unwrap();
        assert_eq!(sample.values("exits"), Some(&[7][..]));
        assert_eq!(sample.values("hist"), Some(&[1, 2, 3][..]));
        assert_eq!(sample.values("last"), Some(&[9][..]));
        assert_eq!(sample.values("no_such"), None);
        let names: Vec<&str> = sample.iter().map(|(statistic, _)| &*statistic.name).collect();
        assert_eq!(names, ["exits", "hist", "last"]);
    }
}
