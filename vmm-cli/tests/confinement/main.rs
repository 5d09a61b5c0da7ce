//! Threads of each kind under the kernel's own filters: what they may not ask for ends the process, and a panic is told.
//!
//! Each trial is a process of its own, this program again, in which one thread of one kind does one thing.

mod escapes;

use std::ffi::OsString;
use std::process::{Command, ExitCode, Output};

use libc::{c_long, c_ulong};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vmm_cli::config::{Seccomp, VmConfig};
use vmm_cli::{confinement, run};
use vmm_core::thread::{Condition, Kind, spawn};

use escapes::{ESCAPES, Escape};

/// What the child process is to do: the kind, the mode, and what its thread does.
const TASK: &str = "VMM_CONFINEMENT_TASK";

/// What a thread does that makes the call of a rule with a condition broken: before the numbers of the two.
const BROKEN: &str = "rule:";

/// Exit codes of docs/exit-codes.md.
const INTERNAL: i32 = 1;
const VIOLATION: i32 = 5;

fn main() -> ExitCode {
    if let Some(task) = std::env::var_os(TASK) {
        return child(&task);
    }
    let kinds = confinement::kinds();
    let mut trials = Vec::new();
    for (at, kind) in kinds.iter().enumerate() {
        // The vCPU of a probe is called as that of a machine.
        let name = format!("{}_{at}", kind.name);
        for escape in ESCAPES.iter().filter(|escape| escape.but_of != Some(kind.name)) {
            let test = move || is_refused(at, kind, escape);
            trials.push(Trial::test(format!("{name}_cannot_{}", escape.name), test));
        }
        trials.push(Trial::test(format!("{name}_breaks_no_condition_of_a_rule"), move || {
            breaks_none(at, kind)
        }));
        trials.push(Trial::test(format!("{name}_panics_and_is_heard"), move || is_heard(at)));
        trials.push(Trial::ignorable_test(
            format!("{name}_without_filters_has_no_files_and_no_privileges"),
            move || {
                if escapes::has_landlock() {
                    has_nothing(at).map(|()| Completion::Completed)
                } else {
                    Ok(Completion::ignored_with("this kernel has no Landlock"))
                }
            },
        ));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs this program as the child in which a thread of kind number `at` does `what`.
fn in_child(at: usize, mode: &str, what: &str) -> Result<Output, Failed> {
    let task = format!("{at} {mode} {what}");
    Ok(Command::new(std::env::current_exe()?).env(TASK, task).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_refused(at: usize, kind: &Kind, escape: &Escape) -> Result<(), Failed> {
    let output = in_child(at, "on", escape.name)?;
    let said = said(&output);
    let told = format!("the thread {} (", kind.name);
    if output.status.code() == Some(VIOLATION) && said.contains(&told) && said.contains(escape.call) {
        Ok(())
    } else {
        Err(format!("{} and {said:?}", output.status).into())
    }
}

/// Each rule that has conditions, with each of them broken.
fn breaks_none(at: usize, kind: &'static Kind) -> Result<(), Failed> {
    for (rule, call) in kind.calls().enumerate() {
        for place in 0..call.conditions.iter().flatten().count() {
            let output = in_child(at, "on", &format!("{BROKEN}{rule}.{place}"))?;
            if output.status.code() != Some(VIOLATION) {
                return Err(
                    format!("{call:?}, condition {place}: {}, {:?}", output.status, said(&output)).into()
                );
            }
        }
    }
    Ok(())
}

fn is_heard(at: usize) -> Result<(), Failed> {
    let output = in_child(at, "on", "panic")?;
    let said = said(&output);
    if output.status.code() == Some(INTERNAL) && said.contains("a panic on purpose") {
        Ok(())
    } else {
        Err(format!("{} and {said:?}", output.status).into())
    }
}

/// Each thing that is refused without filters is so by the answer of the kernel.
fn has_nothing(at: usize) -> Result<(), Failed> {
    for escape in ESCAPES {
        let Some(answers) = escape.without_filters else { continue };
        let output = in_child(at, "off", escape.name)?;
        let errno = said(&output).trim().parse::<i32>();
        if output.status.code() != Some(0) || !errno.as_ref().is_ok_and(|errno| answers.contains(errno)) {
            return Err(format!("{}: {} and {:?}", escape.name, output.status, said(&output)).into());
        }
    }
    Ok(())
}

/// The call of a rule, and arguments with which all of its conditions but one hold; `words` are the numbers of the two.
fn broken(kind: &'static Kind, words: &str) -> Option<(c_long, [c_ulong; 4])> {
    let (rule, place) = words.split_once('.')?;
    let (rule, place): (usize, usize) = (rule.parse().ok()?, place.parse().ok()?);
    let call = kind.calls().nth(rule)?;
    // What the conditions leave open is no descriptor and no length.
    let mut arguments = [c_ulong::MAX; 4];
    for (at, condition) in call.conditions.iter().flatten().enumerate() {
        let (argument, value) = match *condition {
            // A value that no rule has.
            Condition::Is { argument, value } => {
                (argument, if at == place { u64::from(!value) } else { value.into() })
            }
            Condition::Without { argument, bits } => (argument, if at == place { bits } else { 0 }),
        };
        *arguments.get_mut(usize::from(argument))? = value;
    }
    Some((call.number, arguments))
}

#[expect(clippy::panic, reason = "one thread is to panic")]
fn child(task: &OsString) -> ExitCode {
    let task = task.to_string_lossy();
    let mut words = task.split(' ');
    let mut next = || words.next().unwrap_or_default().to_owned();
    let (at, mode, what) = (next(), next(), next());
    let mut config = VmConfig::default();
    config.confinement.seccomp = if mode == "off" { Seccomp::Off } else { Seccomp::On };
    let kinds = confinement::kinds();
    let kind = at.parse().ok().and_then(|at: usize| kinds.get(at));
    let (Some(kind), Ok(())) = (kind, run::prepare(&config)) else { return ExitCode::FAILURE };
    let broken = what.strip_prefix(BROKEN).and_then(|words| broken(kind, words));
    let thread = spawn(kind, kind.name, move || match ESCAPES.iter().find(|escape| escape.name == what) {
        Some(escape) => escape.attempt(),
        None => broken
            .map_or_else(|| panic!("a panic on purpose"), |(call, arguments)| escapes::make(call, arguments)),
    });
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(errno)) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{errno}");
            ExitCode::SUCCESS
        }
        // As of a machine one of whose threads has panicked.
        _ => ExitCode::from(1),
    }
}
