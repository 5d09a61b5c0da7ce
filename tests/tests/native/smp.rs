//! SMP: every vCPU starts, and knows which one it is.

use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use vmm_tests::harness::{TestVm, until};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        all_cpus_start_and_have_their_ids,
        cpus_254_start_and_have_their_ids,
        cpus_300_start_with_the_split_irqchip,
        every_vcpu_has_a_named_thread,
    ]
}

/// Waits until the guest has said how many CPUs came, and ends it.
fn count(cpus: u32, irqchip: &str) -> Result<()> {
    let mut vm = TestVm::guest("smp_count").args(&format!("--cpus {cpus} --irqchip {irqchip}")).spawn()?;
    let expected = format!("expected {cpus:08x}\ncame {cpus:08x}\nids {:08x}\n", cpus - 1);
    // The ids are those of the CPUs that were started, so all but the first.
    vm.wait_for_output("ids ")?;
    vm.wait_for_lines("\n", 3)?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?.ensure_output(&expected)?;
    Ok(())
}

fn all_cpus_start_and_have_their_ids() -> Result<()> {
    for cpus in [1, 2, 3, 4, 7, 16, 33] {
        count(cpus, "kernel")?;
    }
    Ok(())
}

fn cpus_254_start_and_have_their_ids() -> Result<()> {
    count(254, "kernel")
}

/// Their ids have more than 8 bits.
fn cpus_300_start_with_the_split_irqchip() -> Result<()> {
    count(300, "split")
}

fn every_vcpu_has_a_named_thread() -> Result<()> {
    let mut vm = TestVm::guest("bench_halt").args("--cpus 12").spawn()?;
    vm.wait_for_output("\x1e")?;
    // A thread gives itself its name.
    for index in 0..12 {
        let name = format!("vcpu{index}");
        until(Instant::now() + Duration::from_secs(10), &name, || {
            Ok(vm.process().threads()?.contains(&name).then_some(()))
        })?;
    }
    Ok(())
}
