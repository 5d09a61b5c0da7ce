//! The report of what runs of the block benchmark have measured.

use std::collections::BTreeSet;

use crate::bench::block_group::{Group, UnknownGroup};
use crate::bench::block_job::{Job, UnknownJob};
use crate::bench::block_subject::{HOST, SUBJECTS, Subject};
use crate::bench::report::{Ratio, Report};
use crate::bench::samples::{Lines, LinesError, Part};
use crate::bench::series::{NoBaseline, Recorder};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// What was read is not lines of samples.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// A job is not known.
    #[error(transparent)]
    Job(#[from] UnknownJob),
    /// A part is none of this benchmark.
    #[error(transparent)]
    Group(#[from] UnknownGroup),
    /// There is nothing to compare with.
    #[error(transparent)]
    NoBaseline(#[from] NoBaseline),
}

/// The report of all lines of `text`. Of each number of queues it has the rounds in which every subject was measured; where
/// there is none, whatever was measured.
///
/// # Errors
///
/// The lines are not those of measuring runs.
pub fn report(text: &str) -> Result<Report, SamplesError> {
    let Lines { run, parts, mut notes } = Lines::parse(text)?;
    let jobs: Vec<_> = run.shapes.iter().map(|name| Job::named(name)).collect::<Result<_, _>>()?;
    let mut recorder = recorder(&jobs);
    let groups = parts.iter().map(|part| Ok((part.name.parse()?, part)));
    let mut groups: Vec<(Group, &Part)> = groups.collect::<Result<_, UnknownGroup>>()?;
    let mut rounds = BTreeSet::new();
    for jobs in jobs.chunk_by(|one, next| one.queues == next.queues) {
        let queues = jobs[0].queues;
        for (group, part) in complete(queues, &mut groups, &mut notes) {
            rounds.insert(group.round);
            part.samples.iter().for_each(|sample| recorder.take(sample));
        }
    }
    let rounds = u32::try_from(rounds.len()).unwrap_or(u32::MAX);
    let report = recorder.finish("block", rounds, Ratio::Cost)?;
    Ok(Report { host: run.host, notes, ..report })
}

fn recorder(jobs: &[&Job]) -> Recorder {
    let subjects = SUBJECTS.map(Subject::name);
    let all: Vec<_> = [HOST].into_iter().chain(subjects).collect();
    let own: Vec<_> = SUBJECTS.iter().filter(|subject| matches!(subject, Subject::Vmm(_))).collect();
    let own: Vec<_> = own.into_iter().map(|subject| subject.name()).collect();
    let mut recorder = Recorder::new(&[], &[]).against(HOST);
    for job in jobs {
        recorder = recorder.and(&[job.rate, job.latency], &all);
        recorder = recorder.and(&[job.interrupts], &subjects).and(&[job.host_calls], &own);
    }
    recorder
}

/// Those with so many queues whose rounds are complete, round by round, though one may have been measured after the next
/// one: values are compared with those of their round.
fn complete<'a>(
    queues: u32,
    groups: &mut Vec<(Group, &'a Part)>,
    notes: &mut Vec<String>,
) -> Vec<(Group, &'a Part)> {
    let mut there: Vec<_> = groups.extract_if(.., |(group, _)| group.queues == queues).collect();
    there.sort_by_key(|(group, _)| group.round);
    let lacks = |round| {
        let mut all = Group::all(round, queues).into_iter();
        all.find(|group| !there.iter().any(|(other, _)| other == group))
    };
    let rounds: BTreeSet<_> = there.iter().map(|(group, _)| group.round).collect();
    let lacking: Vec<_> = rounds.iter().filter_map(|&round| lacks(round)).collect();
    if lacking.len() == rounds.len() {
        return there;
    }
    for group in &lacking {
        notes.push(format!(
            "round {} of queues_{queues} is left out, as {} was not measured",
            group.round,
            group.subject()
        ));
    }
    there.retain(|(group, _)| lacking.iter().all(|lack| lack.round != group.round));
    there
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::block_job::JOBS;
    use crate::bench::report::Outcome;
    use crate::bench::samples::Line;
    use crate::bench::samples::tests::{part, run as run_of, text};
    use crate::bench::series::{Sample, Taken};

    fn run() -> Line {
        run_of(&[JOBS[0].rate.name, JOBS[6].rate.name], &[])
    }

    /// What `subject` has done with one queue in a round.
    fn group(round: u32, subject: &str, rate: f64) -> Line {
        let sample = Sample::new(JOBS[0].rate, subject, Taken::Values(vec![rate]));
        part(&format!("{round}/1/{subject}"), vec![sample])
    }

    fn round(number: u32, host: f64, vmm: f64) -> Vec<Line> {
        let rate = |subject| match subject {
            "host" => host,
            "vmm" => vmm,
            _ => 1.0,
        };
        Group::all(number, 1).iter().map(|at| group(number, at.subject(), rate(at.subject()))).collect()
    }

    fn is_part(line: &Line, name: &str) -> bool {
        matches!(line, Line::Part(part) if part.name == name)
    }

    fn outcome<'a>(report: &'a Report, case: &str, subject: &str) -> &'a Outcome {
        &report.rows.iter().find(|row| row.case == case && row.subject == subject).unwrap().outcome
    }

    fn measured(report: &Report, subject: &str) -> (usize, Option<f64>) {
        match outcome(report, JOBS[0].rate.name, subject) {
            Outcome::Measured(measured) => (measured.samples, measured.paired_ratio_vs_baseline),
            other => panic!("{subject}: {other:?}"),
        }
    }

    #[test]
    fn a_guest_that_was_measured_by_a_later_run_counts_in_its_own_round() {
        let mut first = round(1, 10.0, 5.0);
        let late = first.extract_if(.., |line| is_part(line, "1/1/vmm")).collect();
        let lines = [vec![run()], first, round(2, 100.0, 50.0), vec![run()], late].concat();
        let report = report(&text(&lines)).unwrap();
        assert_eq!((report.rounds, report.host.kernel.as_str()), (2, "6.12"));
        assert_eq!(measured(&report, "vmm"), (2, Some(0.5)));
        assert!(report.notes.is_empty());
    }

    #[test]
    fn a_round_in_which_somebody_is_missing_is_left_out() {
        let mut second = round(2, 10.0, 1.0);
        second.retain(|line| !is_part(line, "2/1/microvm"));
        let lines = [vec![run()], round(1, 10.0, 5.0), second].concat();
        let report = report(&text(&lines)).unwrap();
        assert_eq!((report.rounds, measured(&report, "vmm")), (1, (1, Some(0.5))));
        assert_eq!(report.notes, ["round 2 of queues_1 is left out, as microvm was not measured"]);
    }

    #[test]
    fn where_no_round_is_complete_what_there_is_is_shown() {
        let lines = [run(), group(1, "host", 10.0), group(1, "vmm", 5.0), Line::Note("died".into())];
        let report = report(&text(&lines)).unwrap();
        assert_eq!(measured(&report, "vmm"), (1, Some(0.5)));
        assert!(matches!(outcome(&report, JOBS[0].rate.name, "microvm"), Outcome::Failed { .. }));
        assert!(matches!(outcome(&report, JOBS[6].rate.name, "vmm"), Outcome::Failed { .. }));
        assert_eq!(report.notes, ["died"]);
        // Only what was asked for.
        assert!(report.rows.iter().all(|row| row.case.starts_with("read_4k_1_")));
    }

    #[test]
    fn what_is_not_of_this_benchmark_is_refused() {
        assert!(report(&text(&[run_of(&["bzimage_1"], &[])])).unwrap_err().to_string().contains("bzimage_1"));
        let part = part("round 1", Vec::new());
        assert!(report(&text(&[run(), part])).unwrap_err().to_string().contains("round 1"));
    }
}
