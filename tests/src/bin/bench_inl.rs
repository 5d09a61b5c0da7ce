//! The benchmark of the experiment that led to `immediate_exit`: what a port read costs that user space serves, with either
//! mechanism, beside threads that change their signal masks; prints the report as JSON.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use vmm_tests::bench::report::{Host, Ratio};
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::bench::stats::paired_ratio;
use vmm_tests::bench::vcpu_set::{Guest, SUBJECTS, Setup, VMM, VMM_MASK, Working, missing};

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds for which the vCPUs of each case run in a round, times the number of vCPUs that share a CPU
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    window: u64,
    /// The numbers of vCPUs
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,14", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Vec<u32>,
}

/// Something that is measured.
#[derive(Clone, Copy)]
struct Reads {
    case: Case,
    vcpus: u32,
    /// Beside a thread on each CPU that changes its signal mask in a loop.
    beside: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let all = all(&args.vcpus);
    let cases: Vec<Case> = all.iter().map(|reads| reads.case).collect();
    let mut recorder = Recorder::new(&cases, &SUBJECTS);
    let mut notes = Vec::new();
    if let Some(why) = missing() {
        cases.iter().for_each(|&case| recorder.leave_out(case, &why));
    } else {
        for reads in &all {
            writeln!(io::stderr(), "{}", reads.case.name)?;
            let values = measure(reads, &args).with_context(|| reads.case.name)?;
            for (subject, values) in SUBJECTS.into_iter().zip(&values) {
                values.iter().for_each(|&value| recorder.record(reads.case, subject, &[value]));
            }
            notes.extend(difference(reads.case, &values));
        }
    }
    let mut report = recorder.finish("inl", args.rounds, Ratio::Cost)?;
    report.notes = notes;
    report.notes.extend(history(&report.host));
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn all(vcpus: &[u32]) -> Vec<Reads> {
    let mut all = Vec::new();
    for beside in [false, true] {
        for &vcpus in vcpus {
            let name = format!("inl_{vcpus}{}", if beside { "_beside_masks" } else { "" });
            // The names of the cases are as many as the program's arguments say, and live as long.
            all.push(Reads { case: Case { name: name.leak(), unit: "ns" }, vcpus, beside });
        }
    }
    all
}

/// A value of each round, for each subject.
type Values = [Vec<f64>; SUBJECTS.len()];

/// Measures one case.
fn measure(reads: &Reads, args: &Args) -> anyhow::Result<Values> {
    let setup = Setup { guests: &args.guests, guest: Guest::Exiting, cpus: reads.vcpus };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let window = Duration::from_millis(args.window) * reads.vcpus.div_ceil(cpus as u32);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let changers: Vec<_> =
            (0..if reads.beside { cpus } else { 0 }).map(|_| scope.spawn(|| change_masks(&over))).collect();
        let mut values = Values::default();
        // The first round is the warm-up.
        let measured = (0..=args.rounds as usize).try_for_each(|round| {
            let measured = measure_round(setup, window, round)?;
            for (values, value) in values.iter_mut().zip(measured).filter(|_| round > 0) {
                values.push(value);
            }
            anyhow::Ok(())
        });
        over.store(true, Ordering::Relaxed);
        for changer in changers {
            changer.join().map_err(|_| anyhow!("a thread that changes its mask panicked"))??;
        }
        measured.map(|()| values)
    })
}

/// Makes new machines: where the host's scheduler keeps a thread is luck that lasts as long as the thread.
fn measure_round(setup: Setup<'_>, window: Duration, round: usize) -> anyhow::Result<[f64; SUBJECTS.len()]> {
    let sets = SUBJECTS.map(|subject| setup.working(subject));
    let sets = sets.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut values = [0.0; SUBJECTS.len()];
    for position in 0..SUBJECTS.len() {
        // Nobody always comes after the same one.
        let subject = (position + round) % SUBJECTS.len();
        run(&*sets[subject], setup.settling_time())?;
        values[subject] = nanoseconds(&*sets[subject], window)?;
    }
    Ok(values)
}

/// Takes the lock that all threads of a process share, again and again.
fn change_masks(over: &AtomicBool) -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR2);
    while !over.load(Ordering::Relaxed) {
        set.thread_block()?;
        set.thread_unblock()?;
    }
    Ok(())
}

/// Lets the vCPUs of `set` run for a while; gives the CPU time of an exit.
fn nanoseconds(set: &dyn Working, window: Duration) -> anyhow::Result<f64> {
    let before = set.work()?;
    run(set, window)?;
    let after = set.work()?;
    let exits = after.exits - before.exits;
    ensure!(exits > 0, "no exit in {window:?}");
    Ok((after.cpu_time - before.cpu_time).as_secs_f64() * 1e9 / exits as f64)
}

fn run(set: &dyn Working, window: Duration) -> anyhow::Result<()> {
    set.resume();
    thread::sleep(window);
    set.pause()
}

/// What `KVM_SET_SIGNAL_MASK` costs more than `immediate_exit`: the median of the ratios within each round.
fn difference(case: Case, values: &Values) -> Option<String> {
    let of = |wanted| Some(&values[SUBJECTS.iter().position(|subject| *subject == wanted)?]);
    let more = (paired_ratio(of(VMM_MASK)?, of(VMM)?)? - 1.0) * 100.0;
    Some(format!("{}: KVM_SET_SIGNAL_MASK costs {more:+.1} %", case.name))
}

/// What was measured when `immediate_exit` was made, and what is different here.
fn history(host: &Host) -> [String; 2] {
    [
        "in 2017, on a guest of 14 vCPUs: 30,000 cycles with KVM_SET_SIGNAL_MASK, 6,000 with immediate_exit (+400 %)"
            .to_owned(),
        format!(
            "what differs: {} CPUs, so no more vCPUs than that meet at the lock, which is on no other NUMA node; {}, \
             whose exits have a cost of their own",
            host.cpus, host.kvm
        ),
    ]
}
