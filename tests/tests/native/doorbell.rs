//! Doorbells: every ring of a guest is counted once, whoever takes it, and while it changes who does.
//!
//! A thousand changes of each kind if `VMM_FULL` is in the environment, a fiftieth otherwise.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Deferred, Kvm, Vm};
use vmm_devices::{Doorbell, DoorbellError, IoEventFd};
use vmm_tests::bench::buses::{BENCH_MMIO, BENCH_PORT};
use vmm_tests::bench::doorbells::{Answer, Counted, Rings, VALUE, Way};
use vmm_tests::harness::{DEADLINE, guest, stress};
use vmm_tests::ringing::Ringing;
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
        more_than_a_thousand_doorbells_go_away_whole,
    ]
}

/// The ways of the guest `rings` to KVM's doorbells.
fn ways() -> [Way; 6] {
    [
        (DoorbellSpace::Mmio, 4, Some(VALUE)),
        (DoorbellSpace::Mmio, 4, None),
        (DoorbellSpace::Mmio, 0, None),
        (DoorbellSpace::Pio, 4, Some(VALUE)),
        (DoorbellSpace::Pio, 4, None),
        (DoorbellSpace::Pio, 0, None),
    ]
    .map(|(space, width, datamatch)| Way::new(space, Some((width, datamatch)), Answer::None))
}

fn ringing(way: Way) -> Result<Ringing> {
    let any = guest("rings");
    let guests = any.parent().context("a directory of guests")?;
    Ringing::boot(guests, way).with_context(|| format!("{way:?}"))
}

fn ensure_all_counted(ringing: &Ringing, way: &Way) -> Result<Counted> {
    let counted = ringing.counted()?;
    ensure!(counted.rung == counted.counted && counted.rung != 0, "{way:?}: {counted:?}");
    Ok(counted)
}

fn rings_do_not_return_from_kvm_run_and_are_counted_once() -> Result<()> {
    for way in ways() {
        let mut machine = ringing(way)?;
        machine.step(10)?;
        let mut returns = Vec::new();
        for rings in [10, 10_000] {
            let before = machine.counters().returns();
            machine.step(rings)?;
            returns.push(machine.counters().returns() - before);
        }
        // The one with which the guest says that it is done.
        ensure!(returns == [1, 1], "{way:?}: {returns:?} returns of KVM_RUN");
        ensure!(ensure_all_counted(&machine, &way)?.returns == 0, "{way:?}: an exit for a ring");
        // The same device where the host takes none: each ring is an exit.
        let way = Way { is_in_kernel: false, ..way };
        let mut machine = ringing(way)?;
        machine.step(1_000)?;
        let Counted { rung, returns, .. } = ensure_all_counted(&machine, &way)?;
        ensure!(returns == rung, "{way:?}: {returns} exits for {rung} rings");
    }
    Ok(())
}

fn a_doorbell_that_moves_under_fire_loses_and_doubles_nothing() -> Result<()> {
    for way in ways() {
        let mut machine = ringing(way)?;
        machine.while_ringing(|board| {
            let mut shape = way.shape;
            for step in 0..stress(1_000) {
                let to = way.shape.address + 0x10 * (1 - step % 2);
                board.move_to(shape, to)?;
                shape.address = to;
            }
            Ok(())
        })?;
        ensure_all_counted(&machine, &way)?;
    }
    Ok(())
}

/// Between exits and the kernel, again and again, while the guest rings.
fn a_doorbell_that_comes_and_goes_under_fire_loses_and_doubles_nothing() -> Result<()> {
    for way in ways() {
        let mut machine = ringing(way)?;
        machine.while_ringing(|board| {
            for _ in 0..stress(1_000) {
                board.doorbell().unbind();
                board.wait_for_steps(1)?;
                board.doorbell().rebind(way.shape)?;
                board.wait_for_steps(1)?;
            }
            Ok(())
        })?;
        let Counted { rung, returns, .. } = ensure_all_counted(&machine, &way)?;
        ensure!((1..rung).contains(&returns), "{way:?}: {returns} exits for {rung} rings");
    }
    Ok(())
}

/// Doorbells by address, and the handler that rings the right one where KVM does not.
struct Doorbells {
    all: Vec<(DoorbellAddress, Doorbell)>,
    exits: AtomicU64,
    over: Sender<()>,
}

impl Doorbells {
    fn ring(&self, space: DoorbellSpace, at: u64, data: &[u8]) {
        self.exits.fetch_add(1, Ordering::Relaxed);
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        for (DoorbellAddress { space: own, address, width, datamatch }, doorbell) in &self.all {
            if (*own, *address) == (space, at)
                && (*width == 0 || *width as usize == data.len())
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

/// The doorbells that the guest `doorbell_widths` rings, and how often. The number 5, which it writes five times where those
/// of 1 to 4 are, rings none.
fn widths_and_values() -> Vec<(DoorbellAddress, u64)> {
    let at = |space, address, width, datamatch| DoorbellAddress { space, address, width, datamatch };
    let (mmio, pio) = (DoorbellSpace::Mmio, DoorbellSpace::Pio);
    let mut all = Vec::new();
    all.extend([1, 2, 4, 8].map(|width| at(mmio, BENCH_MMIO, width, None)).into_iter().zip(1..));
    all.extend((1..=4).map(|value| (at(mmio, BENCH_MMIO + 8, 4, Some(value)), value)));
    all.push((at(mmio, BENCH_MMIO + 16, 0, None), 4));
    all.extend([1, 2, 4].map(|width| at(pio, BENCH_PORT.into(), width, None)).into_iter().zip(1..));
    all
}

fn doorbells_of_every_width_and_value_are_told_apart() -> Result<()> {
    let expected = widths_and_values();
    let writes = expected.iter().map(|(_, rings)| rings).sum::<u64>() + 5;
    for (is_in_kernel, exits) in [(true, 5), (false, writes)] {
        let SmallMachine { mut vcpus, memory, vm, .. } = SmallMachine::boot(&guest("doorbell_widths"), 1, 0)?;
        let vcpu = vcpus.pop().context("a vCPU")?;
        let mut all = Vec::new();
        for (address, _) in &expected {
            let host = is_in_kernel.then(|| Arc::<Vm>::clone(&vm) as Arc<dyn DoorbellFds>);
            let doorbell = Doorbell::new(host, address.address)?;
            doorbell.rebind(*address)?;
            all.push((*address, doorbell));
        }
        let (over, ended) = channel();
        let doorbells = Arc::new(Doorbells { all, exits: AtomicU64::new(0), over });
        let thread = VcpuThread::spawn(vcpu, Arc::clone(&doorbells), ThreadOptions::default(), |_, _| ())?;
        thread.resume();
        ended.recv_timeout(DEADLINE).context("the guest did not end")?;
        for ((address, doorbell), (_, rings)) in doorbells.all.iter().zip(&expected) {
            let counted = doorbell.eventfd().read().unwrap_or(0);
            ensure!(counted == *rings, "in kernel: {is_in_kernel}, {address:?}: {counted} rings of {rings}");
        }
        let made = doorbells.exits.load(Ordering::Relaxed);
        ensure!(made == exits, "in kernel: {is_in_kernel}: {made} exits, not {exits}");
        drop(thread);
        drop(memory);
    }
    Ok(())
}

fn vm() -> Result<Arc<dyn DoorbellFds>> {
    Ok(Arc::new(Vm::create(&Kvm::open(Path::new("/dev/kvm"))?)?))
}

fn fault_b7_kvm_refuses_a_second_doorbell_and_the_first_still_rings() -> Result<()> {
    for Way { shape, .. } in ways() {
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

/// KVM's bus has a thousand places for other things; doorbells it counts by the descriptors of the process.
fn more_than_a_thousand_doorbells_go_away_whole() -> Result<()> {
    let vm = vm()?;
    let fd = Doorbell::new(None, 0)?.eventfd();
    let at = |index: u64| DoorbellAddress {
        space: DoorbellSpace::Mmio,
        address: BENCH_MMIO + 8 * index,
        width: 4,
        datamatch: Some(0),
    };
    // What is left of the first time is in the way of the second.
    for _ in 0..2 {
        let attach = |index| IoEventFd::attach(Arc::clone(&vm), at(index), Arc::clone(&fd));
        let made = (0..1100_u64).map(attach).collect::<Result<Vec<_>, _>>()?;
        drop(made);
    }
    Ok(())
}
