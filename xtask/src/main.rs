//! The project's tasks: everything that is done to this repository, by hand or in CI, as `cargo xtask NAME`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task's output is the output of a command")]

mod bench;
mod check;
mod ci;
mod deny;
mod deps;
mod fuzz;
mod guest_suites;
mod guests;
mod host;
mod loom;
mod metadata;
mod miri;
mod nested;
mod process;
mod report;
mod suites;
mod tables;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::report::{Outcome, Report};

/// The project's tasks. They run in the root of the repository, whatever directory they are called from.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Everything CI runs.
    Ci,
    /// Formatting, lints and documentation, with warnings as errors.
    Check,
    /// The arrows between crates, and cargo-deny.
    Deps,
    /// The rules that no lint knows: lengths, unsafe code, names, words, layout, documents.
    Tidy,
    /// Unit tests, doc tests and guest programs.
    Test,
    /// Guest programs and Linux guests, under the built monitor.
    TestGuest(guest_suites::GuestArgs),
    /// Assembles the guest programs.
    Guests,
    /// Runs a command in an emulated host with a hardware-style /dev/kvm.
    ///
    /// Ends as the command does: 124 if it is not done in time, 125 if the nested host fails.
    Nested(nested::NestedArgs),
    /// Measures, and compares with a baseline in the same run.
    Bench(bench::BenchArgs),
    /// Model checks of the lock-free protocols.
    Loom,
    /// Unit tests under miri.
    Miri,
    /// Runs the fuzz targets.
    Fuzz {
        /// Only this target.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = fuzz::SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    let task = Task::parse();
    let mut report = Report::default();
    let result = run(&task, &mut report);
    report.close(result.as_ref().err());
    result.unwrap_or(ExitCode::FAILURE)
}

fn run(task: &Task, report: &mut Report) -> Result<ExitCode> {
    let caller = std::env::current_dir().context("no working directory")?;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {root}"))?;
    match task {
        Task::Ci => ci::run_all(report),
        Task::Check => check::run_all(report),
        Task::Deps => deps::arrows(report).and_then(|()| deny::check(report)),
        Task::Tidy => tidy::run_all(report),
        Task::Test => {
            test::units(report)?;
            guest_suites::run_all(report, &guest_suites::GuestArgs::everywhere())
        }
        Task::TestGuest(args) => guest_suites::run_all(report, args),
        Task::Guests => {
            report.step("guests", "cargo xtask guests", |_| guests::build().map(|()| Outcome::Passed))
        }
        Task::Nested(args) => return Ok(nested::main(args, &caller)),
        Task::Bench(args) => bench::run(args),
        Task::Loom => loom::run_all(report),
        Task::Miri => miri::run_all(report, miri::Missing::Fails),
        Task::Fuzz { target, seconds } => fuzz::run_all(report, target.as_deref(), *seconds),
    }
    .map(|()| ExitCode::SUCCESS)
}
