//! The dispatch benchmark: what it takes from a decoded exit to its device, for the bus, for what others do, and for the
//! cells that a bus can be published in; prints the report as JSON.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use nix::errno::Errno;
use vmm_core::Published;
use vmm_tests::bench::cells::{Cached, Fenced};
use vmm_tests::bench::dispatch::{
    Dispatch, GlobalMutex, Plain, Pointer, RwLockAndMutex, address, bus, one_thread, two_threads,
};
use vmm_tests::bench::report::Ratio;
use vmm_tests::bench::series::{BASELINE, Case, Recorder};

const VMM: &str = "vmm";

/// What an access is dispatched by.
const WAYS: [&str; 4] = [BASELINE, VMM, "rwlock+mutex", "mutex"];

/// What a table can be published in.
const CELLS: [&str; 7] = [BASELINE, "published", "fenced", "arc-swap", "cached", "rwlock", "mutex"];

const ONE_THREAD: [(u64, Case); 3] = [(1, case("one_1")), (16, case("one_16")), (256, case("one_256"))];

/// With two devices far apart, or one for both.
const TWO_THREADS: [(u64, [u64; 2], Case); 5] = [
    (1, [0, 0], case("two_same_1")),
    (16, [3, 3], case("two_same_16")),
    (16, [3, 11], case("two_different_16")),
    (256, [40, 40], case("two_same_256")),
    (256, [40, 200], case("two_different_256")),
];

const CELLS_ONE_THREAD: [(u64, Case); 2] = [(1, case("cell_one_1")), (16, case("cell_one_16"))];
const CELLS_TWO_THREADS: Case = case("cell_two_16");

const fn case(name: &'static str) -> Case {
    Case { name, unit: "ns" }
}

#[derive(Debug, Parser)]
struct Args {
    /// Not needed: every benchmark is told where the guest programs are
    #[arg(long, hide = true)]
    guests: Option<PathBuf>,
    /// Rounds, not counting the warm-up
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Accesses of each thread in a round
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    accesses: u32,
}

/// Where the threads are, and what they access.
enum Place {
    One(u64),
    Two([u64; 2]),
}

/// Something that is measured again and again.
struct Subject<'a> {
    case: Case,
    name: &'static str,
    place: Place,
    dispatch: Box<dyn Run + 'a>,
}

/// A way that is compiled into the loop around it.
trait Run {
    fn run(&self, place: &Place, accesses: u32) -> Result<Duration, Errno>;
}

impl<D: Dispatch> Run for D {
    fn run(&self, place: &Place, accesses: u32) -> Result<Duration, Errno> {
        match *place {
            Place::One(index) => Ok(one_thread(self, address(index), accesses)),
            Place::Two(indices) => two_threads(self, indices.map(address), accesses),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let one = ONE_THREAD.map(|(_, case)| case);
    let two = TWO_THREADS.map(|(_, _, case)| case);
    let one_cell = CELLS_ONE_THREAD.map(|(_, case)| case);
    let recorder = Recorder::new(&one, &WAYS).and(&two, &WAYS);
    let mut recorder = recorder.and(&one_cell, &CELLS).and(&[CELLS_TWO_THREADS], &CELLS);
    let tables: Vec<Plain> = [1, 16, 256].map(Plain::new).into();
    let table = |count| &tables[[1, 16, 256].iter().position(|known| *known == count).unwrap_or(0)];
    let mut subjects = Vec::new();
    for (count, case) in ONE_THREAD {
        let ways = ways(count, table(count))?;
        subjects.extend(ways.map(|(name, dispatch)| Subject {
            case,
            name,
            place: Place::One(count / 2),
            dispatch,
        }));
    }
    for (count, indices, case) in TWO_THREADS {
        let ways = ways(count, table(count))?;
        subjects.extend(ways.map(|(name, dispatch)| Subject {
            case,
            name,
            place: Place::Two(indices),
            dispatch,
        }));
    }
    for (count, case) in CELLS_ONE_THREAD {
        for (name, dispatch) in cells(count, table(count)) {
            subjects.push(Subject { case, name, place: Place::One(count / 2), dispatch });
        }
    }
    for (name, dispatch) in cells(16, table(16)) {
        subjects.push(Subject { case: CELLS_TWO_THREADS, name, place: Place::Two([3, 11]), dispatch });
    }
    // The first round is the warm-up; neither end of the list always comes first.
    for round in 0..=args.rounds {
        let order: Vec<usize> = match round % 2 {
            0 => (0..subjects.len()).collect(),
            _ => (0..subjects.len()).rev().collect(),
        };
        for subject in order.into_iter().map(|index| &subjects[index]) {
            match subject.dispatch.run(&subject.place, args.accesses) {
                Ok(elapsed) if round > 0 => {
                    let value = elapsed.as_secs_f64() * 1e9 / f64::from(args.accesses);
                    recorder.record(subject.case, subject.name, &[value]);
                }
                Ok(_) => {}
                Err(error) => recorder.leave_out(subject.case, &format!("two CPUs: {error}")),
            }
        }
    }
    let report = recorder.finish("dispatch", args.rounds, Ratio::Cost)?;
    serde_json::to_writer_pretty(io::stdout().lock(), &report)?;
    Ok(())
}

/// The ways to the devices of `count` ranges.
fn ways<'a>(
    count: u64,
    table: &'a Plain,
) -> anyhow::Result<impl Iterator<Item = (&'static str, Box<dyn Run + 'a>)>> {
    let ways: [Box<dyn Run + 'a>; 4] = [
        Box::new(Pointer(table)),
        Box::new(bus(count)?),
        Box::new(RwLockAndMutex::new(count)),
        Box::new(GlobalMutex::new(count)),
    ];
    Ok(WAYS.into_iter().zip(ways))
}

/// The cells, each with `count` ranges in it.
fn cells<'a>(count: u64, table: &'a Plain) -> impl Iterator<Item = (&'static str, Box<dyn Run + 'a>)> {
    let new = || Plain::new(count);
    let cells: [Box<dyn Run + 'a>; 7] = [
        Box::new(Pointer(table)),
        Box::new(Published::new(new())),
        Box::new(Fenced::new(new())),
        Box::new(ArcSwap::from_pointee(new())),
        Box::new(Cached::new(new())),
        Box::new(RwLock::new(new())),
        Box::new(Mutex::new(new())),
    ];
    CELLS.into_iter().zip(cells)
}
