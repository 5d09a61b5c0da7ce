//! The whole check: exactly what CI runs, in the order in which failures are cheapest to learn of.

use anyhow::Result;

use crate::guest_suites::GuestArgs;
use crate::miri::Missing;
use crate::report::Report;
use crate::{check, deny, deps, fuzz, guest_suites, loom, miri, test, tidy};

/// Runs every step until the first failure.
pub fn run_all(report: &mut Report) -> Result<()> {
    check::run_all(report)?;
    deps::arrows(report)?;
    deny::check(report)?;
    tidy::run_all(report)?;
    test::units(report)?;
    guest_suites::run_all(report, &GuestArgs::everywhere())?;
    loom::run_all(report)?;
    miri::run_all(report, Missing::Noted)?;
    fuzz::run_all(report, None, fuzz::SECONDS)
}
