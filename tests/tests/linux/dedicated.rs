//! Dedicated CPUs: a guest that idles halts on its CPU without leaving the guest, and ends like any other.
//!
//! It idles for 10 seconds, or for 30 if `VMM_FULL` is in the environment.

use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{ControlSocket, KernelFormat, LinuxGuest, is_full};

use super::shell::{Port, Shell};
use crate::Shape;

/// The trials of this suite. They need a host with two CPUs: one for the vCPU, one for the monitor.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_dedicated_vcpu_idles_without_an_exit_is_paused_and_powers_off on [Shape::new(KernelFormat::BzImage, 1)],
    ]
}

const TIME: Duration = Duration::from_secs(300);

/// Halts that an idle guest makes in a second at the least.
const A_FEW: u64 = 3;

/// Boots the guest, lets it idle at its shell for so many seconds, pauses and resumes it, and lets it power off. Returns how many halts KVM has counted
/// in its whole life.
fn halt_exits(guest: &LinuxGuest, args: &str, idle: u64) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let stats = directory.path().join("stats.json");
    let place = ControlSocket::new()?;
    let args = format!("{args} --stats {} --api-sock {}", stats.display(), place.path().display());
    let mut shell = Shell::start(guest, &args, Port::Pipe, TIME)?;
    thread::sleep(Duration::from_secs(idle));
    for verb in ["pause", "resume"] {
        let answer = place.ask(verb)?;
        ensure!(answer.get("ok").is_some(), "{verb}: {answer}");
    }
    // A key wakes it.
    ensure!(shell.answer("echo awake")? == "awake", "it does not answer after its idle time");
    shell.types("poweroff -f\n")?;
    let ended = shell.into_vm().wait()?.ensure_code(0)?;
    ensure!(!ended.stderr.contains("no effect"), "{}", ended.stderr);
    let counts: serde_json::Value = serde_json::from_slice(&fs::read(&stats)?)?;
    let count = counts.pointer("/vcpus/0/kernel/halt_exits").and_then(serde_json::Value::as_u64);
    count.with_context(|| format!("no halt_exits in {counts}"))
}

fn a_dedicated_vcpu_idles_without_an_exit_is_paused_and_powers_off(guest: &LinuxGuest) -> Result<()> {
    let idle = if is_full() { 30 } else { 10 };
    let dedicated = halt_exits(guest, "--affinity 1 --dedicated", idle)?;
    let shared = halt_exits(guest, "", idle)?;
    // A failure to say so must not fail the trial.
    let _ =
        writeln!(io::stdout(), "halt exits of a boot and {idle} s: {dedicated} dedicated, {shared} shared");
    ensure!(dedicated == 0, "{dedicated} halt exits with a dedicated CPU");
    ensure!(shared >= A_FEW * idle, "{shared} halt exits without");
    Ok(())
}
