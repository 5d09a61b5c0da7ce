//! Boot: stock kernels reach user space and find the machine that was asked for.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{LinuxGuest, LinuxReport};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![the_first_program_finds_what_was_asked_for on [1, 2, 8]]
}

/// What the kernel keeps for itself before it counts, at most.
const KERNEL_KIB: u64 = 72 << 10;

fn the_first_program_finds_what_was_asked_for(guest: &LinuxGuest) -> Result<()> {
    let vm = guest.vm("poweroff", "one=two").run()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    finds(guest, &report).with_context(|| format!("{report:?}"))
}

/// Whether the report is that of the guest that was asked for.
fn finds(guest: &LinuxGuest, report: &LinuxReport) -> Result<()> {
    let release = report.get("release")?;
    ensure!(release.starts_with(&format!("{}.", guest.version)), "another kernel");
    ensure!(report.get("cmdline")?.ends_with(" one=two"), "another command line");
    ensure!(report.number("cpus")? == u64::from(guest.cpus), "other CPUs");
    let memory = guest.memory_mib << 10;
    let total = report.number("memtotal_kb")?;
    ensure!((memory - KERNEL_KIB..memory).contains(&total), "other memory");
    let clocksource = report.get("clocksource")?;
    ensure!(["kvm-clock", "tsc"].contains(&clocksource), "another clock");
    Ok(())
}
