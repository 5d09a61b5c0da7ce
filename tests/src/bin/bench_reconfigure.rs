//! The reconfigure benchmark: what an exit costs while another thread changes the bus as fast as it can; prints the report
//! as JSON.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use vmm_tests::bench::buses::{Buses, RANGES, Status};
use vmm_tests::bench::cpus;
use vmm_tests::bench::raw_exits::{ExitKind, RawLoop, Step};
use vmm_tests::bench::report::{Count, Ratio};
use vmm_tests::bench::series::{BASELINE, Case, Recorder};
use vmm_tests::bench::vmm_exits::VmmLoop;

/// While the bus changes, and while it does not.
const VMM: &str = "vmm";
const STILL: &str = "still";

const KINDS: [ExitKind; 4] =
    [ExitKind::PortWrite, ExitKind::PortRead, ExitKind::MmioWrite, ExitKind::MmioRead];

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Exits of each kind in a round
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    exits: u32,
}

fn case(kind: ExitKind) -> Case {
    Case { name: kind.name(), unit: "ns" }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut recorder = Recorder::new(&KINDS.map(case), &[STILL, VMM, BASELINE]).against(STILL);
    let mut counts = Vec::new();
    // On one CPU, what is measured is how often the one thread takes it away from the other.
    let (own, other) = match cpus::allowed()?[..] {
        [own, other, ..] => (Some(own), Some(other)),
        _ => (None, None),
    };
    for kind in KINDS {
        let measuring = || {
            own.map_or(Ok(()), cpus::stay_on)?;
            measure(&args, kind, other, &mut recorder)
        };
        // On a thread of its own, so that this process keeps its CPUs.
        let changes = thread::scope(|scope| scope.spawn(measuring).join());
        let changes = changes.map_err(|_| anyhow!("the vCPU's thread panicked"))?.context(kind.name())?;
        counts.push(Count {
            case: kind.name().to_owned(),
            subject: VMM.to_owned(),
            kind: "changes".to_owned(),
            name: "in the time of the exits, the median".to_owned(),
            values: median(changes).into_iter().collect(),
        });
    }
    let mut report = recorder.finish("reconfigure", args.rounds, Ratio::Rate)?;
    report.counts = counts;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// Runs one guest, with the bus changing, on the CPU `other`, in one step of three; returns how many changes were made in
/// each.
fn measure(args: &Args, kind: ExitKind, other: Option<usize>, recorder: &mut Recorder) -> Result<Vec<u64>> {
    let mut changes = Vec::new();
    let mut raw = RawLoop::new(kind, &args.guests)?;
    let mut vmm = VmmLoop::new(kind, &args.guests, RANGES)?;
    for round in 0..=args.rounds {
        // Neither always comes after the other.
        let order = if round % 2 == 0 { [STILL, VMM, BASELINE] } else { [BASELINE, VMM, STILL] };
        for subject in order {
            let time = match subject {
                STILL => cpu_time(|| vmm.step(args.exits))?,
                VMM => {
                    let changer = Changer::start(vmm.buses(), kind, other);
                    let time = cpu_time(|| vmm.step(args.exits))?;
                    let made = changer.stop()?;
                    if round > 0 {
                        changes.push(made);
                    }
                    time
                }
                _ => cpu_time(|| Ok(raw.step(args.exits)?))?,
            };
            if round > 0 {
                let value = time.as_secs_f64() * 1e9 / f64::from(args.exits);
                recorder.record(case(kind), subject, &[value]);
            }
        }
    }
    Ok(changes)
}

/// What `work` costs this thread in time on a CPU.
fn cpu_time(work: impl FnOnce() -> Result<Step>) -> Result<Duration> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let start = now()?;
    work()?;
    Ok(now()?.saturating_sub(start))
}

/// A thread that inserts a range, removes it and waits, again and again.
struct Changer {
    is_over: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Changer {
    /// When it returns, the first changes are made, or none can be.
    fn start(buses: Arc<Buses>, kind: ExitKind, cpu: Option<usize>) -> Self {
        let (is_over, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (is_over, changes) = (Arc::clone(&is_over), Arc::clone(&changes));
            move || {
                cpu.map_or(Ok(()), cpus::stay_on)?;
                let (bus, place) = buses.free_place(kind);
                while !is_over.load(Ordering::Relaxed) {
                    bus.insert(place, 1, "changing", Arc::new(Status::default()))?;
                    bus.remove(place)?.wait()?;
                    changes.fetch_add(2, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        while changes.load(Ordering::Relaxed) == 0 && !thread.is_finished() {
            thread::yield_now();
        }
        Self { is_over, changes, thread }
    }

    /// Ends it; returns how many changes it had made.
    fn stop(self) -> Result<u64> {
        let made = self.changes.load(Ordering::Relaxed);
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the changes panicked"))??;
        Ok(made)
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
