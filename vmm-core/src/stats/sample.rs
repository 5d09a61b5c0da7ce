//! `Sample`: the values of the statistics at one moment.

use std::sync::Arc;

use super::descriptor::Statistic;
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

    fn of(&self, statistic: &Statistic) -> &[u64] {
        self.values.get(statistic.values.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::blob::{Blob, Described};

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
