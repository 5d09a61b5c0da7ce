//! The report of a benchmark as its measuring program prints it; vmm-tests defines the fields.

use serde::Deserialize;

/// The subject that is this project's own.
const OWN: &str = "vmm";

/// One run of one benchmark.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub name: String,
    pub host: Host,
    pub rounds: u32,
    pub ratio: Ratio,
    pub baseline: String,
    pub rows: Vec<Row>,
    #[serde(default)]
    pub counts: Vec<Count>,
    #[serde(default)]
    pub notes: Vec<String>,
}

/// How often one thing has happened to one subject, each time that it was counted.
#[derive(Debug, Deserialize)]
pub struct Count {
    pub case: String,
    pub subject: String,
    pub kind: String,
    pub name: String,
    pub values: Vec<u64>,
}

/// The machine.
#[derive(Debug, Deserialize)]
pub struct Host {
    pub kernel: String,
    pub cpu_model: String,
    pub cpus: usize,
    pub kvm: String,
}

/// What the ratios mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Ratio {
    #[serde(rename = "subject/baseline")]
    Cost,
    #[serde(rename = "baseline/subject")]
    Rate,
}

/// One subject in one case.
#[derive(Debug, Deserialize)]
pub struct Row {
    pub case: String,
    pub subject: String,
    pub unit: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The values of a row, or why there are none.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    Measured(Measured),
    Failed { error: String },
    NotRun { not_run: String },
}

/// Values in the unit of the row; no ratios where there is no baseline.
#[derive(Debug, Deserialize)]
pub struct Measured {
    pub median: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
    pub ratio_vs_baseline: Option<f64>,
    pub paired_ratio_vs_baseline: Option<f64>,
    pub p99_ratio_vs_baseline: Option<f64>,
}

impl Report {
    /// The rows of each case, in order.
    pub fn cases(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|row, next| row.case == next.case)
    }

    /// Whether a row is that of the baseline.
    pub fn is_baseline(&self, row: &Row) -> bool {
        row.subject == self.baseline
    }

    /// What the ratios say in words.
    pub fn meaning(&self) -> String {
        let of = match self.ratio {
            Ratio::Cost => "cost",
            Ratio::Rate => "rate",
        };
        format!("× the {of} of {}", self.baseline)
    }

    /// Where and how it was measured, on one line.
    pub fn heading(&self) -> String {
        let Host { kernel, cpu_model, cpus, kvm } = &self.host;
        format!("{}: {} rounds on {cpus} CPUs ({cpu_model}), Linux {kernel}, {kvm}", self.name, self.rounds)
    }
}

impl Row {
    /// What to say if this project's own program could not be measured; a peer may fail, and a machine may lack
    /// what a case needs.
    pub fn own_failure(&self) -> Option<String> {
        match &self.outcome {
            Outcome::Failed { error } if self.subject == OWN => {
                Some(format!("{OWN}, {}: {error}", self.case))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A report of four cases: in the second a peer failed, the third has no baseline, the last was left out.
    pub fn sample() -> Report {
        let row = |case, subject, median: f64| {
            json!({ "case": case, "subject": subject, "unit": "us", "samples": 20, "median": median, "p99": 400.5,
                    "min": 90.0, "max": 400.5, "ratio_vs_baseline": median / 100.0, "paired_ratio_vs_baseline": 1.9,
                    "p99_ratio_vs_baseline": 1.05 })
        };
        let report = json!({
            "name": "startup",
            "host": { "kernel": "6.18", "cpu_model": "A CPU", "cpus": 2, "kvm": "kvm_amd" },
            "rounds": 20,
            "ratio": "subject/baseline",
            "baseline": "raw",
            "rows": [
                row("first_exit", "raw", 100.0),
                row("first_exit", "vmm", 200.0),
                row("process_end", "raw", 100.0),
                { "case": "process_end", "subject": "peer", "unit": "us", "error": "said <\"no\" & ended>" },
                { "case": "locked", "subject": "vmm", "unit": "instructions", "samples": 8, "median": 0.0, "p99": 0.0,
                  "min": 0.0, "max": 0.0 },
                { "case": "port_read", "subject": "vmm", "unit": "ns", "not_run": "no such device" },
            ],
            "counts": [
                { "case": "boot", "subject": "vmm", "kind": "port", "name": "0x3f8 out", "values": [360, 360] },
                { "case": "boot", "subject": "vmm", "kind": "port", "name": "0xcfc in", "values": [80, 90] },
                { "case": "boot", "subject": "peer", "kind": "port", "name": "0x71 in", "values": [20000] },
                { "case": "boot", "subject": "peer", "kind": "port", "name": "0x3f8 out", "values": [400] },
            ],
            "notes": ["peer was started twice"],
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn rows_are_grouped_by_case() {
        let report = sample();
        let sizes: Vec<_> = report.cases().map(|rows| (rows[0].case.as_str(), rows.len())).collect();
        assert_eq!(sizes, [("first_exit", 2), ("process_end", 2), ("locked", 1), ("port_read", 1)]);
    }

    #[test]
    fn only_the_own_program_must_not_fail() {
        let mut report = sample();
        assert!(report.rows.iter().all(|row| row.own_failure().is_none()));
        report.rows[3].subject = "vmm".to_owned();
        let failure = report.rows[3].own_failure().unwrap();
        assert_eq!(failure, "vmm, process_end: said <\"no\" & ended>");
    }
}
