//! The system calls of a kick, counted: the traced program stops at each of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::bench::report::Count;
use crate::bench::traced_kicks::{OUTCOMES, START};
use crate::bench::tracee::{Tracee, TraceeError, system, unexpected, wait};

/// The case of the report under which the counts stand.
const CASE: &str = "system calls of a kick";

/// The calls that are counted by name.
const CALLS: [(i64, &str); 3] =
    [(libc::SYS_tgkill, "tgkill"), (libc::SYS_futex, "futex"), (libc::SYS_getpid, "getpid")];

/// The system calls of one kick, by name, and what it came to.
#[derive(Debug, PartialEq, Eq)]
struct Kick {
    outcome: &'static str,
    calls: Vec<&'static str>,
}

/// Runs `program`, which is the kick benchmark, with the kicks of `subject`, and counts the system calls of each kick.
///
/// # Errors
///
/// Tracing is not permitted, or the program does something unexpected.
pub fn count(program: &Path, guests: &Path, subject: &str) -> Result<Vec<Count>, TraceeError> {
    let mut command = Command::new(program);
    command.arg("--guests").arg(guests).args(["--traced", subject]);
    // The threads of vCPUs are not traced.
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    let tracee = Tracee::start(&mut command, options)?;
    Ok(sum_up(&run(tracee.pid())?, subject))
}

/// Lets the program run to its end, and follows it through its kicks.
fn run(program: Pid) -> Result<Vec<Kick>, TraceeError> {
    let mut kicks = Vec::new();
    let mut signal = None;
    loop {
        ptrace::cont(program, signal.take()).map_err(system("PTRACE_CONT"))?;
        match wait(program)? {
            WaitStatus::Exited(_, 0) => return Ok(kicks),
            WaitStatus::Stopped(_, Signal::SIGTRAP) => kicks.push(follow(program)?),
            WaitStatus::Stopped(_, other) => signal = Some(other),
            state => return Err(unexpected("markers and an end with 0", state)),
        }
    }
}

/// Notes the system calls from one marker to the next.
fn follow(program: Pid) -> Result<Kick, TraceeError> {
    let registers = || ptrace::getregs(program).map_err(system("PTRACE_GETREGS"));
    let state = WaitStatus::Stopped(program, Signal::SIGTRAP);
    if registers()?.rdi != START as u64 {
        return Err(unexpected("a first marker", state));
    }
    let mut calls = Vec::new();
    let mut is_inside = false;
    loop {
        ptrace::syscall(program, None).map_err(system("PTRACE_SYSCALL"))?;
        match wait(program)? {
            WaitStatus::PtraceSyscall(_) => {
                is_inside = !is_inside;
                if is_inside {
                    calls.push(name(registers()?.orig_rax.cast_signed()));
                }
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
            state => return Err(unexpected("system calls and a marker", state)),
        }
    }
    let marked = registers()?.rdi;
    let mut known = OUTCOMES.iter().filter(|(mark, _)| *mark as u64 == marked);
    let (_, outcome) = known.next().ok_or_else(|| unexpected("a second marker", state))?;
    Ok(Kick { outcome, calls })
}

fn name(number: i64) -> &'static str {
    CALLS.iter().find(|(known, _)| *known == number).map_or("other", |(_, name)| name)
}

/// For each outcome, how many kicks came to it, and how many calls of each name and in all one of them made.
fn sum_up(kicks: &[Kick], subject: &str) -> Vec<Count> {
    let mut counts = Vec::new();
    for (_, outcome) in OUTCOMES {
        let same: Vec<&Kick> = kicks.iter().filter(|kick| kick.outcome == outcome).collect();
        if same.is_empty() {
            continue;
        }
        let mut count = |name: &str, values| {
            let (case, subject) = (CASE.to_owned(), subject.to_owned());
            counts.push(Count { case, subject, kind: outcome.to_owned(), name: name.to_owned(), values });
        };
        count("kicks", vec![same.len() as u64]);
        for (_, name) in CALLS {
            count(name, numbers(&same, |call| call == name));
        }
        count("all", numbers(&same, |_| true));
    }
    counts
}

/// How many of the `wanted` calls a kick made: each number that there was.
fn numbers(kicks: &[&Kick], wanted: impl Fn(&str) -> bool) -> Vec<u64> {
    let of = |kick: &&Kick| kick.calls.iter().filter(|call| wanted(call)).count() as u64;
    let numbers: BTreeSet<u64> = kicks.iter().map(of).collect();
    numbers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(counts: &[Count], kind: &str, name: &str) -> Option<Vec<u64>> {
        let mut found = counts.iter().filter(|count| count.kind == kind && count.name == name);
        found.next().map(|count| count.values.clone())
    }

    #[test]
    fn calls_are_counted_by_kick_and_a_kick_that_differs_is_seen() {
        let kick = |outcome, calls: &[&'static str]| Kick { outcome, calls: calls.to_vec() };
        let kicks = [
            kick("signalled", &["tgkill"]),
            kick("signalled", &["getpid", "tgkill"]),
            kick("signalled", &["tgkill"]),
            kick("elided", &[]),
        ];
        let counts = sum_up(&kicks, "vmm");
        assert_eq!(values(&counts, "signalled", "kicks"), Some(vec![3]));
        assert_eq!(values(&counts, "signalled", "tgkill"), Some(vec![1]));
        assert_eq!(values(&counts, "signalled", "getpid"), Some(vec![0, 1]));
        assert_eq!(values(&counts, "signalled", "all"), Some(vec![1, 2]));
        assert_eq!(values(&counts, "elided", "all"), Some(vec![0]));
        assert_eq!(values(&counts, "woken", "kicks"), None);
    }

    #[test]
    fn a_call_without_a_name_is_another() {
        assert_eq!((name(libc::SYS_tgkill), name(libc::SYS_read)), ("tgkill", "other"));
    }
}
