//! PCI: guest programs that look for functions and move what they find.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::TestVm;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        the_bus_is_the_same_by_ports_and_by_memory,
        a_machine_without_pci_has_no_bus,
        requests_are_served_before_and_after_the_bar_of_a_running_device_moves,
    ]
}

/// What `pci_scan` says of a function.
fn function(address: u32, id: u32, bar: u32) -> String {
    format!("function {address:08x}\nid {id:08x}\ndiffers 00000000\nbar {bar:08x}\n")
}

fn the_bus_is_the_same_by_ports_and_by_memory() -> Result<()> {
    let bridge = function(0, 0x0008_1b36, 0);
    TestVm::guest("pci_scan").args("--pci").run()?.ensure_code(0)?.ensure_output(&bridge)?;
    let entropy = function(8, 0x1044_1af4, 0xffff_8000);
    let vm = TestVm::guest("pci_scan").args("--entropy").run()?.ensure_code(0)?;
    vm.ensure_output(&(bridge + &entropy))?;
    Ok(())
}

fn a_machine_without_pci_has_no_bus() -> Result<()> {
    for args in ["", "--entropy --pci=false"] {
        TestVm::guest("pci_scan").args(args).run()?.ensure_code(0)?.ensure_output("").context(args)?;
    }
    Ok(())
}

fn requests_are_served_before_and_after_the_bar_of_a_running_device_moves() -> Result<()> {
    let expected = [
        "function 00000008",
        "status 0000000f",
        "status 0000000f",
        "old 000000ff",
        "status 000000ff",
        "status 0000000f",
        "requests 00000080",
        "bits ffffffff",
        "status 00000000",
    ];
    for irqchip in ["kernel", "split"] {
        let vm =
            TestVm::guest("virtio_pci_rng").args("--entropy --irqchip").arg(irqchip).run()?.ensure_code(0)?;
        ensure!(vm.text().lines().eq(expected), "{irqchip}: {:?}", vm.text());
    }
    Ok(())
}
