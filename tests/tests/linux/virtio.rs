//! virtio: stock drivers find the devices of the machine and use them.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_gets_entropy_through_the_ioapic_of_the_kernel on [Shape::new(KernelFormat::BzImage, 2)],
        a_guest_gets_entropy_through_the_ioapic_of_the_monitor on [Shape::new(KernelFormat::BzImage, 1)],
    ]
}

fn a_guest_gets_entropy_through_the_ioapic_of_the_kernel(guest: &LinuxGuest) -> Result<()> {
    gets_entropy(guest, "kernel")
}

fn a_guest_gets_entropy_through_the_ioapic_of_the_monitor(guest: &LinuxGuest) -> Result<()> {
    gets_entropy(guest, "split")
}

fn gets_entropy(guest: &LinuxGuest, irqchip: &str) -> Result<()> {
    let vm = guest.vm("entropy", "").args("--entropy --irqchip").arg(irqchip).run()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    ensure!(report.get("rng_current")?.starts_with("virtio_rng"), "another source: {report:?}");
    ensure!(report.all("entropy").eq(["1", "4096", "100000"]), "not all of it: {report:?}");
    ensure!(report.number("different")? >= 8, "words that are the same: {report:?}");
    ensure!(report.number("interrupts")? == 1, "no interrupt of its own: {report:?}");
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    Ok(())
}
