//! The start-up benchmark: times and memory of vmm-cli and its peers beside the raw baseline; prints the
//! report as JSON.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use nix::sys::prctl::set_child_subreaper;
use vmm_tests::bench::first_exit::first_exit;
use vmm_tests::bench::memory;
use vmm_tests::bench::probe::{Launch, ProbeError};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::bench::subject::Subject;

/// Instances that run at once where sharing of memory is measured.
const MANY: u32 = 50;

const FIRST_EXIT: Case = Case { name: "first_exit", unit: "us" };
const PROCESS_END: Case = Case { name: "process_end", unit: "us" };
const PEAK_RSS_1: Case = Case { name: "peak_rss_1", unit: "KiB" };
const PSS_1: Case = Case { name: "pss_1", unit: "KiB" };
const PEAK_RSS_50: Case = Case { name: "peak_rss_50", unit: "KiB" };
const PSS_50: Case = Case { name: "pss_50", unit: "KiB" };

#[derive(Debug, Parser)]
struct Args {
    /// The program raw_startup
    #[arg(long)]
    raw: PathBuf,
    /// The program vmm-cli
    #[arg(long)]
    vmm: PathBuf,
    /// Another program to measure beside them: firecracker=PATH or cloud-hypervisor=PATH
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<Subject>,
    /// The directory of the assembled guest programs
    #[arg(long)]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// A subject with its ways to run the two guests.
struct Runner {
    name: &'static str,
    reset: Launch,
    halt: Launch,
}

/// One measurement, which gives values for one or more cases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    FirstExit,
    ProcessEnd,
    OneInstance,
    ManyInstances,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // So that a process that outlives its parent is found instead of handed to init.
    set_child_subreaper(true).context("becoming a subreaper")?;
    let scratch = tempfile::tempdir().context("making a temporary directory")?;
    let runners = runners(&args, scratch.path())?;
    let names: Vec<&str> = runners.iter().map(|runner| runner.name).collect();
    let cases = [FIRST_EXIT, PROCESS_END, PEAK_RSS_1, PSS_1, PEAK_RSS_50, PSS_50];

    let mut recorder = Recorder::new(&cases, &names);
    for probe in [Probe::FirstExit, Probe::ProcessEnd, Probe::OneInstance] {
        for runner in &runners {
            probe.run(runner, &mut recorder, Values::Discard);
        }
    }
    let mut order: Vec<&Runner> = runners.iter().collect();
    for _ in 0..args.rounds {
        for probe in [Probe::FirstExit, Probe::ProcessEnd, Probe::OneInstance] {
            for runner in &order {
                probe.run(runner, &mut recorder, Values::Record);
            }
        }
        // Nobody always comes after the same one.
        order.rotate_left(1);
    }
    for runner in &runners {
        Probe::ManyInstances.run(runner, &mut recorder, Values::Record);
    }

    let report = recorder.finish("startup", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn runners(args: &Args, scratch: &Path) -> anyhow::Result<Vec<Runner>> {
    let mut subjects = vec![Subject::raw(&args.raw), Subject::vmm(&args.vmm)];
    subjects.extend(args.peers.iter().cloned());
    let names: HashSet<_> = subjects.iter().map(Subject::name).collect();
    ensure!(names.len() == subjects.len(), "a peer is given twice");
    let guests = args.guests.canonicalize().with_context(|| args.guests.display().to_string())?;
    let launch = |subject: &Subject, guest| {
        subject.launch(&guests.join(guest), scratch).context("writing a peer's configuration")
    };
    subjects
        .iter()
        .map(|subject| {
            Ok(Runner {
                name: subject.name(),
                reset: launch(subject, "bench_reset.elf")?,
                halt: launch(subject, "bench_halt.elf")?,
            })
        })
        .collect()
}

/// What becomes of the values of a measurement; a failure counts either way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Record,
    Discard,
}

impl Probe {
    /// Measures `runner` unless it has failed before.
    fn run(self, runner: &Runner, recorder: &mut Recorder, values: Values) {
        let failed = |case| recorder.has_failed(case, runner.name);
        if self.cases().iter().copied().any(failed) {
            return;
        }
        let measured = match self.prerequisite().filter(|&case| failed(case)) {
            Some(case) => Err(anyhow!("not tried, as {} failed", case.name)),
            None => self.measure(runner).map_err(anyhow::Error::from),
        };
        match measured {
            Ok(measured) if values == Values::Record => {
                for (&case, values) in self.cases().iter().zip(measured) {
                    recorder.record(case, runner.name, &values);
                }
            }
            Ok(_) => {}
            Err(error) => {
                for &case in self.cases() {
                    recorder.fail(case, runner.name, &format!("{error:#}"));
                }
            }
        }
    }

    fn cases(self) -> &'static [Case] {
        match self {
            Self::FirstExit => &[FIRST_EXIT],
            Self::ProcessEnd => &[PROCESS_END],
            Self::OneInstance => &[PEAK_RSS_1, PSS_1],
            Self::ManyInstances => &[PEAK_RSS_50, PSS_50],
        }
    }

    /// The case without which this measurement means nothing: a program that does not run the guest ends all
    /// the sooner.
    fn prerequisite(self) -> Option<Case> {
        match self {
            Self::ProcessEnd => Some(FIRST_EXIT),
            Self::ManyInstances => Some(PEAK_RSS_1),
            Self::FirstExit | Self::OneInstance => None,
        }
    }

    /// The values of each of [`Self::cases`].
    fn measure(self, runner: &Runner) -> Result<Vec<Vec<f64>>, ProbeError> {
        match self {
            Self::FirstExit => first_exit(&runner.reset).map(microseconds),
            Self::ProcessEnd => runner.reset.process_end().map(microseconds),
            Self::OneInstance => memory::measure(&runner.halt, 1).map(|all| kib(&all)),
            Self::ManyInstances => memory::measure(&runner.halt, MANY).map(|all| kib(&all)),
        }
    }
}

fn microseconds(elapsed: Duration) -> Vec<Vec<f64>> {
    vec![vec![elapsed.as_secs_f64() * 1e6]]
}

fn kib(instances: &[memory::Memory]) -> Vec<Vec<f64>> {
    let peak_rss = instances.iter().map(|memory| memory.peak_rss.into()).collect();
    let pss = instances.iter().map(|memory| memory.pss.into()).collect();
    vec![peak_rss, pss]
}
