//! Filters: tables of system calls as programs of the kernel's filter machine, by seccompiler.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use vmm_core::thread::{Call, Condition, Kind};

use super::kinds;
use crate::config::Seccomp;

/// Whether the kernel has filters, if `mode` wants some.
///
/// # Errors
/// It has none.
pub(super) fn check(mode: Seccomp) -> anyhow::Result<()> {
    if mode == Seccomp::Off || std::path::Path::new("/proc/sys/kernel/seccomp").exists() {
        return Ok(());
    }
    // Without /proc one cannot know; the first thread that is confined will.
    if !std::path::Path::new("/proc/sys/kernel").exists() {
        return Ok(());
    }
    Err(anyhow!(
        "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER); `--seccomp off` runs the machine without them"
    ))
}

/// Confines the calling thread to the table of `kind`, for good.
///
/// # Errors
/// The kernel takes no filter; `kind` is in no list, so that nobody would test its table.
pub(super) fn confine(kind: &'static Kind, mode: Seccomp) -> anyhow::Result<()> {
    if mode == Seccomp::Off {
        return Ok(());
    }
    if !kinds::ALL.iter().any(|known| std::ptr::eq(*known, kind)) {
        return Err(anyhow!("it is not in the list of kinds"));
    }
    apply_filter(&program(&kinds::calls(kind), mode)?).context("seccomp")
}

/// The program for a table.
pub(super) fn program(calls: &[Call], mode: Seccomp) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
        let always = calls.iter().any(|other| other.number == call.number && is_always(other));
        let alternatives = rules.entry(call.number).or_default();
        if !always {
            let conditions = call.conditions.iter().flatten().map(condition).collect::<Result<_, _>>()?;
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    let mismatch = if mode == Seccomp::Log { SeccompAction::Log } else { SeccompAction::Trap };
    Ok(SeccompFilter::new(rules, mismatch, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?)
}

fn is_always(call: &Call) -> bool {
    call.conditions.iter().all(Option::is_none)
}

fn condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    match *condition {
        Condition::Is { argument, value } => {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
        }
        Condition::Without { argument, bits } => {
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)
        }
    }
}
