//! The kick benchmark: from a request to the vCPU's thread that sees it, with either mechanism beside the raw baseline;
//! prints the report as JSON.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Parser;
use vmm_tests::bench::kick_calls;
use vmm_tests::bench::mailbox::Kicker;
use vmm_tests::bench::report::{Count, Ratio, Report};
use vmm_tests::bench::series::{Case, Recorder};
use vmm_tests::bench::thread_calls::become_idle;
use vmm_tests::bench::traced_kicks;
use vmm_tests::bench::vcpu_set::{Guest, Kickable, SUBJECTS, Setup, missing};

/// Before each kick.
const GAP: Duration = Duration::from_micros(100);

#[derive(Debug, Parser)]
struct Args {
    /// The directory of the assembled guest programs
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Kicks of each case in a round
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    kicks: u32,
    /// The numbers of vCPUs
    #[arg(long, value_delimiter = ',', default_value = "1,2,14", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Vec<u32>,
    /// Kick a vCPU of this subject under the tracer that started the program, and measure nothing
    #[arg(long, hide = true)]
    traced: Option<String>,
}

/// Something that is measured.
#[derive(Clone, Copy)]
struct Kicks {
    case: Case,
    guest: Guest,
    vcpus: u32,
    /// Beside a kicker of `SCHED_IDLE`.
    beside: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(subject) = &args.traced {
        let setup = Setup { guests: &args.guests, guest: Guest::Spinning, cpus: 1 };
        return traced_kicks::play(setup, subject);
    }
    let all = all(&args.vcpus);
    let cases: Vec<Case> = all.iter().map(|kicks| kicks.case).collect();
    let mut recorder = Recorder::new(&cases, &SUBJECTS);
    let mut counts = Vec::new();
    if let Some(why) = missing() {
        cases.iter().for_each(|&case| recorder.leave_out(case, &why));
    } else {
        for kicks in &all {
            writeln!(io::stderr(), "{}", kicks.case.name)?;
            counts.extend(measure(kicks, &args, &mut recorder).with_context(|| kicks.case.name)?);
        }
    }
    let mut report = recorder.finish("kick", args.rounds, Ratio::Cost)?;
    report.counts = counts;
    if missing().is_none() {
        count_calls(&args, &mut report)?;
    }
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// Adds the system calls of a kick to `report`. Where tracing is not permitted, the times are still worth showing.
fn count_calls(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let program = env::current_exe().context("finding this program")?;
    for subject in SUBJECTS {
        match kick_calls::count(&program, &args.guests, subject) {
            Ok(counts) => report.counts.extend(counts),
            Err(error) => {
                let error = anyhow::Error::from(error);
                report.notes.push(format!("{subject}: the system calls are not counted: {error:#}"));
            }
        }
    }
    Ok(())
}

fn all(vcpus: &[u32]) -> Vec<Kicks> {
    let mut all = Vec::new();
    for beside in [false, true] {
        for guest in Guest::ALL {
            for &vcpus in vcpus {
                let name = format!("{}_{vcpus}{}", guest.name(), if beside { "_beside_idle" } else { "" });
                // The names of the cases are as many as the program's arguments say, and live as long.
                all.push(Kicks { case: Case { name: name.leak(), unit: "us" }, guest, vcpus, beside });
            }
        }
    }
    all
}

/// Measures one case, and records the values of each round; gives how often it was kicked from beside.
fn measure(kicks: &Kicks, args: &Args, recorder: &mut Recorder) -> anyhow::Result<Vec<Count>> {
    let mut beside = [0; SUBJECTS.len()];
    // The first round is the warm-up.
    for round in 0..=args.rounds {
        let (values, more) = measure_round(kicks, args, round as usize)?;
        for (subject, values) in SUBJECTS.into_iter().zip(&values).filter(|_| round > 0) {
            recorder.record(kicks.case, subject, values);
        }
        beside.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    let count = |(subject, kicks_beside): (&str, u64)| Count {
        case: kicks.case.name.to_owned(),
        subject: subject.to_owned(),
        kind: "beside".to_owned(),
        name: "kicks".to_owned(),
        values: vec![kicks_beside],
    };
    Ok(SUBJECTS.into_iter().zip(beside).map(count).filter(|_| kicks.beside).collect())
}

/// The microseconds of each kick in a round, for each subject.
type Values = [Vec<f64>; SUBJECTS.len()];

/// How often each subject was kicked from beside.
type Beside = [u64; SUBJECTS.len()];

/// Makes new machines: where the host's scheduler keeps a thread is luck that lasts as long as the thread.
fn measure_round(kicks: &Kicks, args: &Args, round: usize) -> anyhow::Result<(Values, Beside)> {
    let setup = Setup { guests: &args.guests, guest: kicks.guest, cpus: kicks.vcpus };
    let sets = SUBJECTS.map(|subject| setup.kickable(subject));
    let sets = sets.into_iter().collect::<Result<Vec<_>, _>>()?;
    if !kicks.beside {
        return Ok((take_turns(&sets, args.kicks as usize, setup, round, |_| {})?, Beside::default()));
    }
    // For each kick that is measured there is at most one from beside, whoever is measured: a kicker that goes as fast as it
    // can would be faster with one subject than with another, and delay its vCPUs more.
    let (wanted, wants) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let idle = scope.spawn(|| kick_from_beside(&sets, wants));
        // Nothing, if the kicker is still with the last one.
        let also = |target| {
            let _ = wanted.try_send(target);
        };
        let values = take_turns(&sets, args.kicks as usize, setup, round, also);
        drop(wanted);
        release(&idle, &sets, setup.settling_time())?;
        let beside = idle.join().map_err(|_| anyhow!("the idle kicker panicked"))??;
        Ok((values?, beside))
    })
}

/// What is kicked: the index of a subject and of its vCPU.
type Kicked = (usize, usize);

/// In its turn, each vCPU of a subject is kicked once; a moment before it, `also` hears of it.
fn take_turns(
    sets: &[Box<dyn Kickable>],
    kicks: usize,
    setup: Setup<'_>,
    round: usize,
    also: impl Fn(Kicked),
) -> anyhow::Result<Values> {
    let (vcpus, settling) = (setup.cpus as usize, setup.settling_time());
    let mut values = Values::default();
    for (turn, first) in (0..kicks).step_by(vcpus).enumerate() {
        for position in 0..sets.len() {
            // Nobody always comes after the same one.
            let subject = (position + turn + round) % sets.len();
            let set = &sets[subject];
            set.resume();
            thread::sleep(settling);
            for vcpu in 0..vcpus.min(kicks - first) {
                also((subject, vcpu));
                thread::sleep(GAP);
                let seen = set.kick(vcpu, Kicker::Measured)?;
                values[subject].push(seen.as_secs_f64() * 1e6);
            }
            set.pause()?;
        }
    }
    Ok(values)
}

/// Kicks what is wanted from where nobody else wants to run, so that it is often interrupted in the middle of a kick.
fn kick_from_beside(sets: &[Box<dyn Kickable>], wants: mpsc::Receiver<Kicked>) -> anyhow::Result<Beside> {
    become_idle().context("SCHED_IDLE")?;
    let mut kicks = Beside::default();
    for (subject, vcpu) in wants {
        sets[subject].kick(vcpu, Kicker::Beside)?;
        kicks[subject] += 1;
    }
    Ok(kicks)
}

/// Lets the kicker from beside come to its end. It may wait for a vCPU of any subject, which sees a kick only when it runs,
/// and for a CPU, which it gets only when vCPUs that spin do not run.
fn release<T>(
    idle: &ScopedJoinHandle<'_, T>,
    sets: &[Box<dyn Kickable>],
    settling: Duration,
) -> anyhow::Result<()> {
    while !idle.is_finished() {
        for set in sets {
            set.resume();
            thread::sleep(settling);
            set.pause()?;
        }
        thread::sleep(settling);
    }
    Ok(())
}
