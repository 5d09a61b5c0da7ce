//! The boot benchmark: times and counted exits of a Linux boot under vmm-cli and other monitors; prints the report as
//! JSON.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use nix::sys::prctl::set_child_subreaper;
use vmm_tests::bench::boot_monitor::{BootMonitor, Format, Guest, MICROVM};
use vmm_tests::bench::exit_counts::{BootCounts, Kind, Processor, merged};
use vmm_tests::bench::kvm_trace::{KvmTrace, TraceError};
use vmm_tests::bench::linux_boot::{Boot, to_end, to_mark};
use vmm_tests::bench::probe::Launch;
use vmm_tests::bench::report::{Count, Ratio};
use vmm_tests::bench::series::{Case, Recorder};

/// Boots of each monitor and shape whose exits are counted; they are not timed.
const COUNTED_BOOTS: usize = 2;

#[derive(Debug, Parser)]
struct Args {
    /// The program vmm-cli
    #[arg(long)]
    vmm: PathBuf,
    /// The program qemu-system-x86_64
    #[arg(long)]
    qemu: PathBuf,
    /// The directory of its firmware
    #[arg(long)]
    firmware: PathBuf,
    /// Another monitor to measure beside them: firecracker=PATH or cloud-hypervisor=PATH
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<BootMonitor>,
    /// The directory of bzImage, vmlinux and initrd
    #[arg(long)]
    images: PathBuf,
    /// Only these: bzimage_1, bzimage_4, vmlinux_1, vmlinux_4; several with commas between
    #[arg(long = "shape", value_name = "SHAPE", value_delimiter = ',', value_parser = Shape::named)]
    shapes: Vec<&'static Shape>,
    /// Timed boots of each, not counting the warm-up
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// A guest and what is measured of its boot.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    name: &'static str,
    format: Format,
    cpus: u32,
    /// From the start of the process to the first entry of the guest, and to its first program.
    first_entry: Case,
    init: Case,
    /// Exits to user space, and all exits.
    user_exits: Case,
    kvm_exits: Case,
}

macro_rules! shape {
    ($file:literal, $format:ident, $cpus:literal) => {
        Shape {
            name: concat!($file, "_", $cpus),
            format: Format::$format,
            cpus: $cpus,
            first_entry: Case { name: concat!($file, "_", $cpus, "_first_entry"), unit: "ms" },
            init: Case { name: concat!($file, "_", $cpus, "_init"), unit: "ms" },
            user_exits: Case { name: concat!($file, "_", $cpus, "_user_exits"), unit: "exits" },
            kvm_exits: Case { name: concat!($file, "_", $cpus, "_kvm_exits"), unit: "exits" },
        }
    };
}

static SHAPES: [Shape; 4] = [
    shape!("bzimage", BzImage, 1),
    shape!("bzimage", BzImage, 4),
    shape!("vmlinux", Vmlinux, 1),
    shape!("vmlinux", Vmlinux, 4),
];

impl Shape {
    fn named(name: &str) -> Result<&'static Self, String> {
        let known = SHAPES.each_ref().map(|shape| shape.name);
        SHAPES
            .iter()
            .find(|shape| shape.name == name)
            .ok_or_else(|| format!("expected one of {}", known.join(", ")))
    }

    fn counted(&self) -> [Case; 2] {
        [self.user_exits, self.kvm_exits]
    }

    fn cases(&self) -> [Case; 4] {
        [self.first_entry, self.init, self.user_exits, self.kvm_exits]
    }
}

/// A monitor in one of its shapes.
struct Runner {
    monitor: &'static str,
    shape: &'static Shape,
    launch: Launch,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.shapes.is_empty() {
        args.shapes.extend(&SHAPES);
    }
    // So that a process that outlives its parent is found instead of handed to init.
    set_child_subreaper(true).context("becoming a subreaper")?;
    let scratch = tempfile::tempdir().context("making a temporary directory")?;
    let monitors = monitors(&args)?;
    let names: Vec<_> = monitors.iter().map(BootMonitor::name).collect();
    let cases: Vec<_> = args.shapes.iter().flat_map(|shape| shape.cases()).collect();
    let mut recorder = Recorder::new(&cases, &names).against(MICROVM);
    let runners = runners(&args, &monitors, scratch.path(), &mut recorder)?;
    let trace = KvmTrace::open().map_err(|error| leave_out_traced(&error, &args, &mut recorder)).ok();

    let progress = Progress { start: Instant::now(), rounds: args.rounds };
    let mut bench = Bench { trace, recorder, counts: Vec::new() };
    bench.time(&runners, &progress);
    bench.count(&runners, &progress);

    let mut report = bench.recorder.finish("boot", args.rounds, Ratio::Cost)?;
    report.counts = bench.counts;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn monitors(args: &Args) -> Result<Vec<BootMonitor>> {
    let mut monitors = vec![BootMonitor::microvm(&args.qemu, &args.firmware), BootMonitor::vmm(&args.vmm)];
    monitors.extend(args.peers.iter().cloned());
    let names: HashSet<_> = monitors.iter().map(BootMonitor::name).collect();
    ensure!(names.len() == monitors.len(), "a peer is given twice");
    Ok(monitors)
}

/// Every monitor in every shape that it boots; of the others the reason is recorded.
fn runners(
    args: &Args,
    monitors: &[BootMonitor],
    scratch: &Path,
    recorder: &mut Recorder,
) -> Result<Vec<Runner>> {
    let mut runners = Vec::new();
    for &shape in &args.shapes {
        for monitor in monitors {
            if let Some(lack) = monitor.lacks(shape.format) {
                shape
                    .cases()
                    .into_iter()
                    .for_each(|case| recorder.leave_out_subject(case, monitor.name(), &lack));
                continue;
            }
            let guest = Guest { images: &args.images, format: shape.format, cpus: shape.cpus };
            let launch = monitor.launch(guest, scratch).context("writing a peer's configuration")?;
            runners.push(Runner { monitor: monitor.name(), shape, launch });
        }
    }
    Ok(runners)
}

/// Leaves out what cannot be measured without the kernel's trace events.
fn leave_out_traced(error: &TraceError, args: &Args, recorder: &mut Recorder) {
    for shape in &args.shapes {
        for case in [shape.first_entry, shape.user_exits, shape.kvm_exits] {
            recorder.leave_out(case, &format!("not available: {error}"));
        }
    }
}

/// Says how far it has got.
struct Progress {
    start: Instant,
    rounds: u32,
}

impl Progress {
    fn say(&self, what: &str) {
        // Nobody reads it if it cannot be written.
        let _ = writeln!(io::stderr(), "{:6.0} s  {what}", self.start.elapsed().as_secs_f64());
    }
}

/// What has been measured so far, and with what.
struct Bench {
    trace: Option<KvmTrace>,
    recorder: Recorder,
    counts: Vec<Count>,
}

impl Bench {
    /// Times the boots: every monitor in one shape, then in the next, and the whole again in rotated order. The first
    /// round is a warm-up.
    fn time(&mut self, runners: &[Runner], progress: &Progress) {
        for round in 0..=progress.rounds {
            for group in runners.chunk_by(|one, next| one.shape.name == next.shape.name) {
                let mut order: Vec<&Runner> = group.iter().collect();
                // Nobody always comes after the same one.
                order.rotate_left(round as usize % group.len());
                for runner in order {
                    self.time_one(runner, round > 0);
                }
            }
            progress.say(&format!("round {round} of {}", progress.rounds));
        }
    }

    fn time_one(&mut self, runner: &Runner, is_recorded: bool) {
        let Runner { monitor, shape, launch } = runner;
        if self.recorder.has_failed(shape.init, monitor) {
            return;
        }
        let (boot, first_entry) = timed(self.trace.as_ref(), launch);
        for (case, time) in [(shape.first_entry, first_entry), (shape.init, boot.map(|boot| Some(boot.init)))]
        {
            match time {
                Ok(Some(time)) if is_recorded => {
                    self.recorder.record(case, monitor, &[time.as_secs_f64() * 1e3]);
                }
                Ok(_) => {}
                Err(error) => self.fail(&[case], monitor, &error),
            }
        }
    }

    /// Counts exits, in boots of their own.
    fn count(&mut self, runners: &[Runner], progress: &Progress) {
        let Some(trace) = self.trace.take() else { return };
        for runner in runners {
            let Runner { monitor, shape, launch } = runner;
            let boots: Result<Vec<_>> = if self.recorder.has_failed(shape.init, monitor) {
                Err(anyhow!("not tried, as {} failed", shape.init.name))
            } else {
                (0..COUNTED_BOOTS).map(|_| counted(&trace, launch)).collect()
            };
            match boots {
                Ok(boots) => {
                    for (case, kind) in shape.counted().into_iter().zip([Kind::UserExits, Kind::KvmExits]) {
                        let totals: Vec<_> = boots.iter().map(|boot| boot.total(kind) as f64).collect();
                        self.recorder.record(case, monitor, &totals);
                    }
                    self.counts.extend(merged(&boots, shape.name, monitor, Processor::of_host()));
                }
                Err(error) => self.fail(&shape.counted(), monitor, &error),
            }
            progress.say(&format!("{monitor}, {}: exits counted", shape.name));
        }
    }

    fn fail(&mut self, cases: &[Case], monitor: &str, error: &anyhow::Error) {
        for &case in cases {
            self.recorder.fail(case, monitor, &format!("{error:#}"));
        }
    }
}

/// A boot, and the time from its start to the guest's first entry, if that can be seen at all.
fn timed(trace: Option<&KvmTrace>, launch: &Launch) -> (Result<Boot>, Result<Option<Duration>>) {
    let Some(trace) = trace else {
        return (to_mark(launch).map_err(anyhow::Error::from), Ok(None));
    };
    let watched = trace.watch_first_entry();
    let boot = to_mark(launch);
    let entered = watched.and_then(|()| trace.first_entry());
    let first_entry = match (&boot, entered) {
        (Ok(boot), Ok(entered)) => {
            entered.checked_sub(boot.start).context("the first entry was before the start").map(Some)
        }
        (Err(error), _) => Err(anyhow!("{error}")),
        (_, Err(error)) => Err(error.into()),
    };
    (boot.map_err(anyhow::Error::from), first_entry)
}

fn counted(trace: &KvmTrace, launch: &Launch) -> Result<BootCounts> {
    BootCounts::during(trace, || to_end(launch).map(drop).map_err(anyhow::Error::from))
}
