//! `Lines`: what the runs of one benchmark have measured, as lines of JSON.
//!
//! A line stands for itself: a run that dies loses what it has not written a line of, and another one goes on.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::bench::report::{Count, Host, Report};
use crate::bench::series::Sample;

/// A line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A run begins; those of one report all say the same.
    Run(Run),
    /// Something is complete, and is not measured again.
    Part(Part),
    /// Something that a reader of the report should know.
    Note(String),
}

/// What is measured, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The machine.
    pub host: Host,
    /// Names of what each subject does.
    pub shapes: Vec<String>,
    /// Names of the subjects.
    pub subjects: Vec<String>,
}

/// What is kept as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Tells it from the others.
    pub name: String,
    /// What was measured.
    pub samples: Vec<Sample>,
    /// What was counted, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
}

impl Line {
    /// Prints it to standard output; whoever reads that has it before the next is measured.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn print(&self) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    }
}

/// All lines of one benchmark.
#[derive(Debug)]
pub struct Lines {
    /// What the first run says of itself.
    pub run: Run,
    /// In the order of the lines.
    pub parts: Vec<Part>,
    /// In the order of the lines.
    pub notes: Vec<String>,
}

/// Why what was read is not the lines of measuring runs.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
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
}

impl Lines {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// A line is none, or no run has begun.
    pub fn parse(text: &str) -> Result<Self, LinesError> {
        let (mut first, mut parts, mut notes) = (None, Vec::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            match serde_json::from_str(line).map_err(|source| LinesError::Line { number, source })? {
                Line::Run(run) => {
                    first.get_or_insert(run);
                }
                Line::Part(part) => parts.push(part),
                Line::Note(note) => notes.push(note),
            }
        }
        Ok(Self { run: first.ok_or(LinesError::NoRun)?, parts, notes })
    }
}

/// Prints what `report` makes of the lines in `file`, as JSON.
///
/// # Errors
///
/// The file cannot be read, there is no report of it, or nobody takes it.
pub fn print_report<E>(file: &Path, report: fn(&str) -> Result<Report, E>) -> anyhow::Result<()>
where
    E: Error + Send + Sync + 'static,
{
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let report = report(&text).with_context(|| file.display().to_string())?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run that measures `shapes` of `subjects`.
    pub fn run(shapes: &[&str], subjects: &[&str]) -> Line {
        let host = Host { kernel: "6.12".into(), cpu_model: "m".into(), cpus: 2, kvm: "kvm_amd".into() };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Line::Run(Run { host, shapes: owned(shapes), subjects: owned(subjects) })
    }

    /// A part without counts.
    pub fn part(name: &str, samples: Vec<Sample>) -> Line {
        Line::Part(Part { name: name.into(), samples, counts: Vec::new() })
    }

    /// As they are printed.
    pub fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
    }

    #[test]
    fn lines_of_several_runs_are_read_as_one() {
        let note = Line::Note("a host has died".into());
        let lines = [run(&["a"], &["s"]), part("1", vec![]), note, run(&["b"], &["s"]), part("2", vec![])];
        let read = Lines::parse(&text(&lines)).unwrap();
        assert_eq!((read.run.shapes, read.notes), (vec!["a".to_owned()], vec!["a host has died".to_owned()]));
        let names: Vec<_> = read.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["1", "2"]);
    }

    #[test]
    fn what_is_not_of_a_run_is_refused() {
        assert_eq!(Lines::parse("").unwrap_err().to_string(), "no line says what was measured");
        let broken = text(&[run(&["a"], &["s"])]) + "{\"part\"";
        assert_eq!(Lines::parse(&broken).unwrap_err().to_string(), "line 2");
    }
}
