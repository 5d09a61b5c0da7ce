//! Kicks under stress: none is lost, and none late without a reason.
//!
//! A million kicks over all trials if `VMM_FULL` is in the environment, a twentieth otherwise.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vmm_tests::harness::{guest, is_emulated, is_full, rounds};
use vmm_tests::kicks::{Stress, stress};
use vmm_vcpu::Mechanism;

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        no_kick_of_a_spinning_vcpu_is_lost,
        no_kick_of_a_halted_vcpu_is_lost,
        no_kick_of_an_exiting_vcpu_is_lost,
        no_kick_of_a_vcpu_that_sleeps_in_kvm_is_lost,
        no_kick_of_a_vcpu_that_loops_in_vmcall_is_lost,
    ]
}

/// Machines of each trial: with 1, 2 and 8 vCPUs, kicked in both ways.
const SIZES: [u32; 3] = [1, 2, 8];
const MECHANISMS: [Mechanism; 2] = [Mechanism::ImmediateExit, Mechanism::SignalMask];

/// A million over five trials.
const KICKS: usize = 1_000_000 / (5 * SIZES.len() * MECHANISMS.len()) + 1;

fn kicks() -> usize {
    if is_full() { KICKS } else { rounds(KICKS / 20) }
}

/// Stresses machines of `size` vCPUs, of which `started` tells how many run `name` from the start.
fn all_sizes(name: &str, started: impl Fn(u32) -> u32) -> Result<()> {
    let guest = guest(name);
    for size in SIZES {
        for mechanism in MECHANISMS {
            let (kicks, started) = (kicks(), started(size));
            let case = Stress { guest: &guest, started, asleep: size - started, mechanism, kicks };
            let outcome = stress(&case)?;
            ensure!(outcome.answered == kicks / 2 * 2, "{case:?}: {} answers", outcome.answered);
            let unexplained: Vec<_> = outcome.late.iter().filter(|late| !late.is_explained()).collect();
            // Where KVM is emulated, everything takes as long as its emulation.
            ensure!(
                unexplained.is_empty() || is_emulated(),
                "{case:?}: late without a reason: {unexplained:?}"
            );
        }
    }
    Ok(())
}

fn no_kick_of_a_spinning_vcpu_is_lost() -> Result<()> {
    all_sizes("spin", |size| size)
}

fn no_kick_of_a_halted_vcpu_is_lost() -> Result<()> {
    all_sizes("bench_halt", |size| size)
}

/// Its handler kicks the vCPUs of the machine in turn, the one that exits among them.
fn no_kick_of_an_exiting_vcpu_is_lost() -> Result<()> {
    all_sizes("bench_exits_port_write", |size| size)
}

/// All but the first, which halts, wait for INIT and SIPI.
fn no_kick_of_a_vcpu_that_sleeps_in_kvm_is_lost() -> Result<()> {
    all_sizes("bench_halt", |_| 1)
}

fn no_kick_of_a_vcpu_that_loops_in_vmcall_is_lost() -> Result<()> {
    all_sizes("vmcall_loop", |size| size)
}
