//! `Samples`: what runs of the boot benchmark have measured, as lines of JSON, and the report of them.
//!
//! A line stands for itself: a run that dies loses what it has not written a line of, and another one goes on.

use serde::{Deserialize, Serialize};

use crate::bench::boot_monitor::{MICROVM, VMM, VMM_DEVICES};
use crate::bench::boot_shape::{Shape, UnknownShape};
use crate::bench::report::{Count, Host, Outcome, Ratio, Report};
use crate::bench::series::{NoBaseline, Recorder, Sample};

/// A line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A run begins; those of one report all say the same.
    Run(Run),
    /// All of one round.
    Round(Vec<Sample>),
    /// All that is counted.
    Counted {
        /// Totals.
        samples: Vec<Sample>,
        /// And what they consist of.
        counts: Vec<Count>,
    },
    /// Something that a reader of the report should know.
    Note(String),
}

/// What is measured, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The machine.
    pub host: Host,
    /// Names of the shapes.
    pub shapes: Vec<String>,
    /// Names of the monitors.
    pub subjects: Vec<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// A line is not one.
    #[error("line {number}")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No run has begun.
    #[error("no line says what was measured")]
    NoRun,
    /// A shape is not known.
    #[error(transparent)]
    Shape(#[from] UnknownShape),
    /// There is nothing to compare with.
    #[error(transparent)]
    NoBaseline(#[from] NoBaseline),
}

/// The report of all lines of `text`.
///
/// # Errors
///
/// The lines are not those of measuring runs.
pub fn report(text: &str) -> Result<Report, SamplesError> {
    let lines = text.lines().enumerate().map(|(index, line)| {
        serde_json::from_str(line).map_err(|source| SamplesError::Line { number: index + 1, source })
    });
    let lines: Vec<Line> = lines.collect::<Result<_, _>>()?;
    let run = lines.iter().find_map(|line| match line {
        Line::Run(run) => Some(run),
        _ => None,
    });
    let run = run.ok_or(SamplesError::NoRun)?;
    let shapes: Vec<_> = run.shapes.iter().map(|name| Shape::named(name)).collect::<Result<_, _>>()?;
    let cases: Vec<_> = shapes.iter().flat_map(|shape| shape.cases()).collect();
    let subjects: Vec<_> = run.subjects.iter().map(String::as_str).collect();
    let mut recorder = Recorder::new(&cases, &subjects).against(MICROVM);
    let (mut rounds, mut counted, mut notes) = (0, Vec::new(), Vec::new());
    for line in &lines {
        match line {
            Line::Run(_) => {}
            Line::Round(samples) => {
                rounds += 1;
                samples.iter().for_each(|sample| recorder.take(sample));
            }
            Line::Counted { samples, counts } => {
                samples.iter().for_each(|sample| recorder.take(sample));
                counted.extend_from_slice(counts);
            }
            Line::Note(text) => notes.push(text.clone()),
        }
    }
    let report = recorder.finish("boot", rounds, Ratio::Cost)?;
    notes.extend(shapes.iter().filter_map(|shape| devices_cost(&report, shape)));
    Ok(Report { host: run.host.clone(), counts: counted, notes, ..report })
}

/// What devices cost a boot.
fn devices_cost(report: &Report, shape: &Shape) -> Option<String> {
    let median = |subject: &str| {
        let row = report.rows.iter().find(|row| row.case == shape.init.name && row.subject == subject);
        match &row?.outcome {
            Outcome::Measured(measured) => Some(measured.median),
            _ => None,
        }
    };
    let ratio = median(VMM_DEVICES)? / median(VMM)?;
    Some(format!("{}: with four devices {ratio:.3} times as long as without", shape.init.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::boot_shape::SHAPES;
    use crate::bench::series::{Case, Taken};

    fn run() -> Line {
        let host = Host { kernel: "6.12".into(), cpu_model: "m".into(), cpus: 2, kvm: "kvm_amd".into() };
        Line::Run(Run {
            host,
            shapes: vec!["vmlinux_1".into()],
            subjects: vec![MICROVM.into(), VMM.into(), VMM_DEVICES.into()],
        })
    }

    fn init() -> Case {
        SHAPES[2].init
    }

    fn round(microvm: f64, vmm: f64) -> Line {
        let sample = |subject, value| Sample::new(init(), subject, Taken::Values(vec![value]));
        Line::Round(vec![sample(MICROVM, microvm), sample(VMM, vmm), sample(VMM_DEVICES, vmm * 1.5)])
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
    }

    #[test]
    fn rounds_of_several_runs_make_one_report() {
        let note = Line::Note("a host has died".into());
        let text = text(&[run(), round(10.0, 5.0), note, run(), round(30.0, 9.0), round(20.0, 9.0)]);
        let report = report(&text).unwrap();
        assert_eq!((report.rounds, report.host.kernel.as_str()), (3, "6.12"));
        let devices = "vmlinux_1_init: with four devices 1.500 times as long as without";
        assert_eq!(report.notes, ["a host has died", devices]);
        let row = report.rows.iter().find(|row| row.case == init().name && row.subject == "vmm").unwrap();
        let Outcome::Measured(measured) = &row.outcome else { panic!("{row:?}") };
        assert_eq!((measured.samples, measured.median, measured.ratio_vs_baseline), (3, 9.0, Some(0.45)));
    }

    #[test]
    fn what_was_counted_and_what_failed_is_in_the_report() {
        let failed = Sample::new(init(), "vmm", Taken::Failed("hung".into()));
        let count = Count {
            case: "vmlinux_1".into(),
            subject: "vmm".into(),
            kind: "port".into(),
            name: "0x3f8 out".into(),
            values: vec![7, 7],
        };
        let text = text(&[
            run(),
            round(10.0, 5.0),
            Line::Counted { samples: vec![failed], counts: vec![count.clone()] },
        ]);
        let report = report(&text).unwrap();
        assert_eq!(report.counts, [count]);
        let failures = report.rows.iter().filter(
            |row| matches!(&row.outcome, Outcome::Failed { error } if error == "hung" && row.subject == "vmm"),
        );
        assert_eq!(failures.count(), 1);
    }

    #[test]
    fn what_is_not_of_a_run_is_refused() {
        assert_eq!(report("").unwrap_err().to_string(), "no line says what was measured");
        let broken = text(&[run()]) + "{\"round\"";
        assert_eq!(report(&broken).unwrap_err().to_string(), "line 2");
    }
}
