//! The report of a benchmark: what its JSON contains.

use std::fs;
use std::path::Path;
use std::thread;

use serde::{Deserialize, Serialize};

/// One run of one benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The benchmark.
    pub name: String,
    /// Where it ran.
    pub host: Host,
    /// Interleaved rounds, not counting the warm-up.
    pub rounds: u32,
    /// What the ratios of the rows mean.
    pub ratio: Ratio,
    /// The subject that the others are compared with.
    pub baseline: String,
    /// One row for each case and subject, case by case.
    pub rows: Vec<Row>,
    /// What was counted and not timed, if anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// What else a reader should know, if anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How often one thing has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// In what.
    pub case: String,
    /// To whom.
    pub subject: String,
    /// The kind of thing.
    pub kind: String,
    /// The thing.
    pub name: String,
    /// One number for each time that it was counted.
    pub values: Vec<u64>,
}

/// The machine under the benchmark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// CPU model name as the kernel gives it.
    pub cpu_model: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// The KVM vendor module, for example `kvm_intel`; `none` without one.
    pub kvm: String,
}

/// How a row's ratio to the baseline is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Ratio {
    /// Value by value of the baseline: how many times as much it costs. 1 is as good, more is worse.
    #[serde(rename = "subject/baseline")]
    Cost,
    /// Value of the baseline by value: the share of its rate that is reached. 1 is as good, less is worse.
    #[serde(rename = "baseline/subject")]
    Rate,
}

/// One subject in one case.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// What it was measured on.
    pub subject: String,
    /// Unit of the values: `ms`, `us`, `ns`, `KiB`, `instructions` or `exits`.
    pub unit: String,
    /// The values, or why there are none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The values of a row, or why there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// It was measured in every round.
    Measured(Measured),
    /// It failed in a round and was left out from there on.
    Failed {
        /// Why.
        error: String,
    },
    /// This machine lacks what the case needs.
    NotRun {
        /// What that is.
        not_run: String,
    },
}

/// The values of a row in its unit, and its ratios to the baseline if its case has one.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Number of values.
    pub samples: usize,
    /// Median of the values.
    pub median: f64,
    /// 99th percentile; below 100 values, the largest.
    pub p99: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Ratio of the medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_vs_baseline: Option<f64>,
    /// Median of the ratios within each round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired_ratio_vs_baseline: Option<f64>,
    /// Ratio of the medians of the rounds' 99th percentiles, if each round has 100 values or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ratio_vs_baseline: Option<f64>,
}

impl Host {
    /// Reads the machine's description; what cannot be read is `unknown`.
    pub fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
            cpu_model: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            kvm: ["kvm_intel", "kvm_amd", "kvm_pvm"]
                .into_iter()
                .find(|module| Path::new("/sys/module").join(module).exists())
                .unwrap_or("none")
                .to_owned(),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn model_name_is_what_follows_the_first_colon() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU: fast\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(cpu_model(cpuinfo), Some("A CPU: fast"));
        assert_eq!(cpu_model("processor: 0\n"), None);
    }

    #[test]
    fn json_has_values_and_errors_beside_the_case_of_a_row() {
        let measured = Measured {
            samples: 3,
            median: 2.0,
            p99: 4.0,
            min: 1.0,
            max: 4.0,
            ratio_vs_baseline: Some(1.5),
            paired_ratio_vs_baseline: Some(1.25),
            p99_ratio_vs_baseline: Some(1.125),
        };
        let row =
            |outcome| Row { case: "c".to_owned(), subject: "s".to_owned(), unit: "us".to_owned(), outcome };
        let report = Report {
            name: "startup".to_owned(),
            host: Host {
                kernel: "6.18".to_owned(),
                cpu_model: "m".to_owned(),
                cpus: 2,
                kvm: "kvm_amd".to_owned(),
            },
            rounds: 3,
            ratio: Ratio::Cost,
            baseline: "raw".to_owned(),
            rows: vec![
                row(Outcome::Measured(measured.clone())),
                row(Outcome::Measured(Measured {
                    ratio_vs_baseline: None,
                    paired_ratio_vs_baseline: None,
                    p99_ratio_vs_baseline: None,
                    ..measured
                })),
                row(Outcome::Failed { error: "exit status: 1".to_owned() }),
                row(Outcome::NotRun { not_run: "no device".to_owned() }),
            ],
            counts: vec![Count {
                case: "c".to_owned(),
                subject: "s".to_owned(),
                kind: "port".to_owned(),
                name: "0x3f8 out".to_owned(),
                values: vec![7, 8],
            }],
            notes: vec!["n".to_owned()],
        };
        let expected = json!({
            "name": "startup",
            "host": { "kernel": "6.18", "cpu_model": "m", "cpus": 2, "kvm": "kvm_amd" },
            "rounds": 3,
            "ratio": "subject/baseline",
            "baseline": "raw",
            "rows": [
                { "case": "c", "subject": "s", "unit": "us", "samples": 3, "median": 2.0, "p99": 4.0, "min": 1.0,
                  "max": 4.0, "ratio_vs_baseline": 1.5, "paired_ratio_vs_baseline": 1.25, "p99_ratio_vs_baseline": 1.125 },
                { "case": "c", "subject": "s", "unit": "us", "samples": 3, "median": 2.0, "p99": 4.0, "min": 1.0,
                  "max": 4.0 },
                { "case": "c", "subject": "s", "unit": "us", "error": "exit status: 1" },
                { "case": "c", "subject": "s", "unit": "us", "not_run": "no device" },
            ],
            "counts": [{ "case": "c", "subject": "s", "kind": "port", "name": "0x3f8 out", "values": [7, 8] }],
            "notes": ["n"],
        });
        assert_eq!(serde_json::to_value(report).unwrap(), expected);
    }
}
