//! Boot: stock kernels reach user space and find the machine that was asked for.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    // Each number of CPUs and each size of memory in each format; not each with each.
    use KernelFormat::{BzImage, Vmlinux};
    crate::trials![the_first_program_finds_what_was_asked_for on [
        Shape::with_memory(BzImage, 1, 6 << 10),
        Shape::with_memory(BzImage, 2, 512),
        Shape::with_memory(BzImage, 8, 128),
        Shape::with_memory(Vmlinux, 1, 6 << 10),
        Shape::with_memory(Vmlinux, 2, 128),
        Shape::with_memory(Vmlinux, 8, 512),
    ]]
}

/// What the kernel keeps for itself before it counts, at most: its own image, 64 bytes for each page of 4 KiB, and buffers to
/// copy through where memory reaches above 4 GiB.
fn kernel_kib(memory_kib: u64) -> u64 {
    let bounce_buffers = if memory_kib > 3 << 20 { 64 << 10 } else { 0 };
    (72 << 10) + memory_kib / 64 + bounce_buffers
}

fn the_first_program_finds_what_was_asked_for(guest: &LinuxGuest) -> Result<()> {
    let vm = guest.vm("poweroff", "one=two").run()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    finds(guest, &report).with_context(|| format!("{report:?}"))
}

/// Whether the report is that of the guest that was asked for.
pub(super) fn finds(guest: &LinuxGuest, report: &LinuxReport) -> Result<()> {
    let release = report.get("release")?;
    ensure!(release.starts_with(&format!("{}.", guest.version)), "another kernel");
    ensure!(report.get("cmdline")?.ends_with(" one=two"), "another command line");
    ensure!(report.number("cpus")? == u64::from(guest.cpus), "other CPUs");
    let memory = guest.memory_mib << 10;
    let total = report.number("memtotal_kb")?;
    ensure!((memory - kernel_kib(memory)..memory).contains(&total), "other memory");
    let clocksource = report.get("clocksource")?;
    ensure!(["kvm-clock", "tsc"].contains(&clocksource), "another clock");
    Ok(())
}
