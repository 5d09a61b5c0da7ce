//! The tests: unit and doc tests of every crate, then guest programs on a real virtual machine.

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::guests;
use crate::host::{in_ci, kvm_missing};
use crate::process::{capture, cargo, each_line, run};
use crate::report::{Outcome, Report};
use crate::suites::{Reader, Suite};

/// Where the guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// On this machine's own `/dev/kvm`.
    #[default]
    Native,
}

// The target directory is said because the path of the built binary is handed on.
pub const MONITOR: [&str; 6] = ["build", "--release", "--target-dir", "target", "-p", "vmm-cli"];
const NATIVE: [&str; 8] =
    ["test", "--release", "--target-dir", "target", "-p", "vmm-tests", "--test", "native"];

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

/// Builds the monitor and the guest programs and runs the suites whose names contain `filter`.
///
/// Without `/dev/kvm` the suites are listed and counted as skipped; in CI that is a failure.
pub fn native_guests(report: &mut Report, host: Host, filter: Option<&str>) -> Result<()> {
    let Host::Native = host;
    let filter_words = filter.map_or(String::new(), |filter| format!(" {filter}"));
    report.step("native guests", &format!("cargo xtask test-guest{filter_words}"), |suites| {
        if let Some(why) = kvm_missing() {
            return without_kvm(&why, filter, suites);
        }
        guests::build()?;
        run(cargo().args(MONITOR))?;
        let mut command = cargo();
        command
            .args(NATIVE)
            .arg("--")
            .args(filter)
            .env("VMM_CLI", std::path::absolute("target/release/vmm-cli")?)
            .env("VMM_GUESTS", std::path::absolute(guests::OUTPUT)?);
        cargo_test("guest", &mut command, suites)?;
        Ok(Outcome::Passed)
    })
}

fn without_kvm(why: &str, filter: Option<&str>, suites: &mut Vec<Suite>) -> Result<Outcome> {
    if in_ci() {
        suites.push(Suite::broken("guest native tests/native.rs", "no /dev/kvm"));
        bail!("{why}");
    }
    run(cargo().args(NATIVE).arg("--no-run"))?;
    let listed = capture(cargo().args(NATIVE).args(["--", "--list"]).args(filter))?;
    let tests = listed.lines().filter(|line| line.ends_with(": test")).count();
    suites.push(Suite::not_run("guest native tests/native.rs", tests, "no /dev/kvm"));
    Ok(Outcome::NotRun(format!("native guests not run, 1 suite: {why}")))
}

/// Runs a `cargo test` command, passes its output on and adds what it counted to `suites`, `kind` before each name.
///
/// # Errors
///
/// A test failed, the tests did not build, there was none to run, or, in CI, one did not run.
pub fn cargo_test(kind: &str, command: &mut Command, suites: &mut Vec<Suite>) -> Result<()> {
    let mut reader = Reader::default();
    let status = each_line(command, |line| {
        println!("{line}");
        reader.line(line);
    })?;
    let mut ran = reader.finish();
    for suite in &mut ran {
        suite.name.insert_str(0, &format!("{kind} "));
    }
    if !status.success() && ran.iter().all(|suite| suite.failed == 0) {
        ran.push(Suite::broken(kind, "no result: see the errors above"));
    }
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
