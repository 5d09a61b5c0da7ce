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
use crate::tables;
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
    /// Trials take the time that they need: hours instead of minutes, as with VMM_FULL in the environment.
    #[arg(long)]
    long: bool,
    /// See in the nested host which rules of the tables of system calls the trials use; with all of them, each has to be.
    #[arg(long)]
    record: bool,
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

/// CPUs of the nested hosts that a suite runs in, each of its trials in one of them.
const NATIVE_CPUS: &[u32] = &[1];
/// A dedicated CPU needs another one beside it.
const LINUX_CPUS: &[u32] = &[1, 2];

/// What the nested host loads for Linux guests besides: TAP interfaces, and the kernel's service of queues.
const LINUX_MODULES: [&str; 3] = ["tun", "vhost_net", "vhost_vsock"];

/// Huge pages that the nested host sets aside for Linux guests that run in them.
const HUGE_PAGES: [&str; 2] = ["2M=128", "1G=1"];

/// Most trials of a suite that are tried a second time in the nested host, and, in CI, on this one.
const SECOND_ATTEMPTS: usize = 5;
const SECOND_ATTEMPTS_IN_CI: usize = 2;

/// The benchmarks that the native suite runs with few rounds, from the same build.
const BENCH_PROGRAMS: [&str; 7] = [
    "raw_startup",
    "bench_kick",
    "bench_pause",
    "bench_inl",
    "bench_doorbell",
    "bench_reconfigure",
    "bench_slots",
];

/// Which system calls the trials have made under filters.
const RECORD: &str = "target/nested/calls";

/// In the environment, trials take the time that they need; suites read it.
const FULL: &str = "VMM_FULL";

/// Memory of the nested host for trials that take the time that they need: their images of more than a gibibyte are files in it,
/// which may have half of it.
const NESTED_FULL_MEMORY: &str = "6G";

/// Seconds that one suite may take in the nested host, and those that it may take then.
const NESTED_SECONDS: u32 = 3000;
const NESTED_FULL_SECONDS: u32 = 12 * 3600;

impl GuestArgs {
    /// All suites on all hosts.
    pub fn everywhere() -> Self {
        Self { host: Host::All, record: true, ..Self::default() }
    }

    fn kernels(&self) -> &[Version] {
        if self.kernels.is_empty() { Version::value_variants() } else { &self.kernels }
    }

    /// Whether no trial is left out.
    fn is_whole(&self) -> bool {
        self.filter.is_none()
            && Version::value_variants().iter().all(|version| self.kernels().contains(version))
    }

    /// Whether trials take the time that they need.
    fn is_full(&self) -> bool {
        self.long || std::env::var_os(FULL).is_some()
    }

    /// What tells the suites so.
    fn full_environment(&self) -> Option<(&'static str, OsString)> {
        self.is_full().then(|| (FULL, "1".into()))
    }

    /// The command that runs one step again.
    fn rerun(&self, host: &str) -> String {
        let long = if self.long { " --long" } else { "" };
        let record = if self.record && host == "nested" { " --record" } else { "" };
        let filter = self.filter.as_ref().map_or(String::new(), |filter| format!(" {filter}"));
        format!("cargo xtask test-guest --host {host}{long}{record}{filter}")
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
        let rerun = args.rerun("nested");
        report.step("nested guests", &rerun, |suites| in_nested(args, suites))?;
        if args.record {
            report.step("tables of system calls", &rerun, |_| recorded(args))?;
        }
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
    let mut words: Vec<OsString> = SUITES.into_iter().chain(["--test", NATIVE]).map(Into::into).collect();
    let mut environment = vec![
        ("VMM_CLI", std::path::absolute(build_monitor()?)?.into_os_string()),
        ("VMM_GUESTS", std::path::absolute(guests::OUTPUT)?.into_os_string()),
    ];
    if has_virtualization() {
        let images = nested::linux_images(args.kernels())?;
        words.extend(["--test", LINUX].map(Into::into));
        environment.extend(args.linux_environment(&std::path::absolute(images)?));
    }
    environment.extend(args.full_environment());
    let attempt = |trials: &[&str]| {
        let mut session = Session::default();
        session.run(cargo().args(&words).envs(environment.iter().cloned()).arg("--").args(trials))?;
        Ok(session.finish("guest"))
    };
    let filter: Vec<_> = args.filter.iter().map(String::as_str).collect();
    let mut ran = attempt(&filter)?;
    if in_ci() {
        for suite in &mut ran {
            // On a machine that others use too, a thread may not run for half a minute.
            try_again(suite, SECOND_ATTEMPTS_IN_CI, |trial| attempt(&["--exact", trial]))?;
        }
    }
    conclude(ran, suites)?;
    Ok(Outcome::Passed)
}

/// Makes an `attempt` of each trial of `suite` that has failed, unless more than `most` have. The report names what failed first.
fn try_again(
    suite: &mut Suite,
    most: usize,
    mut attempt: impl FnMut(&str) -> Result<Vec<Suite>>,
) -> Result<()> {
    if suite.failures.len() > most {
        return Ok(());
    }
    for trial in suite.failures.clone() {
        println!("{trial}: second attempt");
        // Exactly this trial: what is not the name of one, such as a suite without a result, cannot pass.
        if attempt(&trial)?.iter().map(|suite| suite.passed).sum::<usize>() == 1 {
            suite.passed_at_last(trial);
        }
    }
    Ok(())
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
    if args.record && Path::new(RECORD).exists() {
        fs::remove_file(RECORD).with_context(|| format!("cannot remove {RECORD}"))?;
    }
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
        for inside in Inside::all_of(binary, args) {
            if inside.listed()? != 0 {
                chosen.push(inside);
            }
        }
    }
    // Side by side, nearly all on one CPU each: what goes wrong between the emulator's threads cannot.
    let ran = thread::scope(|scope| {
        let suites: Vec<_> = chosen.iter().map(|inside| scope.spawn(|| inside.suite())).collect();
        suites
            .into_iter()
            .map(|suite| suite.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<_>>>()
    })?;
    conclude(ran.into_iter().flatten().collect(), suites)?;
    Ok(Outcome::Passed)
}

/// Looks which rules of the tables no trial has used.
fn recorded(args: &GuestArgs) -> Result<Outcome> {
    if !Path::new(RECORD).exists() {
        return Ok(Outcome::NotRun("no record of system calls: nested guests were not run".into()));
    }
    let kinds = tables::of(Path::new(BUILT_MONITOR))?;
    let unused = tables::unused(&kinds, &fs::read_to_string(RECORD)?)?;
    unused.iter().for_each(|rule| println!("not used by these trials: {rule}"));
    if !unused.is_empty() && args.is_whole() {
        bail!("{} rules of the tables of system calls are used by no trial", unused.len());
    }
    println!(
        "{} rules of {} kinds of threads, {} not used",
        tables::count(&kinds),
        kinds.len(),
        unused.len()
    );
    Ok(Outcome::Passed)
}

/// A suite, that of Linux guests with one kernel, and the nested hosts it runs in.
struct Inside {
    binary: Binary,
    args: GuestArgs,
    cpus: u32,
}

impl Inside {
    /// All parts of the suite in `binary`.
    fn all_of(binary: &Binary, args: &GuestArgs) -> Vec<Self> {
        let part = |args, cpus: &u32| Self { binary: binary.clone(), args, cpus: *cpus };
        if binary.name != LINUX {
            return NATIVE_CPUS.iter().map(|cpus| part(args.clone(), cpus)).collect();
        }
        let alone = |version: &Version| GuestArgs { kernels: vec![*version], ..args.clone() };
        let parts = |version| LINUX_CPUS.iter().map(move |cpus| part(alone(version), cpus));
        args.kernels().iter().flat_map(parts).collect()
    }

    /// What its trials read about the host.
    fn environment(&self) -> (&'static str, OsString) {
        ("VMM_HOST_CPUS", self.cpus.to_string().into())
    }

    /// How many trials it has that the filter leaves.
    fn listed(&self) -> Result<usize> {
        listed(&self.binary.path, &self.args, Some(self.environment()))
    }

    /// Runs it.
    fn suite(&self) -> Result<Vec<Suite>> {
        let mut ran = self.attempt(None)?;
        if ran.iter().any(|suite| !suite.is_finished()) {
            println!("{}: the nested host has died: second attempt", self.binary.name);
            ran = self.attempt(None)?;
        }
        for suite in &mut ran {
            // A guest in an emulated host fails now and then because of the emulator (docs/nested.md).
            try_again(suite, SECOND_ATTEMPTS, |trial| self.attempt(Some(trial)))?;
            if let (LINUX, [version]) = (self.binary.name.as_str(), self.args.kernels()) {
                suite.name += &format!(" on {}", version.name());
                if self.cpus > 1 {
                    suite.name += &format!(", {} CPUs", self.cpus);
                }
            }
        }
        Ok(ran)
    }

    /// Runs it, or of it `only` this trial, in a nested host of its own.
    fn attempt(&self, only: Option<&str>) -> Result<Vec<Suite>> {
        let mut session = Session::default();
        // As cargo does, for whoever reads on.
        let Binary { name, path } = &self.binary;
        session.line(&format!("     Running tests/{name}.rs ({})", path.display()));
        session.run(&mut self.command(only)?)?;
        Ok(session.finish("nested"))
    }

    /// The command that runs it in the nested host, or of it `only` this trial.
    fn command(&self, only: Option<&str>) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
        let seconds = if self.args.is_full() { NESTED_FULL_SECONDS } else { NESTED_SECONDS };
        command.args(["nested", "--cpus", &self.cpus.to_string(), "--timeout", &seconds.to_string()]);
        if self.args.is_full() {
            command.args(["--memory", NESTED_FULL_MEMORY]);
        }
        if self.args.record {
            command.args(["--record", RECORD]);
        }
        let mut environment = vec![
            ("VMM_CLI", "/bin/vmm-cli".into()),
            ("VMM_GUESTS", "/guests".into()),
            ("VMM_EMULATED", "1".into()),
            self.environment(),
        ];
        if in_ci() {
            environment.push(("CI", "true".into()));
        }
        environment.extend(self.args.full_environment());
        match self.binary.name.as_str() {
            LINUX => {
                command.args(["--guest-kernels", &self.args.kernel_names(), "--back-ends"]);
                for module in LINUX_MODULES {
                    command.args(["--module", module]);
                }
                for pages in HUGE_PAGES {
                    command.args(["--huge-pages", pages]);
                }
                environment.extend(self.args.linux_environment(Path::new("/guests/linux")));
            }
            _ => {
                // Named by an absolute path in the suite.
                for program in BENCH_PROGRAMS {
                    command
                        .arg("--file")
                        .arg(std::path::absolute(Path::new("target/release").join(program))?);
                }
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
        command.arg("--").arg(&self.binary.path);
        match only {
            Some(trial) => command.args(["--exact", trial]),
            None => command.args(&self.args.filter),
        };
        Ok(command)
    }
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
        suites.push(Suite::not_run(&suite, listed(&binary.path, args, None)?, reason));
    }
    Ok(())
}

/// How many trials a suite has that the filter leaves, on a host that it reads of in `host`.
fn listed(binary: &Path, args: &GuestArgs, host: Option<(&str, OsString)>) -> Result<usize> {
    let environment = args.linux_environment(Path::new(""));
    let environment = environment.into_iter().chain(args.full_environment());
    let listed = capture(Command::new(binary).arg("--list").args(&args.filter).envs(environment).envs(host))?;
    Ok(listed.lines().filter(|line| line.ends_with(": test")).count())
}
