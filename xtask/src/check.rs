//! The check: lock files, formatting, lints and documentation.

use std::process::Command;

use anyhow::Result;

use crate::host::need_component;
use crate::process::{cargo, render, run};
use crate::report::{Outcome, Report};

/// Checks that the lock files fit the manifests, then runs rustfmt, clippy and rustdoc over the workspace; each warning is
/// an error.
pub fn run_all(report: &mut Report) -> Result<()> {
    need_component("fmt", "rustfmt")?;
    need_component("clippy", "clippy")?;
    one(report, "lock", cargo().args(["fetch", "--locked"]))?;
    one(report, "lock fuzz", cargo().args(["fetch", "--locked", "--manifest-path", "fuzz/Cargo.toml"]))?;
    one(report, "fmt", cargo().args(["fmt", "--all", "--", "--check"]))?;
    one(report, "fmt fuzz", cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    one(report, "clippy", cargo().args(lints))?;
    let doc = ["doc", "--no-deps", "--workspace"];
    one(report, "doc", cargo().args(doc).env("RUSTDOCFLAGS", "-Dwarnings"))
}

fn one(report: &mut Report, name: &str, command: &mut Command) -> Result<()> {
    let rerun = render(command);
    report.step(name, &rerun, |_| run(command).map(|()| Outcome::Passed))
}
