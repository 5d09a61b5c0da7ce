//! Locked instructions of an exit, counted: the traced program is executed instruction by instruction.
//!
//! Between two markers of a thread the tracer decodes each instruction before it is executed, and takes the addresses
//! of locked ones from the registers. A cache line is shared if both threads lock it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::bench::instruction::{self, Kind, LINE};
use crate::bench::traced_exits::{EXITS, Traced};
use crate::bench::tracee::{ANY, Tracee, TraceeError, system, unexpected, wait};

/// Instructions of a thread between its markers, far more than [`EXITS`] exits take.
const STEP_LIMIT: usize = 1_000_000;

/// Threads of the traced program that are counted.
const THREADS: usize = 2;

/// Why the instructions could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Tracing is not permitted, or the program does something unexpected.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
    /// The program's code cannot be read.
    #[error("the memory of the traced program")]
    Memory(#[source] io::Error),
    /// No marker after the first one.
    #[error("no second marker within {STEP_LIMIT} instructions")]
    Endless,
    /// A locked instruction whose address cannot be formed.
    #[error("the locked instruction at {0:#x} has an address of unknown registers")]
    Address(u64),
    /// Another number of threads than expected had markers.
    #[error("{0} threads had markers instead of {THREADS}")]
    Threads(usize),
}

/// What an exit executes, in instructions; the mean of the exits of both threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts {
    /// Locked ones.
    pub locked: f64,
    /// Of these, on the cache line of the thread's own kick cell.
    pub on_kick_cell: f64,
    /// Of these, at a constant distance from the stack pointer: fences, as compilers make them.
    pub on_stack: f64,
    /// Of these, on a cache line that the other thread locks too.
    pub shared: f64,
    /// Fences.
    pub fences: f64,
    /// All.
    pub all: f64,
}

/// What one thread executed between its markers.
#[derive(Debug, Default)]
struct Thread {
    /// The line of its kick cell.
    kick_cell: u64,
    locked: Vec<Locked>,
    fences: usize,
    all: usize,
}

/// One execution of a locked instruction.
#[derive(Clone, Debug)]
struct Locked {
    lines: RangeInclusive<u64>,
    on_stack: bool,
}

/// Runs `program`, which is the exit benchmark, with the exits of `traced`, and counts.
///
/// # Errors
///
/// Tracing is not permitted, or the program does something unexpected.
pub fn count(program: &Path, traced: Traced) -> Result<Counts, TraceError> {
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    let tracee = Tracee::start(Command::new(program).args(["--traced", traced.name()]), options)?;
    let threads = run(&tracee)?;
    match <[Thread; THREADS]>::try_from(threads) {
        Ok(threads) => Ok(sum_up(&threads)),
        Err(threads) => Err(TraceError::Threads(threads.len())),
    }
}

fn sum_up(threads: &[Thread; THREADS]) -> Counts {
    let [first, second] = threads.each_ref().map(|thread| {
        let lines = thread.locked.iter().flat_map(|locked| locked.lines.clone());
        lines.collect::<HashSet<u64>>()
    });
    let is_shared = |line: u64| first.contains(&line) && second.contains(&line);
    let per_exit = |number: usize| number as f64 / f64::from(EXITS) / THREADS as f64;
    let locked = |which: &dyn Fn(&Thread, &Locked) -> bool| {
        let count = |thread: &Thread| thread.locked.iter().filter(|locked| which(thread, locked)).count();
        per_exit(threads.iter().map(count).sum())
    };
    Counts {
        locked: locked(&|_, _| true),
        on_kick_cell: locked(&|thread, locked| locked.lines.contains(&thread.kick_cell)),
        on_stack: locked(&|_, locked| locked.on_stack),
        shared: locked(&|_, locked| locked.lines.clone().any(is_shared)),
        fences: per_exit(threads.iter().map(|thread| thread.fences).sum()),
        all: per_exit(threads.iter().map(|thread| thread.all).sum()),
    }
}

/// Lets the program run to its end, and follows each thread between its markers.
fn run(tracee: &Tracee) -> Result<Vec<Thread>, TraceError> {
    let mut code = Code::of(tracee.pid())?;
    let mut threads = Vec::new();
    resume(tracee.pid(), None)?;
    loop {
        match wait(ANY)? {
            WaitStatus::Exited(pid, 0) if pid == tracee.pid() => return Ok(threads),
            WaitStatus::Exited(pid, _) if pid != tracee.pid() => {}
            // A new thread begins with a SIGSTOP of its own.
            WaitStatus::PtraceEvent(pid, ..) | WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                resume(pid, None)?;
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                threads.push(follow(pid, &mut code)?);
                resume(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal))?,
            state => return Err(unexpected("markers and an end with 0", state).into()),
        }
    }
}

/// Executes `thread`, which has just met a marker, instruction by instruction up to the next one.
fn follow(thread: Pid, code: &mut Code) -> Result<Thread, TraceError> {
    let registers = || ptrace::getregs(thread).map_err(system("PTRACE_GETREGS"));
    let mut seen = Thread { kick_cell: registers()?.rdi / LINE, ..Thread::default() };
    while seen.all < STEP_LIMIT {
        let registers = registers()?;
        let kind = code.decode(registers.rip)?;
        ptrace::step(thread, None).map_err(system("PTRACE_SINGLESTEP"))?;
        match wait(thread)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            state => return Err(unexpected("one instruction", state).into()),
        }
        match kind {
            Kind::Marker => return Ok(seen),
            Kind::Fence => seen.fences += 1,
            Kind::Locked(access) => {
                let lines = access.lines(&registers).ok_or(TraceError::Address(registers.rip))?;
                seen.locked.push(Locked { lines, on_stack: access.is_on_stack() });
            }
            Kind::Plain => {}
        }
        seen.all += 1;
    }
    Err(TraceError::Endless)
}

/// The code of the traced program, which does not change it.
struct Code {
    memory: File,
    /// What is at the addresses that were executed.
    decoded: HashMap<u64, Kind>,
}

impl Code {
    fn of(program: Pid) -> Result<Self, TraceError> {
        let memory = File::open(format!("/proc/{program}/mem")).map_err(TraceError::Memory)?;
        Ok(Self { memory, decoded: HashMap::new() })
    }

    /// The instruction at `address`.
    fn decode(&mut self, address: u64) -> Result<Kind, TraceError> {
        if let Some(&kind) = self.decoded.get(&address) {
            return Ok(kind);
        }
        let mut code = [0; instruction::LONGEST];
        // Shorter where the mapping ends, and the instruction with it.
        let length = self.memory.read_at(&mut code, address).map_err(TraceError::Memory)?;
        let kind = instruction::classify(code.get(..length).unwrap_or(&code), address);
        self.decoded.insert(address, kind);
        Ok(kind)
    }
}

fn resume(thread: Pid, signal: Option<Signal>) -> Result<(), TraceeError> {
    ptrace::cont(thread, signal).map_err(system("PTRACE_CONT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(lines: RangeInclusive<u64>) -> Locked {
        Locked { lines, on_stack: false }
    }

    /// A thread with its kick cell in line `kick_cell`, and [`EXITS`] turns that lock each of `lines` once.
    fn thread(kick_cell: u64, lines: &[u64]) -> Thread {
        let turns = EXITS as usize;
        let locked = lines.repeat(turns).into_iter().map(|line| locked(line..=line)).collect();
        Thread { kick_cell, locked, fences: turns, all: turns * 50 }
    }

    #[test]
    fn lines_of_one_thread_alone_are_not_shared() {
        let counts = sum_up(&[thread(1, &[1, 10, 10]), thread(2, &[2, 20, 20])]);
        let expected =
            Counts { locked: 3.0, on_kick_cell: 1.0, on_stack: 0.0, shared: 0.0, fences: 1.0, all: 50.0 };
        assert_eq!(counts, expected);
    }

    #[test]
    fn lines_of_both_threads_are_shared_even_the_kick_cell_of_one() {
        let counts = sum_up(&[thread(1, &[1, 7, 7]), thread(2, &[2, 1, 7])]);
        // Of the first thread all three, of the second those on 1 and 7.
        assert_eq!((counts.shared, counts.on_kick_cell), (2.5, 1.0));
    }

    #[test]
    fn an_access_across_lines_is_one_instruction() {
        let mut across = thread(1, &[]);
        across.locked = vec![locked(6..=7); EXITS as usize];
        let counts = sum_up(&[across, thread(2, &[7])]);
        assert_eq!((counts.locked, counts.shared), (1.0, 1.0));
    }

    #[test]
    fn a_fence_on_the_stack_is_told_apart_and_still_locked() {
        let mut fencing = thread(1, &[1]);
        fencing.locked.extend(vec![Locked { lines: 3..=3, on_stack: true }; 2 * EXITS as usize]);
        let counts = sum_up(&[fencing, thread(2, &[])]);
        assert_eq!((counts.locked, counts.on_stack), (1.5, 1.0));
    }
}
