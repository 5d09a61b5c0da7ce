//! The exit benchmark: what each kind of exit costs; prints the report as JSON.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use vmm_core::Kvm;
use vmm_devices::BusDevice;
use vmm_tests::bench::buses::{Buses, RANGES, Status};
use vmm_tests::bench::locked::{self, Counts};
use vmm_tests::bench::raw_exits::{ExitKind, RawLoop, Step};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::scripted_exits::{Nothing, ScriptedLoop};
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::traced_exits::{self, Traced};
use vmm_tests::bench::vmm_exits::VmmLoop;

const VMM: &str = "vmm";

/// The same with more devices on each bus.
const CROWDED: &str = "vmm_64_devices";
const CROWD: u64 = 64;

const STRING_IN_ELEMENT: Case = Case { name: "string_in_element", unit: "ns" };

/// What an exit executes: locked instructions; those of them on the vCPU's own kick cell, on its own stack, and on
/// cache lines that two vCPUs lock; fences; and all.
const INSTRUCTIONS: [Case; 6] = [
    Case { name: "locked", unit: "instructions" },
    Case { name: "locked_kick_cell", unit: "instructions" },
    Case { name: "locked_stack", unit: "instructions" },
    Case { name: "locked_shared", unit: "instructions" },
    Case { name: "fences", unit: "instructions" },
    Case { name: "all", unit: "instructions" },
];

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Exits of each kind in a round
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    exits: u32,
    /// Scripted exits of each kind in a round
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    scripted_exits: u32,
    /// Play this under the tracer that started the program, and measure nothing
    #[arg(long, hide = true, value_enum)]
    traced: Option<Traced>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(traced) = args.traced {
        return traced_exits::play(traced);
    }
    let kvm_cases: Vec<Case> = ExitKind::ALL.into_iter().map(exit).chain([STRING_IN_ELEMENT]).collect();
    let mut recorder = Recorder::new(&kvm_cases, &[BASELINE, VMM, CROWDED])
        .and(&ExitKind::ALL.map(scripted), &[BASELINE, VMM, CROWDED])
        .and(&ExitKind::ALL.map(dispatch), &[VMM, CROWDED])
        .and(&INSTRUCTIONS, &[VMM]);
    match Kvm::open(Path::new("/dev/kvm")) {
        Ok(_) => with_kvm(&args, &mut recorder)?,
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            kvm_cases.iter().for_each(|&case| recorder.leave_out(case, &why));
        }
    }
    without_kvm(&args, &mut recorder)?;
    if let Err(error) = instructions(&mut recorder) {
        // Where tracing is not permitted, the times are still worth showing.
        INSTRUCTIONS.into_iter().for_each(|case| recorder.fail(case, VMM, &format!("{error:#}")));
    }

    let report = recorder.finish("exits", args.rounds, Ratio::Rate)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// Runs the guests under all, side by side, and records what their exits took.
fn with_kvm(args: &Args, recorder: &mut Recorder) -> anyhow::Result<()> {
    let mut machines = Vec::new();
    for kind in ExitKind::ALL {
        let raw = RawLoop::new(kind, &args.guests).context(kind.name())?;
        let vmm = |ranges| VmmLoop::new(kind, &args.guests, ranges).context(kind.name());
        machines.push((kind, raw, vmm(RANGES)?, vmm(CROWD)?));
    }
    // The first round is the warm-up.
    for round in 0..=args.rounds {
        for (kind, raw, vmm, crowded) in &mut machines {
            for subject in order(round) {
                let step = match subject {
                    BASELINE => raw.step(args.exits).context(kind.name())?,
                    VMM => vmm.step(args.exits).with_context(|| format!("{subject}, {}", kind.name()))?,
                    _ => crowded.step(args.exits).with_context(|| format!("{subject}, {}", kind.name()))?,
                };
                if round > 0 {
                    record(recorder, *kind, subject, args.exits, step);
                }
            }
        }
    }
    Ok(())
}

/// None always comes after the others.
fn order(round: u32) -> [&'static str; 3] {
    let mut order = [BASELINE, VMM, CROWDED];
    order.rotate_left((round % 3) as usize);
    order
}

fn record(recorder: &mut Recorder, kind: ExitKind, subject: &str, exits: u32, step: Step) {
    recorder.record(exit(kind), subject, &[nanoseconds(step.elapsed, exits.into())]);
    if kind == ExitKind::StringIn {
        recorder.record(STRING_IN_ELEMENT, subject, &[nanoseconds(step.elapsed, step.elements)]);
    }
}

/// Plays exits to a handler that does nothing and to the buses, and records what they took and the difference.
fn without_kvm(args: &Args, recorder: &mut Recorder) -> anyhow::Result<()> {
    let device: Arc<dyn BusDevice> = Arc::new(Status::default());
    let mut loops = Vec::new();
    for kind in ExitKind::ALL {
        let buses = |ranges| anyhow::Ok(ScriptedLoop::new(kind, Buses::with(ranges, &device)?)?);
        loops.push((kind, ScriptedLoop::new(kind, Nothing)?, buses(RANGES)?, buses(CROWD)?));
    }
    for round in 0..=args.rounds {
        for (kind, raw, vmm, crowded) in &mut loops {
            let exits = args.scripted_exits;
            let [mut floor, mut ours, mut of_many] = [0.0; 3];
            for subject in order(round) {
                let (elapsed, value) = match subject {
                    BASELINE => (raw.step(exits)?, &mut floor),
                    VMM => (vmm.step(exits)?, &mut ours),
                    _ => (crowded.step(exits)?, &mut of_many),
                };
                *value = nanoseconds(elapsed, exits.into());
            }
            if round > 0 {
                recorder.record(scripted(*kind), BASELINE, &[floor]);
                for (subject, value) in [(VMM, ours), (CROWDED, of_many)] {
                    recorder.record(scripted(*kind), subject, &[value]);
                    recorder.record(dispatch(*kind), subject, &[value - floor]);
                }
            }
        }
    }
    Ok(())
}

/// Counts the instructions of each kind of exit, and records one value a kind.
fn instructions(recorder: &mut Recorder) -> anyhow::Result<()> {
    let program = env::current_exe().context("finding this program")?;
    let shared = locked::count(&program, Traced::Control).context("control")?.shared;
    // That nothing is found means something only if what is there is found.
    ensure!(shared == 1.0, "of the control's one locked instruction on a shared line, {shared} were found");
    for traced in Traced::EXITS {
        let counts = locked::count(&program, traced).context(traced.name())?;
        let Counts { locked, on_kick_cell, on_stack, shared, fences, all } = counts;
        let values = [locked, on_kick_cell, on_stack, shared, fences, all];
        for (case, value) in INSTRUCTIONS.into_iter().zip(values) {
            recorder.record(case, VMM, &[value]);
        }
    }
    Ok(())
}

fn nanoseconds(elapsed: Duration, parts: u64) -> f64 {
    elapsed.as_secs_f64() * 1e9 / parts as f64
}

fn exit(kind: ExitKind) -> Case {
    Case { name: kind.name(), unit: "ns" }
}

/// The same without KVM.
fn scripted(kind: ExitKind) -> Case {
    let name = match kind {
        ExitKind::PortWrite => "scripted_port_write",
        ExitKind::PortRead => "scripted_port_read",
        ExitKind::MmioWrite => "scripted_mmio_write",
        ExitKind::MmioRead => "scripted_mmio_read",
        ExitKind::StringIn => "scripted_string_in",
    };
    Case { name, unit: "ns" }
}

/// What of it is not the loop.
fn dispatch(kind: ExitKind) -> Case {
    let name = match kind {
        ExitKind::PortWrite => "dispatch_port_write",
        ExitKind::PortRead => "dispatch_port_read",
        ExitKind::MmioWrite => "dispatch_mmio_write",
        ExitKind::MmioRead => "dispatch_mmio_read",
        ExitKind::StringIn => "dispatch_string_in",
    };
    Case { name, unit: "ns" }
}
