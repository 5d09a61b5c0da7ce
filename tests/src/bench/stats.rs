//! Order statistics of measured values.

/// Median, 99th percentile and extremes of one set of values, in the unit of the values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle value, or the mean of the two middle ones.
    pub median: f64,
    /// The smallest value that at least 99 % of the values do not exceed; below 100 values, the largest.
    pub p99: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Summary {
    /// Summarises `values`, in any order; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            median: median(values)?,
            p99: *sorted.get((sorted.len() * 99).div_ceil(100).checked_sub(1)?)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

/// The median of `values`, in any order; `None` if there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The median over `i` of `numerators[i] / denominators[i]`: values of equal index were measured next to each
/// other, so noise that lasts longer than one round cancels out. `None` if there are none or the lengths
/// differ.
pub fn paired_ratio(numerators: &[f64], denominators: &[f64]) -> Option<f64> {
    if numerators.len() != denominators.len() {
        return None;
    }
    let ratios: Vec<f64> = numerators.iter().zip(denominators).map(|(n, d)| n / d).collect();
    median(&ratios)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(median(&[]), None);
        assert_eq!(paired_ratio(&[], &[]), None);
    }

    #[test]
    fn one_value_is_its_own_summary() {
        assert_eq!(Summary::of(&[7.0]), Some(Summary { median: 7.0, p99: 7.0, min: 7.0, max: 7.0 }));
    }

    #[test]
    fn median_is_the_middle_of_an_odd_and_the_mean_of_the_middle_two_of_an_even_number() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 5.0, 2.0]), Some(3.5));
    }

    #[test]
    fn p99_leaves_out_one_in_a_hundred_and_no_more() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Summary::of(&hundred).map(|s| (s.p99, s.max)), Some((99.0, 100.0)));
        let two_hundred: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&two_hundred).map(|s| (s.p99, s.min, s.max)), Some((198.0, 1.0, 200.0)));
    }

    #[test]
    fn p99_of_few_values_is_the_largest() {
        let twenty: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(Summary::of(&twenty).map(|s| s.p99), Some(20.0));
    }

    #[test]
    fn paired_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() {
        // The host was ten times slower in the second round, for both.
        assert_eq!(paired_ratio(&[2.0, 20.0, 3.0], &[1.0, 10.0, 1.0]), Some(2.0));
        assert_eq!(paired_ratio(&[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]), Some(2.0));
    }

    #[test]
    fn pairs_of_unequal_number_have_no_ratio() {
        assert_eq!(paired_ratio(&[1.0, 2.0], &[1.0]), None);
    }
}
