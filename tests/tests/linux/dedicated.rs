//! Dedicated CPUs: a guest that idles halts on its CPU without leaving the guest, and ends like any other.
//!
//! It idles for 10 seconds, or for 30 if `VMM_FULL` is in the environment.

use std::env;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount, umount};
use vmm_tests::harness::{KernelFormat, LinuxGuest, Process};

use super::shell::{Port, Shell};
use crate::{Shape, VMM_FULL};

/// The trials of this suite. They need a host with two CPUs: one for the vCPU, one for the monitor.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_dedicated_vcpu_idles_without_an_exit_and_powers_off on [Shape::new(KernelFormat::BzImage, 1)],
    ]
}

const TIME: Duration = Duration::from_secs(300);

/// Halts that an idle guest makes in ten seconds at the least.
const FEW: u64 = 20;

/// Statistics of KVM, as files.
struct Debugfs {
    is_ours: bool,
}

impl Debugfs {
    const PATH: &str = "/sys/kernel/debug";

    /// Mounts it where it is not mounted. That takes root.
    fn new() -> Result<Self> {
        let is_ours = !Path::new(Self::PATH).join("kvm").exists();
        if is_ours {
            mount(None::<&str>, Self::PATH, Some("debugfs"), MsFlags::empty(), None::<&str>)
                .context("debugfs")?;
        }
        Ok(Self { is_ours })
    }

    /// How often the guests of `process` have halted so that KVM saw it.
    fn halt_exits(&self, process: Process) -> Result<u64> {
        let prefix = format!("{}-", process.pid());
        let mut sum = None;
        for entry in fs::read_dir(Path::new(Self::PATH).join("kvm"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let text = fs::read_to_string(entry.path().join("halt_exits"))?;
                sum = Some(sum.unwrap_or(0) + text.trim().parse::<u64>()?);
            }
        }
        sum.context("the process has no machine")
    }
}

impl Drop for Debugfs {
    fn drop(&mut self) {
        if self.is_ours {
            // Somebody else may be in it; then it stays.
            let _ = umount(Self::PATH);
        }
    }
}

/// Lets the guest idle at its shell and then power off. Returns the halts that KVM saw in that time, and in its whole life.
fn idle(guest: &LinuxGuest, args: &str) -> Result<(u64, u64)> {
    let seconds = if env::var_os(VMM_FULL).is_some() { 30 } else { 10 };
    let debugfs = Debugfs::new()?;
    let mut shell = Shell::start(guest, args, Port::Pipe, TIME)?;
    ensure!(shell.answer("echo alive")? == "alive", "it does not answer");
    let before = debugfs.halt_exits(shell.vm().process())?;
    thread::sleep(Duration::from_secs(seconds));
    let after = debugfs.halt_exits(shell.vm().process())?;
    // It has slept, and is woken by a key.
    ensure!(shell.answer("echo still")? == "still", "it does not answer after its idle time");
    let all = debugfs.halt_exits(shell.vm().process())?;
    shell.types("poweroff -f\n")?;
    let ended = shell.into_vm().wait()?.ensure_code(0)?;
    ensure!(!ended.stderr.contains("no effect"), "{}", ended.stderr);
    Ok((after - before, all))
}

fn a_dedicated_vcpu_idles_without_an_exit_and_powers_off(guest: &LinuxGuest) -> Result<()> {
    let (idle_exits, all) = idle(guest, "--affinity 1 --dedicated")?;
    ensure!((idle_exits, all) == (0, 0), "{idle_exits} halt exits while it idled, {all} in all");
    let (idle_exits, _) = idle(guest, "")?;
    ensure!(idle_exits >= FEW, "{idle_exits} halt exits without dedicated CPUs");
    Ok(())
}
