//! The boot benchmark: times and counted exits of a Linux boot under vmm-cli and other monitors. Measures, printing
//! samples as they come, and makes the report of them.

use std::collections::HashSet;
use std::io::{self, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use clap::{Args, Parser};
use nix::sys::prctl::set_child_subreaper;
use vmm_tests::bench::boot_monitor::{BootMonitor, Guest};
use vmm_tests::bench::boot_samples::{COUNTS, report};
use vmm_tests::bench::boot_shape::{SHAPES, Shape};
use vmm_tests::bench::exit_counts::{BootCounts, Kind, Processor, merged};
use vmm_tests::bench::kvm_trace::{KvmTrace, TraceError};
use vmm_tests::bench::linux_boot::{to_end, to_mark};
use vmm_tests::bench::probe::Launch;
use vmm_tests::bench::programs::Programs;
use vmm_tests::bench::report::{Count, Host};
use vmm_tests::bench::samples::{Line, Part, Run, print_report};
use vmm_tests::bench::series::{Case, Sample, Taken};

/// Boots of each monitor and shape whose exits are counted; they are not timed.
const COUNTED_BOOTS: usize = 2;

#[derive(Debug, Parser)]
enum Command {
    /// Measure, and print samples as lines of JSON, each round as soon as it is complete
    Measure(Measure),
    /// Print the report of such lines as JSON
    Report {
        /// A file of them
        samples: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Measure {
    #[command(flatten)]
    programs: Programs,
    /// Another monitor to measure beside them: firecracker=PATH or cloud-hypervisor=PATH
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<BootMonitor>,
    /// Only these: bzimage_1, bzimage_4, vmlinux_1, vmlinux_4; several with commas between
    #[arg(long = "shape", value_name = "SHAPE", value_delimiter = ',', value_parser = Shape::named)]
    shapes: Vec<&'static Shape>,
    /// Timed boots of each, not counting the warm-up
    #[arg(long)]
    rounds: u32,
    /// Rounds that were measured before, by another run
    #[arg(long, default_value_t = 0)]
    after: u32,
    /// Count exits, after the last round
    #[arg(long)]
    count: bool,
    /// How often a boot is tried that fails
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Measure(args) => measure(args),
        Command::Report { samples } => print_report(&samples, report),
    }
}

fn measure(mut args: Measure) -> Result<()> {
    if args.shapes.is_empty() {
        args.shapes.extend(&SHAPES);
    }
    // So that a process that outlives its parent is found instead of handed to init.
    set_child_subreaper(true).context("becoming a subreaper")?;
    let scratch = tempfile::tempdir().context("making a temporary directory")?;
    let monitors = monitors(&args)?;
    let run = Run {
        host: Host::read(),
        shapes: args.shapes.iter().map(|shape| shape.name.to_owned()).collect(),
        subjects: monitors.iter().map(|monitor| monitor.name().to_owned()).collect(),
    };
    Line::Run(run).print().context("standard output")?;
    let mut samples = Vec::new();
    let runners = runners(&args, &monitors, scratch.path(), &mut samples)?;
    let trace =
        KvmTrace::open().map_err(|error| leave_out_traced(&error, &args, &monitors, &mut samples)).ok();
    let mut bench = Bench { args: &args, trace, samples, failed: HashSet::new(), start: Instant::now() };
    bench.time(&runners)?;
    if args.count { bench.count(&runners) } else { Ok(()) }
}

fn monitors(args: &Measure) -> Result<Vec<BootMonitor>> {
    let Programs { vmm, qemu, firmware, .. } = &args.programs;
    let mut monitors =
        vec![BootMonitor::microvm(qemu, firmware), BootMonitor::vmm(vmm), BootMonitor::vmm_with_devices(vmm)];
    monitors.extend(args.peers.iter().cloned());
    let names: HashSet<_> = monitors.iter().map(BootMonitor::name).collect();
    ensure!(names.len() == monitors.len(), "a peer is given twice");
    Ok(monitors)
}

/// A monitor in one of its shapes.
struct Runner {
    monitor: &'static str,
    shape: &'static Shape,
    launch: Launch,
}

/// Every monitor in every shape that it boots; of the others the reason is recorded.
fn runners(
    args: &Measure,
    monitors: &[BootMonitor],
    scratch: &Path,
    samples: &mut Vec<Sample>,
) -> Result<Vec<Runner>> {
    let mut runners = Vec::new();
    for &shape in &args.shapes {
        for monitor in monitors {
            if let Some(lack) = monitor.lacks(shape.format) {
                let without = |case| Sample::new(case, monitor.name(), Taken::NotRun(lack.clone()));
                samples.extend(shape.cases().map(without));
                continue;
            }
            let guest = Guest { images: &args.programs.images, format: shape.format, cpus: shape.cpus };
            let launch = monitor.launch(guest, scratch).context("writing a peer's configuration")?;
            runners.push(Runner { monitor: monitor.name(), shape, launch });
        }
    }
    Ok(runners)
}

/// Leaves out what cannot be measured without the kernel's trace events.
fn leave_out_traced(error: &TraceError, args: &Measure, monitors: &[BootMonitor], samples: &mut Vec<Sample>) {
    let without = |case| {
        let sample = move |monitor: &BootMonitor| {
            Sample::new(case, monitor.name(), Taken::NotRun(format!("not available: {error}")))
        };
        monitors.iter().map(sample)
    };
    let cases = args.shapes.iter().flat_map(|shape| [shape.first_entry, shape.user_exits, shape.kvm_exits]);
    samples.extend(cases.flat_map(without));
}

/// What is measured with, and what has been measured since the last line.
struct Bench<'a> {
    args: &'a Measure,
    trace: Option<KvmTrace>,
    samples: Vec<Sample>,
    /// Monitors that do not boot, by shape.
    failed: HashSet<(&'static str, &'static str)>,
    start: Instant,
}

/// What is timed of a boot: up to the guest's first program, and up to its first entry, if that can be seen.
struct Times {
    init: Duration,
    first_entry: Result<Option<Duration>>,
}

impl Bench<'_> {
    /// Times the boots: every monitor in one shape, then in the next, and the whole again in rotated order. The first
    /// round is a warm-up.
    fn time(&mut self, runners: &[Runner]) -> Result<()> {
        let Measure { rounds, after, .. } = *self.args;
        let warm_up = (rounds > 0).then_some(after);
        for round in warm_up.into_iter().chain(after + 1..=after + rounds) {
            for group in runners.chunk_by(|one, next| one.shape.name == next.shape.name) {
                let mut order: Vec<&Runner> = group.iter().collect();
                // Nobody always comes after the same one.
                order.rotate_left(round as usize % group.len());
                for runner in order {
                    self.time_one(runner, round > after);
                }
            }
            if round == after {
                self.say("warm-up");
            } else {
                let name = format!("round {round}");
                self.say(&name);
                self.keep(name, Vec::new())?;
            }
        }
        Ok(())
    }

    fn time_one(&mut self, runner: &Runner, is_recorded: bool) {
        let Runner { monitor, shape, launch } = runner;
        if self.failed.contains(&(shape.name, monitor)) {
            return;
        }
        let Times { init, first_entry } = match self.attempt(runner, || timed(self.trace.as_ref(), launch)) {
            Ok(times) => times,
            Err(error) => {
                self.failed.insert((shape.name, monitor));
                return self.fail(&shape.cases(), monitor, &error);
            }
        };
        for (case, time) in [(shape.first_entry, first_entry), (shape.init, Ok(Some(init)))] {
            match time {
                Ok(Some(time)) if is_recorded => {
                    self.record(case, monitor, Taken::Values(vec![time.as_secs_f64() * 1e3]));
                }
                Ok(_) => {}
                Err(error) => self.fail(&[case], monitor, &error),
            }
        }
    }

    /// Counts exits, in boots of their own.
    fn count(&mut self, runners: &[Runner]) -> Result<()> {
        let mut counts = Vec::new();
        // Without it nothing can be counted, which was said.
        if let Some(trace) = self.trace.take() {
            for runner in runners {
                counts.extend(self.count_one(&trace, runner));
            }
        }
        self.keep(COUNTS.to_owned(), counts)
    }

    /// Prints what has been measured since the last part as the part `name`.
    fn keep(&mut self, name: String, counts: Vec<Count>) -> Result<()> {
        let samples = mem::take(&mut self.samples);
        Line::Part(Part { name, samples, counts }).print().context("standard output")
    }

    fn count_one(&mut self, trace: &KvmTrace, runner: &Runner) -> Vec<Count> {
        let Runner { monitor, shape, launch } = runner;
        if self.failed.contains(&(shape.name, monitor)) {
            return Vec::new();
        }
        let boots: Result<Vec<_>> =
            (0..COUNTED_BOOTS).map(|_| self.attempt(runner, || counted(trace, launch))).collect();
        let boots = match boots {
            Ok(boots) => boots,
            Err(error) => {
                self.fail(&shape.counted(), monitor, &error);
                return Vec::new();
            }
        };
        for (case, kind) in shape.counted().into_iter().zip([Kind::UserExits, Kind::KvmExits]) {
            let totals = boots.iter().map(|boot| boot.total(kind) as f64).collect();
            self.record(case, monitor, Taken::Values(totals));
        }
        self.say(&format!("{monitor}, {}: exits counted", shape.name));
        merged(&boots, shape.name, monitor, Processor::of_host())
    }

    /// Boots until it succeeds, at most as often as allowed. What did not is noted.
    fn attempt<T>(&self, runner: &Runner, boot: impl Fn() -> Result<T>) -> Result<T> {
        let mut booted = boot();
        for _ in 1..self.args.attempts {
            let Err(error) = &booted else { break };
            let Runner { monitor, shape, .. } = runner;
            Line::Note(format!("{monitor}, {}, was booted again, as {error:#}", shape.name)).print()?;
            booted = boot();
        }
        booted
    }

    fn record(&mut self, case: Case, monitor: &str, taken: Taken) {
        self.samples.push(Sample::new(case, monitor, taken));
    }

    fn fail(&mut self, cases: &[Case], monitor: &str, error: &anyhow::Error) {
        for &case in cases {
            self.record(case, monitor, Taken::Failed(format!("{error:#}")));
        }
    }

    /// Says how far it has got.
    fn say(&self, what: &str) {
        // Nobody reads it if it cannot be written.
        let _ = writeln!(io::stderr(), "{:6.0} s  {what}", self.start.elapsed().as_secs_f64());
    }
}

/// A boot, and when the guest was entered first in it.
fn timed(trace: Option<&KvmTrace>, launch: &Launch) -> Result<Times> {
    let watched = trace.map_or(Ok(()), KvmTrace::watch_first_entry);
    let boot = to_mark(launch)?;
    let first_entry = match (trace, watched) {
        (None, _) => Ok(None),
        (Some(trace), Ok(())) => trace.first_entry().map_err(Error::from).and_then(|entered| {
            entered.checked_sub(boot.start).context("the first entry was before the start").map(Some)
        }),
        (_, Err(error)) => Err(error.into()),
    };
    Ok(Times { init: boot.init, first_entry })
}

fn counted(trace: &KvmTrace, launch: &Launch) -> Result<BootCounts> {
    BootCounts::during(trace, || to_end(launch).map(drop).map_err(Error::from))
}
