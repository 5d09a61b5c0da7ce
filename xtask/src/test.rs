//! The tests: unit and doc tests of every crate, and what their output says.

use std::process::Command;

use anyhow::{Result, bail};

use crate::host::in_ci;
use crate::process::{cargo, each_line};
use crate::report::{Outcome, Report};
use crate::suites::{Reader, Suite};

/// Runs the unit and doc tests of all crates but the guest suites.
pub fn units(report: &mut Report) -> Result<()> {
    // The suites of vmm-tests need a built monitor and KVM; its library and programs do not.
    let crates = ["test", "--workspace", "--exclude", "vmm-tests", "--no-fail-fast"];
    let harness = ["test", "-p", "vmm-tests", "--lib", "--bins"];
    report.step("unit tests", &format!("cargo {}", crates.join(" ")), |suites| {
        cargo_test("unit", cargo().args(crates), suites)?;
        Ok(Outcome::Passed)
    })?;
    report.step("harness tests", &format!("cargo {}", harness.join(" ")), |suites| {
        cargo_test("unit", cargo().args(harness), suites)?;
        Ok(Outcome::Passed)
    })
}

/// Runs a `cargo test` command, passes its output on and adds what it counted to `suites`, `kind` before each name.
///
/// # Errors
///
/// A test failed, the tests did not build, there was none to run, or, in CI, one did not run.
pub fn cargo_test(kind: &str, command: &mut Command, suites: &mut Vec<Suite>) -> Result<()> {
    let mut session = Session::default();
    session.run(command)?;
    session.close(kind, suites)
}

/// Commands that run tests, one after the other, and what they print.
#[derive(Default)]
pub struct Session {
    reader: Reader,
    failed: bool,
}

impl Session {
    /// Passes one line on and reads it.
    pub fn line(&mut self, line: &str) {
        println!("{line}");
        self.reader.line(line);
    }

    /// Runs a command whose output is that of tests.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        let status = each_line(command, |line| self.line(line))?;
        self.failed |= !status.success();
        Ok(())
    }

    /// What was counted, `kind` before each name. A command that failed though no test did is a suite that failed.
    pub fn finish(self, kind: &str) -> Vec<Suite> {
        let mut ran = self.reader.finish();
        for suite in &mut ran {
            suite.name.insert_str(0, &format!("{kind} "));
        }
        if self.failed && ran.iter().all(|suite| suite.failed == 0) {
            ran.push(Suite::broken(kind, "no result: see the errors above"));
        }
        ran
    }

    /// Adds what was counted to `suites`, `kind` before each name.
    ///
    /// # Errors
    ///
    /// Those of [`conclude`].
    pub fn close(self, kind: &str, suites: &mut Vec<Suite>) -> Result<()> {
        conclude(self.finish(kind), suites)
    }
}

/// Adds what ran to `suites`.
///
/// # Errors
///
/// A test failed, a command failed otherwise, there was no test to run, or, in CI, one did not run.
pub fn conclude(ran: Vec<Suite>, suites: &mut Vec<Suite>) -> Result<()> {
    let failed: usize = ran.iter().map(|suite| suite.failed).sum();
    let skipped: usize = ran.iter().map(|suite| suite.skipped).sum();
    let total = skipped + ran.iter().map(|suite| suite.passed + suite.failed).sum::<usize>();
    suites.extend(ran);
    if total == 0 {
        bail!("there is no such test");
    }
    if failed > 0 {
        bail!("{failed} failed");
    }
    if skipped > 0 && in_ci() {
        bail!("{skipped} did not run: in CI nothing is skipped");
    }
    Ok(())
}
