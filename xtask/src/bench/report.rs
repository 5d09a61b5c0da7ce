//! The report of a benchmark as its measuring program prints it; vmm-tests defines the fields.

use serde::Deserialize;

/// The subject that the others are compared with, and this project's own.
const RAW: &str = "raw";
const OWN: &str = "vmm";

/// One run of one benchmark.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub name: String,
    pub host: Host,
    pub rounds: u32,
    pub ratio: Ratio,
    pub rows: Vec<Row>,
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
    #[serde(rename = "subject/raw")]
    Cost,
    #[serde(rename = "raw/subject")]
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
    pub ratio_vs_raw: Option<f64>,
    pub paired_ratio_vs_raw: Option<f64>,
}

impl Report {
    /// The rows of each case, in order.
    pub fn cases(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|row, next| row.case == next.case)
    }

    /// Where and how it was measured, on one line.
    pub fn heading(&self) -> String {
        let Host { kernel, cpu_model, cpus, kvm } = &self.host;
        format!("{}: {} rounds on {cpus} CPUs ({cpu_model}), Linux {kernel}, {kvm}", self.name, self.rounds)
    }
}

impl Row {
    /// Whether this is the baseline.
    pub fn is_raw(&self) -> bool {
        self.subject == RAW
    }

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

impl Ratio {
    /// What the ratio says in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Cost => "× the cost of raw",
            Self::Rate => "× the rate of raw",
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
                    "min": 90.0, "max": 400.5, "ratio_vs_raw": median / 100.0, "paired_ratio_vs_raw": 1.9 })
        };
        let report = json!({
            "name": "startup",
            "host": { "kernel": "6.18", "cpu_model": "A CPU", "cpus": 2, "kvm": "kvm_amd" },
            "rounds": 20,
            "ratio": "subject/raw",
            "rows": [
                row("first_exit", "raw", 100.0),
                row("first_exit", "vmm", 200.0),
                row("process_end", "raw", 100.0),
                { "case": "process_end", "subject": "peer", "unit": "us", "error": "said <\"no\" & ended>" },
                { "case": "locked", "subject": "vmm", "unit": "instructions", "samples": 8, "median": 0.0, "p99": 0.0,
                  "min": 0.0, "max": 0.0 },
                { "case": "port_read", "subject": "vmm", "unit": "ns", "not_run": "no such device" },
            ],
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
