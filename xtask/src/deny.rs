//! cargo-deny: bans, licences, sources and, where the database can be reached, advisories.

use std::process::Command;

use anyhow::{Result, bail};

use crate::host::in_ci;
use crate::process::{capture, cargo, run, succeeds};
use crate::report::{Outcome, Report};

const INSTALL: &str = "cargo install cargo-deny --locked";

/// Checks the dependencies from outside against deny.toml.
pub fn check(report: &mut Report) -> Result<()> {
    report.step("deny", "cargo deny check bans licenses sources", |_| {
        if !succeeds(cargo().args(["deny", "--version"])) {
            return missing();
        }
        run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
        Ok(Outcome::Passed)
    })?;
    report.step("advisories", "cargo deny check advisories", |_| {
        if let Some(why) = database_unreachable() {
            return Ok(Outcome::NotRun(format!("advisories not checked: {why}")));
        }
        run(cargo().args(["deny", "--offline", "check", "advisories"]))?;
        Ok(Outcome::Passed)
    })
}

fn missing() -> Result<Outcome> {
    if in_ci() {
        bail!("cargo-deny is missing: {INSTALL}");
    }
    Ok(Outcome::NotRun(format!("bans, licences and sources not checked: cargo-deny is missing: {INSTALL}")))
}

/// Fetches the advisory database; an unreachable host is given a minute.
fn database_unreachable() -> Option<String> {
    if !succeeds(cargo().args(["deny", "--version"])) {
        return Some(format!("cargo-deny is missing: {INSTALL}"));
    }
    let fetch = cargo();
    let mut bounded = Command::new("timeout");
    bounded.arg("60").arg(fetch.get_program()).args(["deny", "fetch", "db"]);
    let error = capture(&mut bounded).err()?.to_string();
    Some(error.lines().last().unwrap_or("the database cannot be fetched").trim().into())
}
