//! Miri: the unit tests that need no system call, interpreted with checks for undefined behaviour.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, succeeds};
use crate::report::{Outcome, Report};
use crate::test::cargo_test;

/// What to do when the host has no miri.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// As part of `ci`: say so at the end, go on.
    Noted,
    /// Asked for by name: fail.
    Fails,
}

const NOT_HERE: &str = "no toolchain with miri here: rustup toolchain install nightly --component miri";

/// Runs the unit tests of the crates with the most `unsafe` code under miri.
pub fn run_all(report: &mut Report, missing: Missing) -> Result<()> {
    report.step("miri", "cargo xtask miri", |suites| {
        let Some(mut command) = toolchain_with_miri() else {
            if missing == Missing::Fails {
                bail!(NOT_HERE);
            }
            return Ok(Outcome::NotRun(format!("miri not run: {NOT_HERE}")));
        };
        command
            .args([
                "miri",
                "test",
                "--lib",
                "--target-dir",
                "target/miri",
                "-p",
                "vmm-core",
                "-p",
                "vmm-memory",
            ])
            // Miri is a compiler wrapper itself and takes no second one; an empty value turns off the configured one.
            .env("RUSTC_WORKSPACE_WRAPPER", "");
        cargo_test("miri", &mut command, suites)?;
        Ok(Outcome::Passed)
    })
}

/// This task's own cargo, if miri is in its toolchain, or the nightly one.
fn toolchain_with_miri() -> Option<Command> {
    let nightly = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]);
        command
    };
    let toolchains: [&dyn Fn() -> Command; 2] = [&cargo, &nightly];
    let has_miri = |toolchain: &&&dyn Fn() -> Command| succeeds(toolchain().args(["miri", "--version"]));
    toolchains.iter().find(has_miri).map(|toolchain| toolchain())
}
