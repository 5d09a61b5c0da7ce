//! The whole check: exactly what CI runs, in the order in which failures are cheapest to learn of.

use anyhow::Result;

use crate::miri::Missing;
use crate::report::Report;
use crate::test::Host;
use crate::{check, deny, deps, fuzz, loom, miri, test, tidy};

/// Runs every step until the first failure.
pub fn run_all(report: &mut Report) -> Result<()> {
    check::run_all(report)?;
    deps::arrows(report)?;
    deny::check(report)?;
    tidy::run_all(report)?;
    test::units(report)?;
    test::native_guests(report, Host::Native, None)?;
    loom::run_all(report)?;
    miri::run_all(report, Missing::Noted)?;
    fuzz::run_all(report, None, fuzz::SECONDS)
}
