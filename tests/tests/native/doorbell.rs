//! Doorbells: every ring of a guest is counted once, whoever takes it, and while it changes who does.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Deferred, Kvm, Vm};
use vmm_devices::{Doorbell, DoorbellError, IoEventFd};
use vmm_tests::bench::buses::{BENCH_MMIO, BENCH_PORT};
use vmm_tests::harness::{guest, stress};
use vmm_tests::ringing::{Ringing, VALUE};
use vmm_tests::small_machine::SmallMachine;
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuThread};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        rings_do_not_return_from_kvm_run_and_are_counted_once,
        a_doorbell_that_moves_under_fire_loses_and_doubles_nothing,
        a_doorbell_that_comes_and_goes_under_fire_loses_and_doubles_nothing,
        doorbells_of_every_width_and_value_are_told_apart,
        fault_b7_kvm_refuses_a_second_doorbell_and_the_first_still_rings,
        doorbells_that_fill_the_bus_of_kvm_go_away_whole,
    ]
}

/// The forms whose address the guest `rings` can write to.
fn shapes() -> [DoorbellAddress; 6] {
    [
        (DoorbellSpace::Mmio, 4, Some(VALUE)),
        (DoorbellSpace::Mmio, 4, None),
        (DoorbellSpace::Mmio, 0, None),
        (DoorbellSpace::Pio, 4, Some(VALUE)),
        (DoorbellSpace::Pio, 4, None),
        (DoorbellSpace::Pio, 0, None),
    ]
    .map(|(space, width, datamatch)| {
        let address = if space == DoorbellSpace::Pio { BENCH_PORT.into() } else { BENCH_MMIO };
        DoorbellAddress { space, address, width, datamatch }
    })
}

fn ringing(shape: DoorbellAddress, is_in_kernel: bool) -> Result<Ringing> {
    Ringing::new(&guest("rings"), shape, is_in_kernel).with_context(|| format!("{shape:?}"))
}

fn ensure_all_counted(ringing: Ringing, what: &DoorbellAddress) -> Result<u64> {
    let (rung, counted) = ringing.finish()?;
    ensure!(rung == counted && rung != 0, "{what:?}: {rung} rings, {counted} counted");
    Ok(rung)
}

fn rings_do_not_return_from_kvm_run_and_are_counted_once() -> Result<()> {
    for shape in shapes() {
        let doorbell = ringing(shape, true)?;
        doorbell.start();
        doorbell.wait_for(100)?;
        let before = doorbell.counters();
        doorbell.wait_for(10_000)?;
        let after = doorbell.counters();
        ensure!(before.returns() == after.returns(), "{shape:?}: {before:?}, then {after:?}");
        ensure_all_counted(doorbell, &shape)?;
        // The same device where the host takes none: each ring is an exit.
        let doorbell = ringing(shape, false)?;
        doorbell.start();
        doorbell.wait_for(1_000)?;
        ensure!(doorbell.exits() >= 1_000, "{shape:?}: {} exits", doorbell.exits());
        ensure_all_counted(doorbell, &shape)?;
    }
    Ok(())
}

fn a_doorbell_that_moves_under_fire_loses_and_doubles_nothing() -> Result<()> {
    for shape in shapes() {
        let mut doorbell = ringing(shape, true)?;
        doorbell.start();
        for step in 0..stress(1_000) {
            doorbell.move_to(shape.address + 0x10 * (1 - step % 2))?;
        }
        ensure_all_counted(doorbell, &shape)?;
    }
    Ok(())
}

/// Between exits and the kernel, again and again, while the guest rings.
fn a_doorbell_that_comes_and_goes_under_fire_loses_and_doubles_nothing() -> Result<()> {
    for shape in shapes() {
        let doorbell = ringing(shape, true)?;
        doorbell.start();
        for _ in 0..stress(1_000) {
            doorbell.doorbell().unbind();
            doorbell.wait_for(1)?;
            doorbell.bind()?;
            doorbell.wait_for(1)?;
        }
        ensure!(doorbell.exits() > 0, "{shape:?}: no exit");
        ensure_all_counted(doorbell, &shape)?;
    }
    Ok(())
}

/// Doorbells by address, and the handler that rings the right one where KVM does not.
struct Doorbells {
    all: Vec<(DoorbellAddress, Doorbell)>,
    over: std::sync::mpsc::Sender<()>,
}

impl Doorbells {
    fn ring(&self, space: DoorbellSpace, at: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        for (DoorbellAddress { space: own, address, width, datamatch }, doorbell) in &self.all {
            if (*own, *address, *width as usize) == (space, at, data.len())
                && datamatch.is_none_or(|own| own == value)
            {
                doorbell.ring();
            }
        }
    }
}

impl ExitHandler for Doorbells {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, port: u16, _size: usize, data: &[u8]) -> Option<Deferred> {
        match port {
            BENCH_PORT => self.ring(DoorbellSpace::Pio, port.into(), data),
            // The end of the guest; nobody listens when the trial has failed already.
            _ => drop(self.over.send(())),
        }
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.ring(DoorbellSpace::Mmio, address, data);
        None
    }
}

fn doorbells_of_every_width_and_value_are_told_apart() -> Result<()> {
    let at = |space, address, width, datamatch| DoorbellAddress { space, address, width, datamatch };
    let mut expected = Vec::new();
    expected.extend(
        [1, 2, 4, 8].map(|width| at(DoorbellSpace::Mmio, BENCH_MMIO, width, None)).into_iter().zip(1..),
    );
    expected.extend((1..=4).map(|value| (at(DoorbellSpace::Mmio, BENCH_MMIO + 8, 4, Some(value)), value)));
    expected.extend(
        [1, 2, 4].map(|width| at(DoorbellSpace::Pio, BENCH_PORT.into(), width, None)).into_iter().zip(1..),
    );
    for is_in_kernel in [true, false] {
        let SmallMachine { vcpu, memory, vm } = SmallMachine::boot(&guest("doorbell_widths"))?;
        let mut all = Vec::new();
        for (address, _) in &expected {
            let host = is_in_kernel.then(|| Arc::<Vm>::clone(&vm) as Arc<dyn DoorbellFds>);
            let doorbell = Doorbell::new(host, address.address)?;
            doorbell.rebind(*address)?;
            all.push((*address, doorbell));
        }
        let (over, ended) = channel();
        let doorbells = Arc::new(Doorbells { all, over });
        let thread = VcpuThread::spawn(vcpu, Arc::clone(&doorbells), ThreadOptions::default(), |_, _| ())?;
        thread.resume();
        ended.recv_timeout(Duration::from_secs(60)).context("the guest did not end")?;
        for ((address, doorbell), (_, rings)) in doorbells.all.iter().zip(&expected) {
            let counted = doorbell.eventfd().read().unwrap_or(0);
            ensure!(counted == *rings, "in kernel: {is_in_kernel}, {address:?}: {counted} rings of {rings}");
        }
        drop(thread);
        drop(memory);
    }
    Ok(())
}

fn vm() -> Result<Arc<dyn DoorbellFds>> {
    Ok(Arc::new(Vm::create(&Kvm::open(Path::new("/dev/kvm"))?)?))
}

fn fault_b7_kvm_refuses_a_second_doorbell_and_the_first_still_rings() -> Result<()> {
    for shape in shapes() {
        let vm = vm()?;
        let fd = Doorbell::new(None, 0)?.eventfd();
        let first = IoEventFd::attach(Arc::clone(&vm), shape, Arc::clone(&fd))?;
        let second = IoEventFd::attach(Arc::clone(&vm), shape, Arc::clone(&fd)).map(drop);
        ensure!(matches!(second, Err(DoorbellError::Exists { .. })), "{shape:?}: {second:?}");
        drop(first);
        drop(IoEventFd::attach(vm, shape, fd).with_context(|| format!("{shape:?}, after it was detached"))?);
    }
    Ok(())
}

/// KVM's bus has a thousand places.
fn doorbells_that_fill_the_bus_of_kvm_go_away_whole() -> Result<()> {
    let vm = vm()?;
    let fd = Doorbell::new(None, 0)?.eventfd();
    let at = |index| DoorbellAddress {
        space: DoorbellSpace::Mmio,
        address: BENCH_MMIO + 8 * index,
        width: 4,
        datamatch: Some(0),
    };
    for _ in 0..2 {
        let mut made = Vec::new();
        let refused = loop {
            match IoEventFd::attach(Arc::clone(&vm), at(made.len() as u64), Arc::clone(&fd)) {
                Ok(doorbell) => made.push(doorbell),
                Err(error) => break error,
            }
        };
        ensure!(matches!(refused, DoorbellError::NoSpace { .. }), "{refused:?} after {}", made.len());
        ensure!(made.len() >= 900, "{} doorbells", made.len());
    }
    Ok(())
}
