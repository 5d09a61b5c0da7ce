//! Fuzzing: builds the fuzz targets on the stable toolchain and runs each for a while.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::host::need;
use crate::metadata;
use crate::process::{cargo, each_line, run};
use crate::report::{Outcome, Report};

/// How long each target runs unless the command line says otherwise.
pub const SECONDS: u32 = 20;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The instrumentation libFuzzer needs, as flags of the stable compiler. One codegen unit, because the sections with
/// the counters of several are not joined.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Builds all targets and runs the named one, or each of them, for `seconds`.
pub fn run_all(report: &mut Report, only: Option<&str>, seconds: u32) -> Result<()> {
    let targets = targets(only)?;
    report.step("fuzz build", "cargo xtask fuzz --seconds 1", |_| {
        // libFuzzer is C++.
        need("g++", "g++")?;
        // `--target` keeps the flags away from build scripts and procedural macros.
        let mut command = cargo();
        command
            .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml"])
            .args(["--target", TRIPLE, "--target-dir", "fuzz/target"])
            .env("RUSTFLAGS", RUSTFLAGS);
        run(&mut command).map(|()| Outcome::Passed)
    })?;
    for target in &targets {
        let rerun = format!("cargo xtask fuzz {target} --seconds {seconds}");
        report.step(&format!("fuzz {target}"), &rerun, |_| one(target, seconds))?;
    }
    Ok(())
}

/// The targets are the binaries of the fuzz package.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let metadata = metadata::read("fuzz/Cargo.toml")?;
    let binaries = metadata.packages.iter().flat_map(|package| &package.targets);
    let all: Vec<_> = binaries
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| &target.name)
        .collect();
    let chosen: Vec<_> = all.iter().filter(|name| only.is_none_or(|only| only == **name)).collect();
    if chosen.is_empty() {
        bail!("no such fuzz target: there are {all:?}");
    }
    Ok(chosen.into_iter().map(ToString::to_string).collect())
}

/// Seeds are only read; what the run finds goes to a corpus of its own, so that the next one starts from there.
fn one(target: &str, seconds: u32) -> Result<Outcome> {
    let found = format!("fuzz/target/corpus/{target}");
    let artifacts = format!("fuzz/artifacts/{target}/");
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
    }
    let mut command = std::process::Command::new(format!("fuzz/target/{TRIPLE}/release/{target}"));
    command.arg(found);
    let seeds = format!("fuzz/corpus/{target}");
    if Path::new(&seeds).is_dir() {
        command.arg(seeds);
    }
    command
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={artifacts}"));
    let mut units = 0_u64;
    let mut steps = None;
    let mut is_instrumented = false;
    let status = each_line(&mut command, |line| {
        // Of inputs that are made of steps, said all the time.
        if let Some(count) = line.strip_prefix("steps: ") {
            steps = Some(count.to_owned());
            return;
        }
        // Lines of progress begin with the number of the input, thousands of them; the first and the last are enough.
        if !line.starts_with('#') || line.contains("INITED") || line.contains("DONE") {
            println!("{line}");
        }
        is_instrumented |= line.contains("inline 8-bit counters");
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            units = count.trim().parse().unwrap_or(0);
        }
    })?;
    if !status.success() {
        bail!("the target ended with {status}; the input is under {artifacts}");
    }
    if units == 0 || !is_instrumented {
        bail!("the run says nothing: {units} inputs, counters of coverage: {is_instrumented}");
    }
    let steps = steps.map_or(String::new(), |steps| format!(", more than {steps} steps"));
    println!("{target}: {units} inputs{steps}");
    Ok(Outcome::Passed)
}
