//! virtio: guest programs that drive devices, and drive them wrong.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::TestVm;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_gets_entropy_breaks_the_ring_and_gets_it_again,
        notifications_do_not_return_from_kvm_run,
        fault_a1_to_b6_the_worst_driver_is_served_as_soon_as_it_behaves,
        a_machine_has_no_entropy_device_unless_it_is_asked_for,
    ]
}

fn a_guest_gets_entropy_breaks_the_ring_and_gets_it_again() -> Result<()> {
    const STARTED: [&str; 3] = ["status 0000000f", "requests 00000040", "bits ffffffff"];
    const BROKEN: [&str; 3] = ["broken 0000004f", "reset 00000000", "ready 00000000"];
    for irqchip in ["kernel", "split"] {
        let vm = TestVm::guest("virtio_rng").args("--pci=false --entropy --irqchip").arg(irqchip);
        let vm = vm.run()?.ensure_code(0).with_context(|| irqchip.to_owned())?;
        let said: Vec<String> = vm.text().lines().map(|line| line.trim().to_owned()).collect();
        let expected = [&["magic 74726976", "device 00000004"], &STARTED[..], &BROKEN, &STARTED].concat();
        ensure!(said == expected, "{irqchip}: {said:?}");
    }
    Ok(())
}

/// `virtio_rng` notifies the device as often, and acknowledges as many interrupts.
const REQUESTS: u64 = 2 * 64 + 1;

fn notifications_do_not_return_from_kvm_run() -> Result<()> {
    let vm = TestVm::guest("virtio_rng")
        .args("--pci=false --entropy --serial null --stats - --stats-format table");
    let vm = vm.run()?.ensure_code(0)?;
    let text = vm.text();
    let written = text.lines().find_map(|line| line.trim().strip_prefix("mmio_writes"));
    let written: u64 = written.context("no mmio_writes")?.trim().parse().context(text.clone())?;
    // The others set up the interrupt controllers and the device, twice.
    ensure!((REQUESTS..REQUESTS + 64).contains(&written), "{written} writes for {REQUESTS} requests: {text}");
    Ok(())
}

/// The attacks that `virtio_hostile` numbers.
const ATTACKS: usize = 28;

fn fault_a1_to_b6_the_worst_driver_is_served_as_soon_as_it_behaves() -> Result<()> {
    let vm = TestVm::guest("virtio_hostile").args("--pci=false --entropy").run()?.ensure_code(0)?;
    let text = vm.text();
    let (served, other): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("served after "));
    ensure!(served.len() == ATTACKS, "{} of {ATTACKS} attacks: {text}", served.len());
    ensure!(other.iter().map(|line| line.trim()).eq(["status 0000000f"]), "{other:?}");
    // More attacks than that leave a device that says so; the log takes ten in ten seconds.
    let said = vm.stderr.lines().filter(|line| line.contains("needs a reset")).count();
    ensure!((1..=20).contains(&said), "{said} lines in the log: {}", vm.stderr);
    Ok(())
}

fn a_machine_has_no_entropy_device_unless_it_is_asked_for() -> Result<()> {
    let mut vm = TestVm::guest("virtio_rng").spawn()?;
    vm.wait_for_output("magic ffffffff")?;
    Ok(())
}
