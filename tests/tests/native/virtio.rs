//! virtio: guest programs that drive devices, and drive them wrong.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{PATIENCE, Terminal, TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        a_guest_gets_entropy_breaks_the_ring_and_gets_it_again,
        notifications_do_not_return_from_kvm_run,
        fault_a1_to_b9_the_worst_driver_over_mmio_is_served_as_soon_as_it_behaves,
        fault_a1_to_b9_the_worst_driver_over_pci_is_served_as_soon_as_it_behaves,
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

/// What the worst driver (`tests/guests/hostile*.inc`) does: the class of faults as it numbers them, what is wrong, and how many
/// attacks that are over virtio-mmio and over virtio-pci. What B7 is about, doorbells of two devices at one address, is 0xb0512 in B5;
/// what B8 is about only disks have.
const ATTACKS: [(&str, &str, [usize; 2]); 18] = [
    ("a01", "chains without an end, and longer than a length can say", [3, 3]),
    ("a02", "indirect tables: not negotiated, of no good length, not in RAM, in one another", [10, 10]),
    ("a03", "buffers that are not in RAM, or are the rings; PCI: in configuration space and BARs", [10, 12]),
    ("a04", "heads that are not there; indices that jump, go back and wrap", [7, 7]),
    ("a05", "one head in every entry", [1, 1]),
    ("a06", "buffers in the wrong order, of the wrong kind, empty", [4, 4]),
    ("a07", "descriptors, rings and indices that change while they are read", [2, 2]),
    ("a08", "queues that cannot be, and none", [6, 6]),
    ("a09", "a queue that changes while it runs", [1, 1]),
    ("a10", "notifications before the driver is ready, after a reset, and a storm of them", [3, 3]),
    ("a11", "used buffers that nobody takes back", [1, 1]),
    ("b01", "registers with every width, and over their edges; PCI: configuration space", [2, 4]),
    ("b02", "configuration to its end; PCI: no such function or bus, the way around the BAR", [1, 3]),
    ("b03", "the status: every value, after giving up, twice, without the steps before", [4, 4]),
    ("b04", "features: not offered, late, of no such page, without VERSION_1", [4, 4]),
    ("b05", "no such queue; PCI: vectors, messages, masks, places of the BAR, notifications", [1, 15]),
    ("b06", "resets of device and queue with requests in flight; PCI: no bus master", [3, 4]),
    ("b09", "64 MiB for a request", [1, 1]),
];

fn fault_a1_to_b9_the_worst_driver_over_mmio_is_served_as_soon_as_it_behaves() -> Result<()> {
    play_the_worst_driver("virtio_hostile", "--pci=false", 0)
}

fn fault_a1_to_b9_the_worst_driver_over_pci_is_served_as_soon_as_it_behaves() -> Result<()> {
    // The console is the device to whose place the BAR is moved.
    play_the_worst_driver("virtio_pci_hostile", "--virtio-console null", 1)
}

fn play_the_worst_driver(guest: &str, args: &str, transport: usize) -> Result<()> {
    for irqchip in ["kernel", "split"] {
        let began = Instant::now();
        let vm =
            TestVm::guest(guest).args("--memory 128M --entropy").args(args).args("--irqchip").arg(irqchip);
        let vm = vm.run()?.ensure_code(0).with_context(|| irqchip.to_owned())?;
        let text = vm.text();
        let (served, other): (Vec<_>, Vec<_>) =
            text.lines().map(str::trim).partition(|line| line.starts_with("served after "));
        ensure!(other == ["status 0000000f"], "{irqchip}: {other:?}");
        for (class, what, count) in ATTACKS {
            let begin = format!("served after 000{class}");
            let attacks: BTreeSet<_> = served.iter().filter(|line| line.starts_with(&begin)).collect();
            let expected = count[transport];
            ensure!(attacks.len() == expected, "{irqchip}: {class}, {what}: {attacks:?} of {expected}");
        }
        let expected: usize = ATTACKS.iter().map(|(.., count)| count[transport]).sum();
        ensure!(served.len() == expected, "{irqchip}: {} of {expected} attacks: {text}", served.len());
        ensure_few_messages(&vm.stderr, began.elapsed()).with_context(|| irqchip.to_owned())?;
    }
    Ok(())
}

/// More attacks than the log takes end with a message: each place takes ten of them in ten seconds, and a place is a device's.
fn ensure_few_messages(log: &str, time: Duration) -> Result<()> {
    // One more than there can be: a window may begin while two threads log.
    let windows = usize::try_from(time.as_secs() / 10)? + 2;
    let mut lines: Vec<_> = log.lines().collect();
    for (message, devices) in
        [("a device needs a reset", 1), ("a BAR cannot have the place that it was given", 2)]
    {
        let count = lines.extract_if(.., |line| line.contains(message)).count();
        ensure!(count <= 10 * windows * devices, "{count} times {message:?} in {time:?}: {log}");
    }
    ensure!(log.contains("a device needs a reset") && lines.is_empty(), "{lines:?} in {log}");
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
