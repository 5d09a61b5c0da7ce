//! The report: runs the steps of a task one after the other and closes with what came of each.

use std::time::Instant;

use anyhow::{Error, Result, anyhow};

use crate::suites::{Suite, closing_line};

/// How a step ended that did not fail.
pub enum Outcome {
    Passed,
    /// The step could not be done here; the sentence for the end of the report says what was left out and why.
    NotRun(String),
}

struct Record {
    step: String,
    result: &'static str,
    seconds: f64,
}

/// The steps done so far and the test suites they ran.
#[derive(Default)]
pub struct Report {
    records: Vec<Record>,
    not_run: Vec<String>,
    pub suites: Vec<Suite>,
}

impl Report {
    /// Announces and runs one step.
    ///
    /// # Errors
    ///
    /// The step's own, with the command that runs just this step again.
    pub fn step(
        &mut self,
        name: &str,
        rerun: &str,
        work: impl FnOnce(&mut Vec<Suite>) -> Result<Outcome>,
    ) -> Result<()> {
        println!("==> {name}");
        let start = Instant::now();
        let outcome = work(&mut self.suites);
        let result = match &outcome {
            Ok(Outcome::Passed) => "ok",
            Ok(Outcome::NotRun(_)) => "not run",
            Err(_) => "FAILED",
        };
        self.records.push(Record { step: name.into(), result, seconds: start.elapsed().as_secs_f64() });
        match outcome {
            Ok(Outcome::Passed) => Ok(()),
            Ok(Outcome::NotRun(sentence)) => {
                self.not_run.push(sentence);
                Ok(())
            }
            Err(error) => Err(anyhow!("{name}: {error:#}\nrerun: {rerun}")),
        }
    }

    /// Prints the table of steps, what did not run, the failure if there is one, and the test counts as the last line.
    pub fn close(&self, failure: Option<&Error>) {
        if !self.records.is_empty() {
            println!("\n{}", self.table());
        }
        for suite in &self.suites {
            println!("{suite}");
        }
        for sentence in &self.not_run {
            println!("{sentence}");
        }
        if let Some(error) = failure {
            println!("error: {error:#}");
        }
        if !self.suites.is_empty() {
            println!("{}", closing_line(&self.suites));
        }
    }

    fn table(&self) -> String {
        let width = self.records.iter().map(|record| record.step.len()).max().unwrap_or(0).max("step".len());
        let mut table = format!("{:width$}  {:7}  {:>7}\n", "step", "result", "seconds");
        for Record { step, result, seconds } in &self.records {
            table += &format!("{step:width$}  {result:7}  {seconds:7.1}\n");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failing_step_ends_with_the_command_that_runs_it_again() {
        let mut report = Report::default();
        let error = report.step("fmt", "cargo fmt", |_| bail!("two files differ")).unwrap_err();
        assert_eq!(error.to_string(), "fmt: two files differ\nrerun: cargo fmt");
        assert!(report.table().lines().nth(1).is_some_and(|row| row.starts_with("fmt   FAILED ")));
    }

    #[test]
    fn a_step_that_did_not_run_is_no_failure_and_keeps_its_reason() {
        let mut report = Report::default();
        report.step("miri", "cargo xtask miri", |_| Ok(Outcome::NotRun("miri not run: why".into()))).unwrap();
        assert_eq!(report.not_run, ["miri not run: why"]);
        assert!(report.table().contains("miri  not run"));
    }

    #[test]
    fn steps_hand_their_suites_to_the_closing_line() {
        let mut report = Report::default();
        let step = report.step("unit tests", "cargo test", |suites| {
            suites.push(Suite::broken("unit tests", "did not build"));
            Ok(Outcome::Passed)
        });
        step.unwrap();
        assert_eq!(closing_line(&report.suites), "0 passed, 1 failed, 0 skipped");
    }
}
