//! Irqchip: a stock kernel boots, talks and hears its power button with each of the two I/O APICs.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{KernelFormat, LinuxGuest, LinuxReport};

use crate::Shape;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    const TWO: [Shape; 1] = [Shape::new(KernelFormat::BzImage, 2)];
    crate::trials![
        a_guest_lives_with_the_ioapic_of_the_kernel on TWO,
        a_guest_lives_with_the_ioapic_of_the_monitor on TWO,
    ]
}

fn a_guest_lives_with_the_ioapic_of_the_kernel(guest: &LinuxGuest) -> Result<()> {
    lives_with(guest, "kernel")
}

fn a_guest_lives_with_the_ioapic_of_the_monitor(guest: &LinuxGuest) -> Result<()> {
    lives_with(guest, "split")
}

/// The power button is an interrupt through the I/O APIC, and so is the serial port at which the guest says what it found.
fn lives_with(guest: &LinuxGuest, irqchip: &str) -> Result<()> {
    let mut vm = guest.vm("button", "").args("--grace-time 60s --irqchip").arg(irqchip).spawn()?;
    vm.wait_for_output("vmm: ready=button")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait_for_output("vmm: button=pressed")?;
    let vm = vm.wait()?.ensure_code(0)?;
    let report = LinuxReport::read(&vm.text());
    ensure!(report.number("cpus")? == u64::from(guest.cpus), "other CPUs: {report:?}");
    let errors: Vec<_> = report.all("error").collect();
    ensure!(!errors.iter().any(|error| error.contains("APIC")), "{errors:?}");
    report.get("clocksource").context("a clock")?;
    Ok(())
}
