//! The values of one benchmark as they come in, round by round.

use serde::{Deserialize, Serialize};

use crate::bench::report::{Host, Measured, Outcome, Ratio, Report, Row};
use crate::bench::stats::{Summary, median, paired_ratio};

/// The subject every other one is compared with, unless [`Recorder::against`] says another.
pub const BASELINE: &str = "raw";

/// Something that is measured, and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Name in the report.
    pub name: &'static str,
    /// Unit in the report: `ms`, `us`, `ns`, `KiB`, `instructions` or `exits`.
    pub unit: &'static str,
}

/// Something that was measured elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    case: String,
    subject: String,
    #[serde(flatten)]
    taken: Taken,
}

/// What a sample consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// The values of one round.
    Values(Vec<f64>),
    /// Why there are none, and will be none.
    Failed(String),
    /// What this machine or the subject lacks.
    NotRun(String),
}

impl Sample {
    /// Of `subject` in `case`.
    pub fn new(case: Case, subject: &str, taken: Taken) -> Self {
        Self { case: case.name.to_owned(), subject: subject.to_owned(), taken }
    }
}

/// A case whose baseline has nothing to compare with.
#[derive(Debug, thiserror::Error)]
#[error("no baseline in case {case}: {why}")]
pub struct NoBaseline {
    case: &'static str,
    why: String,
}

/// The values of every case and subject of one benchmark.
#[derive(Debug)]
pub struct Recorder {
    series: Vec<Series>,
    baseline: Baseline,
}

/// What is compared with.
#[derive(Debug, Clone, Copy)]
struct Baseline {
    subject: &'static str,
    /// Whether there is no report without it; otherwise there are no ratios.
    is_needed: bool,
}

#[derive(Debug)]
struct Series {
    case: Case,
    subject: String,
    values: Vec<f64>,
    /// The median of each round's values: what pairs across subjects.
    round_medians: Vec<f64>,
    /// The 99th percentile of each round that has so many values that it is not simply the largest.
    round_p99s: Vec<f64>,
    failure: Option<String>,
    not_run: Option<String>,
}

impl Recorder {
    /// An empty recorder whose report lists `subjects` under each of `cases` in this order. Cases without
    /// [`BASELINE`] among their subjects have no ratios.
    pub fn new(cases: &[Case], subjects: &[&str]) -> Self {
        let baseline = Baseline { subject: BASELINE, is_needed: true };
        Self { series: Vec::new(), baseline }.and(cases, subjects)
    }

    /// The same with another baseline, one that a machine may lack: where it has no values there are no ratios.
    #[must_use]
    pub fn against(mut self, subject: &'static str) -> Self {
        self.baseline = Baseline { subject, is_needed: false };
        self
    }

    /// The same with more cases after the others.
    #[must_use]
    pub fn and(mut self, cases: &[Case], subjects: &[&str]) -> Self {
        let series = |case, subject: &str| Series {
            case,
            subject: subject.to_owned(),
            values: Vec::new(),
            round_medians: Vec::new(),
            round_p99s: Vec::new(),
            failure: None,
            not_run: None,
        };
        let grid = cases.iter().flat_map(|&case| subjects.iter().map(move |&subject| series(case, subject)));
        self.series.extend(grid);
        self
    }

    /// Adds the values of one round.
    pub fn record(&mut self, case: Case, subject: &str, values: &[f64]) {
        if let (Some(series), Some(round)) = (self.find(case, subject), Summary::of(values)) {
            series.values.extend_from_slice(values);
            series.round_medians.push(round.median);
            if values.len() >= 100 {
                series.round_p99s.push(round.p99);
            }
        }
    }

    /// Notes that `subject` cannot be measured (further) in `case`; the first reason stays.
    pub fn fail(&mut self, case: Case, subject: &str, why: &str) {
        if let Some(series) = self.find(case, subject) {
            series.failure.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Adds what was measured elsewhere, unless it is about something that is not in the report.
    pub fn take(&mut self, sample: &Sample) {
        let mut series = self.series.iter().filter(|series| series.case.name == sample.case);
        let Some(case) = series.next().map(|series| series.case) else { return };
        match &sample.taken {
            Taken::Values(values) => self.record(case, &sample.subject, values),
            Taken::Failed(why) => self.fail(case, &sample.subject, why),
            Taken::NotRun(why) => self.leave_out_subject(case, &sample.subject, why),
        }
    }

    /// Leaves `case` out for every subject: this machine lacks what it needs.
    pub fn leave_out(&mut self, case: Case, why: &str) {
        for series in self.series.iter_mut().filter(|series| series.case == case) {
            series.not_run = Some(why.to_owned());
        }
    }

    /// Leaves `subject` out of `case`: it is not there, or does not do this.
    pub fn leave_out_subject(&mut self, case: Case, subject: &str, why: &str) {
        if let Some(series) = self.find(case, subject) {
            series.not_run = Some(why.to_owned());
        }
    }

    /// Whether `subject` is out of `case`.
    pub fn has_failed(&self, case: Case, subject: &str) -> bool {
        let mut failed = self.series.iter().filter(|series| series.failure.is_some());
        failed.any(|series| series.is_of(case, subject))
    }

    /// Sums the values up.
    ///
    /// # Errors
    ///
    /// A case in which the baseline failed or has no values, unless it is one that may be missing.
    pub fn finish(&self, name: &str, rounds: u32, ratio: Ratio) -> Result<Report, NoBaseline> {
        let rows = self.series.iter().map(|series| self.row(series, ratio)).collect::<Result<_, _>>()?;
        let baseline = self.baseline.subject.to_owned();
        Ok(Report {
            name: name.to_owned(),
            host: Host::read(),
            rounds,
            ratio,
            baseline,
            rows,
            counts: Vec::new(),
            notes: Vec::new(),
        })
    }

    fn row(&self, series: &Series, ratio: Ratio) -> Result<Row, NoBaseline> {
        let outcome = match &series.not_run {
            Some(why) => Outcome::NotRun { not_run: why.clone() },
            None => series.outcome(self.baseline(series.case)?, ratio),
        };
        Ok(Row {
            case: series.case.name.to_owned(),
            subject: series.subject.clone(),
            unit: series.case.unit.to_owned(),
            outcome,
        })
    }

    /// What the subjects of `case` are compared with, if they are compared at all.
    fn baseline(&self, case: Case) -> Result<Option<&Series>, NoBaseline> {
        let Some(raw) = self.series.iter().find(|series| series.is_of(case, self.baseline.subject)) else {
            return Ok(None);
        };
        let why = match &raw.failure {
            Some(why) => why,
            None if raw.values.is_empty() => "no values",
            None => return Ok(Some(raw)),
        };
        if !self.baseline.is_needed {
            return Ok(None);
        }
        Err(NoBaseline { case: case.name, why: why.to_owned() })
    }

    fn find(&mut self, case: Case, subject: &str) -> Option<&mut Series> {
        self.series.iter_mut().find(|series| series.is_of(case, subject))
    }
}

impl Series {
    fn is_of(&self, case: Case, subject: &str) -> bool {
        self.case == case && self.subject == subject
    }

    fn outcome(&self, raw: Option<&Self>, ratio: Ratio) -> Outcome {
        if let Some(error) = &self.failure {
            return Outcome::Failed { error: error.clone() };
        }
        let ratios = raw.map(|raw| self.ratios(raw, ratio));
        let (Some(summary), false) = (Summary::of(&self.values), matches!(ratios, Some(None))) else {
            return Outcome::Failed { error: "not measured in every round".to_owned() };
        };
        let (medians, paired) = ratios.flatten().unzip();
        let p99s = raw.and_then(|raw| self.p99_ratio(raw, ratio));
        Outcome::Measured(Measured {
            samples: self.values.len(),
            median: rounded(summary.median),
            p99: rounded(summary.p99),
            min: rounded(summary.min),
            max: rounded(summary.max),
            ratio_vs_baseline: medians.map(rounded),
            paired_ratio_vs_baseline: paired.map(rounded),
            p99_ratio_vs_baseline: p99s.map(rounded),
        })
    }

    /// The ratio of the medians, and the median of the ratios within each round. `None` if a round is missing.
    fn ratios(&self, raw: &Self, ratio: Ratio) -> Option<(f64, f64)> {
        let (above, below) = self.above_and_below(raw, ratio);
        let medians = median(&above.values)? / median(&below.values)?;
        Some((medians, paired_ratio(&above.round_medians, &below.round_medians)?))
    }

    /// The ratio of the medians of the 99th percentiles, if every round has one.
    fn p99_ratio(&self, raw: &Self, ratio: Ratio) -> Option<f64> {
        let (above, below) = self.above_and_below(raw, ratio);
        let of = |series: &Self| {
            let every_round = series.round_p99s.len() == series.round_medians.len();
            every_round.then(|| median(&series.round_p99s)).flatten()
        };
        Some(of(above)? / of(below)?)
    }

    fn above_and_below<'a>(&'a self, raw: &'a Self, ratio: Ratio) -> (&'a Self, &'a Self) {
        match ratio {
            Ratio::Cost => (self, raw),
            Ratio::Rate => (raw, self),
        }
    }
}

/// To a thousandth: more digits would be noise in the report.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Case = Case { name: "time", unit: "us" };
    const SIZE: Case = Case { name: "size", unit: "KiB" };

    fn measured(row: &Row) -> &Measured {
        match &row.outcome {
            Outcome::Measured(measured) => measured,
            other => panic!("{}: {other:?}", row.subject),
        }
    }

    #[test]
    fn rows_come_case_by_case_whatever_the_order_of_measuring() {
        let mut recorder = Recorder::new(&[TIME, SIZE], &["raw", "vmm"]);
        for (case, subject) in [(SIZE, "vmm"), (TIME, "vmm"), (SIZE, "raw"), (TIME, "raw")] {
            recorder.record(case, subject, &[1.0]);
        }
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        let order: Vec<_> = report.rows.iter().map(|row| (row.case.as_str(), row.subject.as_str())).collect();
        assert_eq!(order, [("time", "raw"), ("time", "vmm"), ("size", "raw"), ("size", "vmm")]);
    }

    #[test]
    fn ratios_compare_cost_or_rate_with_raw() {
        let mut recorder = Recorder::new(&[TIME], &["raw", "vmm"]);
        for (raw, vmm) in [(10.0, 20.0), (10.0, 20.0), (40.0, 40.0)] {
            recorder.record(TIME, "raw", &[raw]);
            recorder.record(TIME, "vmm", &[vmm]);
        }
        let cost = recorder.finish("b", 3, Ratio::Cost).unwrap();
        assert_eq!(
            (measured(&cost.rows[1]).ratio_vs_baseline, measured(&cost.rows[1]).samples),
            (Some(2.0), 3)
        );
        assert_eq!(measured(&cost.rows[0]).ratio_vs_baseline, Some(1.0));
        let rate = recorder.finish("b", 3, Ratio::Rate).unwrap();
        assert_eq!(measured(&rate.rows[1]).paired_ratio_vs_baseline, Some(0.5));
    }

    #[test]
    fn a_round_of_many_values_pairs_by_its_median() {
        let mut recorder = Recorder::new(&[SIZE], &["raw", "vmm"]);
        recorder.record(SIZE, "raw", &[1.0, 2.0, 9.0]);
        recorder.record(SIZE, "vmm", &[5.0, 6.0, 7.0]);
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        assert_eq!(measured(&report.rows[1]).samples, 3);
        assert_eq!(measured(&report.rows[1]).paired_ratio_vs_baseline, Some(3.0));
    }

    #[test]
    fn rounds_of_a_hundred_values_have_a_ratio_of_their_99th_percentiles() {
        let mut recorder = Recorder::new(&[TIME, SIZE], &["raw", "vmm"]);
        // 98 ones and two of the largest: the 99th percentile is the largest.
        let round = |largest: f64| [vec![1.0; 98], vec![largest; 2]].concat();
        for (raw, vmm) in [(10.0, 20.0), (1000.0, 20.0), (10.0, 20.0)] {
            recorder.record(TIME, "raw", &round(raw));
            recorder.record(TIME, "vmm", &round(vmm));
            recorder.record(SIZE, "raw", &round(raw)[1..]);
            recorder.record(SIZE, "vmm", &round(vmm));
        }
        let report = recorder.finish("b", 3, Ratio::Cost).unwrap();
        let ratios: Vec<_> = report.rows.iter().map(|row| measured(row).p99_ratio_vs_baseline).collect();
        assert_eq!(ratios, [Some(1.0), Some(2.0), None, None]);
    }

    #[test]
    fn a_failed_subject_says_its_first_reason_and_leaves_the_others() {
        let mut recorder = Recorder::new(&[TIME], &["raw", "peer"]);
        recorder.record(TIME, "raw", &[1.0]);
        recorder.record(TIME, "peer", &[1.0]);
        recorder.fail(TIME, "peer", "first");
        recorder.fail(TIME, "peer", "second");
        assert!(recorder.has_failed(TIME, "peer") && !recorder.has_failed(TIME, "raw"));
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        assert_eq!(measured(&report.rows[0]).median, 1.0);
        assert!(matches!(&report.rows[1].outcome, Outcome::Failed { error } if error == "first"));
    }

    #[test]
    fn a_subject_that_missed_a_round_has_no_values() {
        let mut recorder = Recorder::new(&[TIME], &["raw", "vmm"]);
        recorder.record(TIME, "raw", &[1.0]);
        recorder.record(TIME, "raw", &[1.0]);
        recorder.record(TIME, "vmm", &[1.0]);
        let report = recorder.finish("b", 2, Ratio::Cost).unwrap();
        assert!(matches!(report.rows[1].outcome, Outcome::Failed { .. }));
    }

    #[test]
    fn without_a_baseline_there_is_no_report() {
        let mut recorder = Recorder::new(&[TIME], &["raw", "vmm"]);
        recorder.record(TIME, "vmm", &[1.0]);
        assert!(recorder.finish("b", 1, Ratio::Cost).is_err());
        recorder.fail(TIME, "raw", "no device");
        let error = recorder.finish("b", 1, Ratio::Cost).unwrap_err();
        assert_eq!(error.to_string(), "no baseline in case time: no device");
    }

    #[test]
    fn a_case_without_a_baseline_has_values_and_no_ratios() {
        let mut recorder = Recorder::new(&[TIME], &["raw", "vmm"]).and(&[SIZE], &["vmm"]);
        for (case, subject) in [(TIME, "raw"), (TIME, "vmm"), (SIZE, "vmm"), (SIZE, "vmm")] {
            recorder.record(case, subject, &[2.0]);
        }
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        let size = measured(&report.rows[2]);
        assert_eq!((size.median, size.samples), (2.0, 2));
        assert_eq!((size.ratio_vs_baseline, size.paired_ratio_vs_baseline), (None, None));
        assert_eq!(measured(&report.rows[1]).ratio_vs_baseline, Some(1.0));
    }

    #[test]
    fn a_baseline_that_may_be_missing_takes_the_ratios_with_it_and_nothing_else() {
        let mut recorder = Recorder::new(&[TIME, SIZE], &["vmm", "other"]).against("other");
        for case in [TIME, SIZE] {
            recorder.record(case, "vmm", &[3.0]);
        }
        recorder.record(TIME, "other", &[2.0]);
        recorder.leave_out_subject(SIZE, "other", "no such program");
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        assert_eq!(
            (report.baseline.as_str(), measured(&report.rows[0]).ratio_vs_baseline),
            ("other", Some(1.5))
        );
        assert_eq!(measured(&report.rows[2]).ratio_vs_baseline, None);
        assert!(
            matches!(&report.rows[3].outcome, Outcome::NotRun { not_run } if not_run == "no such program")
        );
    }

    #[test]
    fn a_case_left_out_says_why_in_every_row_and_needs_no_baseline() {
        let mut recorder = Recorder::new(&[TIME, SIZE], &["raw", "vmm"]);
        recorder.leave_out(TIME, "no device");
        recorder.record(SIZE, "raw", &[1.0]);
        recorder.record(SIZE, "vmm", &[1.0]);
        let report = recorder.finish("b", 1, Ratio::Cost).unwrap();
        let left_out =
            |row: &Row| matches!(&row.outcome, Outcome::NotRun { not_run } if not_run == "no device");
        assert_eq!(report.rows.iter().map(left_out).collect::<Vec<_>>(), [true, true, false, false]);
    }
}
