//! Embedding: the crates used without vmm-cli, as an engineer who builds a monitor of his own would.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use vmm_core::Deferred;
use vmm_tests::harness::guest;
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuEnd, VcpuThread};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        fault_d3_a_panicking_handler_ends_its_vcpu_and_is_reported,
        a_vcpu_stops_at_any_moment,
        a_vcpu_that_was_never_resumed_stops,
    ]
}

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Takes every access and answers none.
struct Nothing;

impl ExitHandler for Nothing {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// A device with a bug.
struct Buggy;

impl ExitHandler for Buggy {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    #[expect(clippy::panic, reason = "what this trial is about")]
    fn port_write(&self, port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        panic!("a bug at port {port:#x}");
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// Runs a guest until `stop` lets its vCPU go; returns how the vCPU ended.
fn run<H: ExitHandler + 'static>(name: &str, handler: H, stop: impl FnOnce(VcpuThread)) -> Result<VcpuEnd> {
    let (vcpu, memory) = SmallMachine::boot(&guest(name), 1, 0)?.into_one();
    let (sender, ended) = channel();
    let thread = VcpuThread::spawn(vcpu, Arc::new(handler), ThreadOptions::default(), move |_, end| {
        // The receiver waits for it, unless the trial has failed already.
        let _ = sender.send(end);
    })?;
    stop(thread);
    let end = ended.recv_timeout(DEADLINE).context("the vCPU did not end")?;
    drop(memory);
    Ok(end)
}

fn fault_d3_a_panicking_handler_ends_its_vcpu_and_is_reported() -> Result<()> {
    let end = run("bench_exits_port_write", Buggy, |thread| {
        thread.resume();
        // Dropped, it would be asked to stop; here it has to end by itself.
        std::thread::sleep(Duration::from_millis(50));
        drop(thread);
    })?;
    match end {
        VcpuEnd::Panicked(message) => ensure!(message == "a bug at port 0x580", "{message}"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

/// A guest that exits all the time and one that has halted, each stopped after ever longer times from its start: before
/// it enters, while it exits, while it sleeps in the kernel.
fn a_vcpu_stops_at_any_moment() -> Result<()> {
    for name in ["bench_exits_port_write", "bench_exits_mmio_read", "bench_halt"] {
        for round in 0..60 {
            let end = run(name, Nothing, |thread| {
                thread.resume();
                std::thread::sleep(Duration::from_micros(round * round));
                drop(thread);
            })?;
            ensure!(matches!(end, VcpuEnd::Stopped), "{name}, round {round}: {end:?}");
        }
    }
    Ok(())
}

fn a_vcpu_that_was_never_resumed_stops() -> Result<()> {
    let end = run("bench_halt", Nothing, drop)?;
    ensure!(matches!(end, VcpuEnd::Stopped), "{end:?}");
    Ok(())
}
