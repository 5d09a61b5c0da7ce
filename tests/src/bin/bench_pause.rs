//! The pause benchmark: how long it takes until all vCPUs of a machine are out of the guest, with either mechanism beside
//! the raw baseline; prints the report as JSON.

use std::hint;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::bench::vcpu_set::{Guest, SUBJECTS, Setup, Working, missing};

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up; with 32 vCPUs and more, a fifth of them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Pauses of each case in a round
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pauses: u32,
    /// The numbers of vCPUs
    #[arg(long, value_delimiter = ',', default_value = "1,2,8,14,64", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Vec<u32>,
}

/// Something that is measured.
#[derive(Clone, Copy)]
struct Pauses {
    pause: Case,
    resume: Case,
    vcpus: u32,
    /// Beside a thread on each CPU that never sleeps.
    loaded: bool,
}

impl Pauses {
    /// How many of `rounds` there are: fewer where a round takes minutes, because so many threads that wake up take the CPU
    /// from the one that measures.
    fn rounds(&self, rounds: u32) -> u32 {
        const MANY: u32 = 32;
        if self.vcpus < MANY { rounds } else { rounds.div_ceil(5) }
    }
}

/// What one pause and the resume after it took.
#[derive(Clone, Copy)]
struct Pause {
    pause: Duration,
    resume: Duration,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let all = all(&args.vcpus);
    let cases: Vec<Case> = all.iter().flat_map(|pauses| [pauses.pause, pauses.resume]).collect();
    let mut recorder = Recorder::new(&cases, &SUBJECTS);
    if let Some(why) = missing() {
        cases.iter().for_each(|&case| recorder.leave_out(case, &why));
    } else {
        for pauses in &all {
            writeln!(io::stderr(), "{}", pauses.pause.name)?;
            measure(pauses, &args, &mut recorder).with_context(|| pauses.pause.name)?;
        }
    }
    let report = recorder.finish("pause", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

fn all(vcpus: &[u32]) -> Vec<Pauses> {
    let mut all = Vec::new();
    for loaded in [false, true] {
        for &vcpus in vcpus {
            let case = |what| {
                let name = format!("{what}_{vcpus}{}", if loaded { "_loaded" } else { "" });
                // The names of the cases are as many as the program's arguments say, and live as long.
                Case { name: name.leak(), unit: "us" }
            };
            all.push(Pauses { pause: case("pause"), resume: case("resume"), vcpus, loaded });
        }
    }
    all
}

/// Measures one case, and records the values of each round.
fn measure(pauses: &Pauses, args: &Args, recorder: &mut Recorder) -> anyhow::Result<()> {
    let setup = Setup { guests: &args.guests, guest: Guest::Spinning, cpus: pauses.vcpus };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..if pauses.loaded { cpus } else { 0 } {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let measured = (0..=pauses.rounds(args.rounds)).try_for_each(|round| {
            let values = measure_round(setup, args.pauses as usize)?;
            // The first round is the warm-up.
            for (subject, values) in SUBJECTS.into_iter().zip(&values).filter(|_| round > 0) {
                let us = |of: fn(&Pause) -> Duration| -> Vec<f64> {
                    values.iter().map(|value| of(value).as_secs_f64() * 1e6).collect()
                };
                recorder.record(pauses.pause, subject, &us(|value| value.pause));
                recorder.record(pauses.resume, subject, &us(|value| value.resume));
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        measured
    })
}

/// Makes new machines: where the host's scheduler keeps a thread is luck that lasts as long as the thread.
fn measure_round(setup: Setup<'_>, pauses: usize) -> anyhow::Result<[Vec<Pause>; SUBJECTS.len()]> {
    let sets = SUBJECTS.map(|subject| setup.working(subject));
    let sets = sets.into_iter().collect::<Result<Vec<_>, _>>()?;
    let running = setup.settling_time();
    let mut values = [const { Vec::new() }; SUBJECTS.len()];
    for turn in 0..pauses {
        for position in 0..SUBJECTS.len() {
            // Nobody always comes after the same one.
            let subject = (position + turn) % SUBJECTS.len();
            values[subject].push(pause(&*sets[subject], running)?);
        }
    }
    Ok(values)
}

/// Lets the vCPUs of `set` run for a while, and takes them out of the guest.
fn pause(set: &dyn Working, running: Duration) -> anyhow::Result<Pause> {
    let start = Instant::now();
    set.resume();
    let resume = start.elapsed();
    thread::sleep(running);
    let start = Instant::now();
    set.pause()?;
    Ok(Pause { pause: start.elapsed(), resume })
}
