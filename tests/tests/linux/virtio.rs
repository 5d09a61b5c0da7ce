//! virtio: stock drivers find the devices of the machine and use them.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_gets_entropy_over_mmio_through_the_ioapic_of_the_kernel on [Shape::new(KernelFormat::BzImage, 2)],
        a_guest_gets_entropy_over_mmio_through_the_ioapic_of_the_monitor on [Shape::new(KernelFormat::BzImage, 1)],
        a_guest_gets_entropy_over_pci_with_both_irqchips on [Shape::new(KernelFormat::BzImage, 2)],
    ]
}

fn a_guest_gets_entropy_over_mmio_through_the_ioapic_of_the_kernel(guest: &LinuxGuest) -> Result<()> {
    gets_entropy(guest, "--pci=false --irqchip=kernel", 1).map(drop)
}

fn a_guest_gets_entropy_over_mmio_through_the_ioapic_of_the_monitor(guest: &LinuxGuest) -> Result<()> {
    gets_entropy(guest, "--pci=false --irqchip=split", 1).map(drop)
}

/// A vector for the configuration and one for the queue.
fn a_guest_gets_entropy_over_pci_with_both_irqchips(guest: &LinuxGuest) -> Result<()> {
    for irqchip in ["kernel", "split"] {
        let report = gets_entropy(guest, &format!("--irqchip={irqchip}"), 2).context(irqchip)?;
        let functions = ["0000:00:00.0 0x1b36 0x0008", "0000:00:01.0 0x1af4 0x1044"];
        ensure!(report.all("pci").eq(functions), "other functions: {report:?}");
    }
    Ok(())
}

fn gets_entropy(guest: &LinuxGuest, args: &str, interrupts: u64) -> Result<LinuxReport> {
    let vm = guest.vm("entropy", "").args("--entropy").args(args).run()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    ensure!(report.get("rng_current")?.starts_with("virtio_rng"), "another source: {report:?}");
    ensure!(report.all("entropy").eq(["1", "4096", "100000"]), "not all of it: {report:?}");
    ensure!(report.number("different")? >= 8, "words that are the same: {report:?}");
    ensure!(report.number("interrupts")? == interrupts, "not {interrupts} interrupts of its own: {report:?}");
    ensure!(report.all("missing").next().is_none(), "{report:?}");
    Ok(report)
}
