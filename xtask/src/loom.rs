//! The loom models: every interleaving of the lock-free protocols, within a bound on preemptions.

use anyhow::Result;

use crate::process::cargo;
use crate::report::{Outcome, Report};
use crate::test::cargo_test;

/// Runs the tests whose names contain `loom` with loom's atomics. `LOOM_MAX_PREEMPTIONS` is 3 unless it is set.
pub fn run_all(report: &mut Report) -> Result<()> {
    report.step("loom", "cargo xtask loom", |suites| {
        let mut command = cargo();
        command
            .args(["test", "--release", "--lib", "--target-dir", "target/loom"])
            .args(["-p", "vmm-core", "-p", "vmm-devices", "-p", "vmm-memory", "-p", "vmm-vcpu", "loom"])
            .env("RUSTFLAGS", "--cfg loom")
            // Link-time optimisation of a test binary costs more than it saves here.
            .env("CARGO_PROFILE_RELEASE_LTO", "off");
        if std::env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
            command.env("LOOM_MAX_PREEMPTIONS", "3");
        }
        cargo_test("loom", &mut command, suites)?;
        Ok(Outcome::Passed)
    })
}
