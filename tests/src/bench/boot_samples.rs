//! The report of what runs of the boot benchmark have measured.

use crate::bench::boot_monitor::{MICROVM, VMM, VMM_DEVICES};
use crate::bench::boot_shape::{Shape, UnknownShape};
use crate::bench::report::{Outcome, Ratio, Report};
use crate::bench::samples::{Lines, LinesError};
use crate::bench::series::{NoBaseline, Recorder};

/// The part that is counted; each other one is a round.
pub const COUNTS: &str = "counts";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// What was read is not lines of samples.
    #[error(transparent)]
    Lines(#[from] LinesError),
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
    let Lines { run, parts, mut notes } = Lines::parse(text)?;
    let shapes: Vec<_> = run.shapes.iter().map(|name| Shape::named(name)).collect::<Result<_, _>>()?;
    let cases: Vec<_> = shapes.iter().flat_map(|shape| shape.cases()).collect();
    let subjects: Vec<_> = run.subjects.iter().map(String::as_str).collect();
    let mut recorder = Recorder::new(&cases, &subjects).against(MICROVM);
    let (mut rounds, mut counts) = (0, Vec::new());
    for part in parts {
        rounds += u32::from(part.name != COUNTS);
        part.samples.iter().for_each(|sample| recorder.take(sample));
        counts.extend(part.counts);
    }
    let report = recorder.finish("boot", rounds, Ratio::Cost)?;
    notes.extend(shapes.iter().filter_map(|shape| devices_cost(&report, shape)));
    Ok(Report { host: run.host, counts, notes, ..report })
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
    use crate::bench::report::Count;
    use crate::bench::samples::tests::{part, run as run_of, text};
    use crate::bench::samples::{Line, Part};
    use crate::bench::series::{Case, Sample, Taken};

    fn run() -> Line {
        run_of(&["vmlinux_1"], &[MICROVM, VMM, VMM_DEVICES])
    }

    fn init() -> Case {
        SHAPES[2].init
    }

    fn round(number: u32, microvm: f64, vmm: f64) -> Line {
        let sample = |subject, value| Sample::new(init(), subject, Taken::Values(vec![value]));
        let samples = vec![sample(MICROVM, microvm), sample(VMM, vmm), sample(VMM_DEVICES, vmm * 1.5)];
        part(&format!("round {number}"), samples)
    }

    #[test]
    fn rounds_of_several_runs_make_one_report() {
        let note = Line::Note("a host has died".into());
        let lines = [run(), round(1, 10.0, 5.0), note, run(), round(2, 30.0, 9.0), round(3, 20.0, 9.0)];
        let report = report(&text(&lines)).unwrap();
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
        let counted = Part { name: COUNTS.into(), samples: vec![failed], counts: vec![count.clone()] };
        let report = report(&text(&[run(), round(1, 10.0, 5.0), Line::Part(counted)])).unwrap();
        assert_eq!((report.rounds, report.counts), (1, vec![count]));
        let failures = report.rows.iter().filter(
            |row| matches!(&row.outcome, Outcome::Failed { error } if error == "hung" && row.subject == "vmm"),
        );
        assert_eq!(failures.count(), 1);
    }
}
