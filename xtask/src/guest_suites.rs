//! Guest suites: guest programs and Linux guests under the built monitor, on this machine or in the nested host.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::guests;
use crate::host::{find, in_ci, kvm_missing};
use crate::nested::{self, Version};
use crate::process::{capture, cargo, run};
use crate::report::{Outcome, Report};
use crate::suites::Suite;
use crate::test::{Session, conclude};

/// Where the guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// On this machine's own `/dev/kvm`.
    #[default]
    Native,
    /// In the nested host.
    Nested,
    /// On both.
    All,
}

/// The command line of `cargo xtask test-guest`.
#[derive(Args, Clone, Debug, Default)]
pub struct GuestArgs {
    /// Only trials whose names contain this.
    filter: Option<String>,
    /// Where the guests run.
    #[arg(long, value_enum, default_value_t)]
    host: Host,
    /// The kernels that Linux guests run; several with commas between.
    #[arg(long = "kernel", value_enum, value_name = "VERSION", value_delimiter = ',')]
    kernels: Vec<Version>,
}

/// The suite of guest programs, which need no more of KVM than any has.
const NATIVE: &str = "native";
/// The suite of Linux guests, which need what hardware has.
const LINUX: &str = "linux";

/// What cargo calls the suites' package; the target directory is said because paths of built programs are handed on.
const SUITES: [&str; 6] = ["test", "--release", "--target-dir", "target", "-p", "vmm-tests"];
const MONITOR: [&str; 6] = ["build", "--release", "--target-dir", "target", "-p", "vmm-cli"];
const BUILT_MONITOR: &str = "target/release/vmm-cli";

/// Programs that trials start the monitor by, carried in: busybox has less of them, and its shell takes its own before
/// those of the search path.
const STARTERS: [&str; 3] = ["setpriv", "setsid", "sh"];

/// Most trials of a suite that are tried a second time in the nested host.
const SECOND_ATTEMPTS: usize = 5;

/// Seconds that one suite may take in the nested host.
const NESTED_SECONDS: u32 = 1800;

impl GuestArgs {
    /// All suites on all hosts.
    pub fn everywhere() -> Self {
        Self { host: Host::All, ..Self::default() }
    }

    fn kernels(&self) -> &[Version] {
        if self.kernels.is_empty() { Version::value_variants() } else { &self.kernels }
    }

    /// The command that runs one step again.
    fn rerun(&self, host: &str) -> String {
        let filter = self.filter.as_ref().map_or(String::new(), |filter| format!(" {filter}"));
        format!("cargo xtask test-guest --host {host}{filter}")
    }

    /// The names of the kernels, with commas between.
    fn kernel_names(&self) -> String {
        self.kernels().iter().map(|version| version.name()).collect::<Vec<_>>().join(",")
    }

    /// What the suites read from the environment about Linux guests, whose images are below `images`.
    fn linux_environment(&self, images: &Path) -> [(&'static str, OsString); 2] {
        [("VMM_LINUX", images.into()), ("VMM_LINUX_KERNELS", self.kernel_names().into())]
    }
}

/// Builds the monitor and the guests and runs the suites where `args` says.
pub fn run_all(report: &mut Report, args: &GuestArgs) -> Result<()> {
    if args.host != Host::Nested {
        report.step("native guests", &args.rerun("native"), |suites| native(args, suites))?;
    }
    if args.host != Host::Native {
        report.step("nested guests", &args.rerun("nested"), |suites| in_nested(args, suites))?;
    }
    Ok(())
}

/// Builds the monitor, for this machine and for the nested one.
pub fn build_monitor() -> Result<&'static Path> {
    run(cargo().args(MONITOR).arg("--quiet"))?;
    Ok(Path::new(BUILT_MONITOR))
}

/// On this machine's KVM: the guest programs, and Linux guests where KVM is built on virtualization of the CPU.
///
/// Without `/dev/kvm` the suites are counted as skipped, and in CI that is a failure, unless they run in the nested
/// host anyway.
fn native(args: &GuestArgs, suites: &mut Vec<Suite>) -> Result<Outcome> {
    if let Some(why) = kvm_missing() {
        if args.host == Host::All {
            return Ok(Outcome::NotRun(format!("native guests run in the nested host only: {why}")));
        }
        if in_ci() {
            suites.push(Suite::broken("guest native tests/native.rs", "no /dev/kvm"));
            bail!("{why}");
        }
        not_run(&[NATIVE], args, "no /dev/kvm", suites)?;
        return Ok(Outcome::NotRun(format!("native guests not run, 1 suite: {why}")));
    }
    guests::build()?;
    let mut command = cargo();
    command.args(SUITES).args(["--test", NATIVE]);
    command.env("VMM_CLI", std::path::absolute(build_monitor()?)?);
    command.env("VMM_GUESTS", std::path::absolute(guests::OUTPUT)?);
    if has_virtualization() {
        let images = nested::linux_images(args.kernels())?;
        command.args(["--test", LINUX]).envs(args.linux_environment(&std::path::absolute(images)?));
    }
    command.arg("--").args(&args.filter);
    let mut session = Session::default();
    session.run(&mut command)?;
    session.close("guest", suites)?;
    Ok(Outcome::Passed)
}

/// Whether the CPU has VMX or SVM, without which KVM cannot run a Linux guest as it is.
pub fn has_virtualization() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
        flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    })
}

/// In the nested host: all suites. If it cannot be had here, they are counted as skipped, unless this is CI or it was
/// asked for by name.
fn in_nested(args: &GuestArgs, suites: &mut Vec<Suite>) -> Result<Outcome> {
    if let Err(error) = nested::prepare(args.kernels()) {
        if in_ci() || args.host == Host::Nested {
            return Err(error);
        }
        not_run(&[NATIVE, LINUX], args, "no nested host", suites)?;
        return Ok(Outcome::NotRun(format!("nested guests not run, 2 suites: {error:#}")));
    }
    guests::build()?;
    let mut chosen = Vec::new();
    for binary in &binaries()? {
        if listed(&binary.path, args)? == 0 {
            continue;
        }
        if binary.name == LINUX {
            let alone = |version: &Version| GuestArgs { kernels: vec![*version], ..args.clone() };
            chosen.extend(args.kernels().iter().map(|version| (binary.clone(), alone(version))));
        } else {
            chosen.push((binary.clone(), args.clone()));
        }
    }
    // Side by side, each on one CPU: what goes wrong between the emulator's threads cannot.
    let ran = thread::scope(|scope| {
        let suites: Vec<_> =
            chosen.iter().map(|(binary, args)| scope.spawn(|| suite_inside(binary, args))).collect();
        suites
            .into_iter()
            .map(|suite| suite.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<_>>>()
    })?;
    conclude(ran.into_iter().flatten().collect(), suites)?;
    Ok(Outcome::Passed)
}

/// Runs one suite in nested hosts, that of Linux guests with one kernel.
fn suite_inside(binary: &Binary, args: &GuestArgs) -> Result<Vec<Suite>> {
    let mut ran = attempt(binary, args, None)?;
    if ran.iter().any(|suite| !suite.is_finished()) {
        println!("{}: the nested host has died: second attempt", binary.name);
        ran = attempt(binary, args, None)?;
    }
    for suite in &mut ran {
        try_again(binary, args, suite)?;
        if let (LINUX, [version]) = (binary.name.as_str(), args.kernels()) {
            suite.name += &format!(" on {}", version.name());
        }
    }
    Ok(ran)
}

/// Runs one suite in a nested host, or of it `only` this trial.
fn attempt(binary: &Binary, args: &GuestArgs, only: Option<&str>) -> Result<Vec<Suite>> {
    let mut session = Session::default();
    // As cargo does, for whoever reads on.
    session.line(&format!("     Running tests/{}.rs ({})", binary.name, binary.path.display()));
    session.run(&mut inside(binary, args, only)?)?;
    Ok(session.finish("nested"))
}

/// Runs the trials that have failed once more, each in a nested host of its own, unless there are many: a guest in an
/// emulated host fails now and then because of the emulator (docs/nested.md). The report names what failed first.
fn try_again(binary: &Binary, args: &GuestArgs, suite: &mut Suite) -> Result<()> {
    if suite.failures.len() > SECOND_ATTEMPTS {
        return Ok(());
    }
    for trial in suite.failures.clone() {
        println!("{trial}: second attempt");
        // Exactly this trial: what is not the name of one, such as a suite without a result, cannot pass.
        if attempt(binary, args, Some(&trial))?.iter().map(|suite| suite.passed).sum::<usize>() == 1 {
            suite.passed_at_last(trial);
        }
    }
    Ok(())
}

/// The command that runs one suite in the nested host, or of it `only` this trial.
fn inside(binary: &Binary, args: &GuestArgs, only: Option<&str>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["nested", "--cpus", "1", "--timeout", &NESTED_SECONDS.to_string()]);
    let mut environment = vec![
        ("VMM_CLI", "/bin/vmm-cli".into()),
        ("VMM_GUESTS", "/guests".into()),
        ("VMM_EMULATED", "1".into()),
    ];
    if in_ci() {
        environment.push(("CI", "true".into()));
    }
    match binary.name.as_str() {
        LINUX => {
            command.args(["--guest-kernels", &args.kernel_names()]);
            environment.extend(args.linux_environment(Path::new("/guests/linux")));
        }
        _ => {
            // Named by an absolute path in the suite.
            command.arg("--file").arg(std::path::absolute("target/release/raw_startup")?);
        }
    }
    for program in STARTERS {
        let mut file = find(program)?.into_os_string();
        file.push(format!(":/bin/{program}"));
        command.arg("--file").arg(file);
    }
    for (name, value) in environment {
        let mut variable = OsString::from(format!("{name}="));
        variable.push(value);
        command.arg("--env").arg(variable);
    }
    command.arg("--").arg(&binary.path);
    match only {
        Some(trial) => command.args(["--exact", trial]),
        None => command.args(&args.filter),
    };
    Ok(command)
}

/// A built suite.
#[derive(Clone)]
struct Binary {
    name: String,
    path: PathBuf,
}

/// What cargo says about something it has built, as far as it is read here.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds the suites.
fn binaries() -> Result<Vec<Binary>> {
    let build = ["--test", NATIVE, "--test", LINUX, "--no-run", "--message-format=json-render-diagnostics"];
    let messages = capture(cargo().args(SUITES).args(build))?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let Message { target, executable } = serde_json::from_str(line).context("a message of cargo")?;
        if let (Some(Target { name }), Some(path)) = (target, executable)
            && [NATIVE, LINUX].contains(&name.as_str())
        {
            binaries.push(Binary { name, path });
        }
    }
    binaries.sort_by_key(|binary| binary.name == LINUX);
    Ok(binaries)
}

/// Counts the trials of `names` as skipped.
fn not_run(names: &[&str], args: &GuestArgs, reason: &str, suites: &mut Vec<Suite>) -> Result<()> {
    for binary in binaries()?.iter().filter(|binary| names.contains(&binary.name.as_str())) {
        let suite = format!("guest {name} tests/{name}.rs", name = binary.name);
        suites.push(Suite::not_run(&suite, listed(&binary.path, args)?, reason));
    }
    Ok(())
}

/// How many trials a suite has that the filter leaves.
fn listed(binary: &Path, args: &GuestArgs) -> Result<usize> {
    let listed = capture(
        Command::new(binary).arg("--list").args(&args.filter).envs(args.linux_environment(Path::new(""))),
    )?;
    Ok(listed.lines().filter(|line| line.ends_with(": test")).count())
}
