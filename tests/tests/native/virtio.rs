//! virtio: guest programs that drive devices, and drive them wrong.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{PATIENCE, Terminal, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_gets_entropy_breaks_the_ring_and_gets_it_again,
        notifications_do_not_return_from_kvm_run,
        fault_a1_to_b6_the_worst_driver_is_served_as_soon_as_it_behaves,
        a_machine_has_no_entropy_device_unless_it_is_asked_for,
        a_virtio_console_says_what_the_guest_does_and_tells_it_the_size_of_the_terminal,
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

fn a_virtio_console_says_what_the_guest_does_and_tells_it_the_size_of_the_terminal() -> Result<()> {
    let serial = tempfile::NamedTempFile::new()?;
    let said = || -> Result<String> { Ok(fs::read_to_string(serial.path())?) };
    let mut terminal = Terminal::new()?;
    terminal.resize(80, 25)?;
    let vm = TestVm::guest("virtio_console").args("--pci=false --virtio-console stdio --serial");
    let vm = vm.arg(format!("file={}", serial.path().display())).through("setsid --ctty");
    let vm = vm.stdin(terminal.end()?).stdout(terminal.end()?).spawn()?;
    terminal.wait_for("by the virtio console", PATIENCE)?;
    until(Instant::now() + PATIENCE, "the used buffer", || Ok(said()?.contains("sent").then_some(())))?;
    terminal.resize(132, 50)?;
    vm.wait()?.ensure_code(0)?;
    let said: Vec<String> = said()?.lines().map(|line| line.trim().to_owned()).collect();
    ensure!(
        said == ["device 00000003", "size 00190050", "size 00190050", "sent", "size 00320084"],
        "{said:?}"
    );
    Ok(())
}
