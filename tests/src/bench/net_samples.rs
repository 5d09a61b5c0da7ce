//! The report of what runs of a network benchmark have measured.

use std::collections::BTreeSet;

use crate::bench::net_subject::{LOOPBACK, Subject, Transport, UnknownSubject};
use crate::bench::report::{Ratio, Report};
use crate::bench::samples::{Lines, LinesError};
use crate::bench::series::{NoBaseline, Recorder};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// What was read is not lines of samples.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// A part is none of this benchmark.
    #[error(transparent)]
    Subject(#[from] UnknownSubject),
    /// There is nothing to compare with.
    #[error(transparent)]
    NoBaseline(#[from] NoBaseline),
}

/// What one subject has done in one round is a part; its name.
#[must_use]
pub fn part_name(round: u32, subject: Subject) -> String {
    format!("{round}/{subject}")
}

fn read_part(name: &str) -> Result<(u32, Subject), UnknownSubject> {
    let (round, subject) = name.split_once('/').unwrap_or_default();
    // A round that is none is that of nobody.
    Ok((round.parse().unwrap_or_default(), subject.parse()?))
}

/// The report of all lines of `text`: of the rounds in which every subject was measured.
///
/// # Errors
///
/// The lines are not those of measuring runs.
pub fn report(text: &str, transport: Transport) -> Result<Report, SamplesError> {
    let Lines { run, parts, mut notes } = Lines::parse(text)?;
    let parts = parts.iter().map(|part| Ok((read_part(&part.name)?, part)));
    let parts: Vec<_> = parts.collect::<Result<_, UnknownSubject>>()?;
    let lacks = |round| {
        let mut subjects = transport.subjects().iter();
        subjects.find(|&&subject| parts.iter().all(|(name, _)| *name != (round, subject)))
    };
    let all: BTreeSet<_> = parts.iter().map(|((round, _), _)| *round).collect();
    let mut rounds = 0;
    let names: Vec<_> = transport.subjects().iter().map(|subject| subject.name()).collect();
    let mut recorder = Recorder::new(&transport.cases(), &names).against(LOOPBACK);
    for round in all {
        if let Some(subject) = lacks(round) {
            notes.push(format!("round {round} is left out, as {subject} was not measured"));
            continue;
        }
        rounds += 1;
        for (_, part) in parts.iter().filter(|((of, _), _)| *of == round) {
            part.samples.iter().for_each(|sample| recorder.take(sample));
        }
    }
    let report = recorder.finish(transport.name(), rounds, Ratio::Cost)?;
    Ok(Report { host: run.host, notes, ..report })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::net_subject::STREAMS;
    use crate::bench::report::Outcome;
    use crate::bench::samples::tests::{part, run, text};
    use crate::bench::series::{Sample, Taken};

    fn lines(rounds: &[(u32, Subject, f64)]) -> String {
        let parts = rounds.iter().map(|&(round, subject, rate)| {
            let sample = Sample::new(STREAMS[0], subject.name(), Taken::Values(vec![rate]));
            part(&part_name(round, subject), vec![sample])
        });
        text(&[run(&[], &[])].into_iter().chain(parts).collect::<Vec<_>>())
    }

    #[test]
    fn a_subject_is_compared_with_the_loopback_of_its_rounds() {
        let (host, vmm) = (Subject::Loopback, Subject::Vmm);
        let others = [(1, Subject::VmmVhost, 60.0), (1, Subject::MicrovmVhost, 40.0)];
        let text = lines(&[&[(1, host, 100.0), (1, vmm, 50.0), (2, host, 10.0)], &others[..]].concat());
        let report = report(&text, Transport::Vsock).unwrap();
        assert_eq!(report.notes, ["round 2 is left out, as vmm was not measured"]);
        let row = report.rows.iter().find(|row| row.subject == "vmm").unwrap();
        let Outcome::Measured(measured) = &row.outcome else { panic!("{row:?}") };
        assert_eq!((report.rounds, measured.ratio_vs_baseline), (1, Some(0.5)));
    }

    #[test]
    fn parts_of_another_benchmark_are_refused() {
        let text = text(&[run(&[], &[]), part("1/1/host", vec![])]);
        assert!(report(&text, Transport::Net).is_err());
    }
}
