//! Interrupts: lines and vectors against a guest that counts what arrives.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::fake::FakeVm;
use vmm_core::irq::{
    IoapicPins, IrqOptions, IrqRouter, IrqTrigger, Irqchip, LevelInput, MsiMessage, MsiVector, Resample,
    TriggeredBy,
};
use vmm_core::seam::{InterruptVm, IrqFds, IrqInjection, IrqRoute, IrqRoutes};
use vmm_core::{Deferred, IoctlError, VmEvents};
use vmm_devices::legacy::Ioapic;
use vmm_devices::{BusDevice, Progress, Worker};
use vmm_memory::AddressSpace;
use vmm_sys_util::eventfd::EventFd;
use vmm_tests::harness::{guest, is_pvm, rounds, until};
use vmm_tests::small_machine::{SmallMachine, allow_many_descriptors};
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuThread};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    crate::trials![
        every_pulse_of_an_edge_line_arrives,
        messages_arrive_at_the_vectors_they_are_routed_to,
        a_level_line_of_two_devices_interrupts_until_both_have_taken_it_back,
        msix_costs_the_ioctls_that_its_driver_causes,
        no_trigger_is_lost_beside_a_mask_in_a_million_rounds,
        no_trigger_is_lost_between_a_mask_and_a_guest,
        lines_and_vectors_go_while_a_handler_and_a_thread_inject,
    ]
}

/// As the guest has them.
const COUNTERS: u64 = 0x9000;
const READY_PORT: u16 = 0xe0;
const SERVED_PORT: u16 = 0xe1;
const EDGE_PIN: u32 = 5;
const LEVEL_PIN: u32 = 10;
const FIRST: u32 = 0x50;
const EDGE: usize = 0;
const LEVEL: usize = 1;
/// The first that has no pin.
const MESSAGES: usize = 2;
/// Counts those that the guest has acknowledged.
const ENDED: usize = 8;

const DEADLINE: Duration = Duration::from_secs(60);

/// The message that counter `index` counts.
fn message(index: usize) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data: FIRST + index as u32 }
}

/// The devices that share the level-triggered line. At most one asserts it, but for the moment in which the next one does
/// already.
#[derive(Default)]
struct Sharers {
    inputs: Vec<LevelInput>,
    asserting: Option<usize>,
    served: u32,
    /// Interrupts at which no device asserted the line.
    spurious: u32,
}

impl Sharers {
    fn assert(&mut self, device: usize) {
        self.asserting = self.inputs.get(device).map(|input| {
            input.set(true);
            device
        });
    }

    /// What a driver does: serves the device that asserts the line, if one does. The next one asserts it before, so that the
    /// line stays high.
    fn serve(&mut self) {
        let Some(device) = self.asserting else {
            self.spurious += 1;
            return;
        };
        self.assert(device + 1);
        self.inputs[device].set(false);
        self.served += 1;
    }
}

/// What the guest's exits do.
struct Handler {
    ready: Mutex<Sender<()>>,
    ioapic: Option<(Ioapic, IoapicPins)>,
    /// Those that the level-triggered line's handler serves.
    sharers: Mutex<Sharers>,
    /// What any other port triggers.
    triggers: Mutex<Vec<IrqTrigger>>,
    accesses: AtomicUsize,
}

impl Handler {
    fn new(router: &IrqRouter, irqchip: Irqchip) -> (Arc<Self>, Receiver<()>) {
        let (sender, ready) = channel();
        let pins = (irqchip == Irqchip::Split).then(|| router.ioapic_pins());
        let handler = Self {
            ready: Mutex::new(sender),
            ioapic: pins.map(|pins| (Ioapic::new(pins.clone()), pins)),
            sharers: Mutex::default(),
            triggers: Mutex::default(),
            accesses: AtomicUsize::new(0),
        };
        (Arc::new(handler), ready)
    }

    fn ioapic(&self, address: u64) -> Option<(&Ioapic, u64)> {
        let offset = address.checked_sub(Ioapic::ADDRESS).filter(|offset| *offset < Ioapic::LENGTH)?;
        self.ioapic.as_ref().map(|(ioapic, _)| (ioapic, offset))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExitHandler for Handler {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}

    fn port_write(&self, port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        match port {
            // Whoever waits may have failed.
            READY_PORT => drop(lock(&self.ready).send(())),
            SERVED_PORT => lock(&self.sharers).serve(),
            _ => {
                self.accesses.fetch_add(1, Ordering::Relaxed);
                // Cloned: the lines go while they are triggered.
                let triggers = lock(&self.triggers).clone();
                triggers.iter().for_each(IrqTrigger::trigger);
            }
        }
        None
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if let Some((ioapic, offset)) = self.ioapic(address) {
            ioapic.read(offset, data);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        if let Some((ioapic, offset)) = self.ioapic(address) {
            ioapic.write(offset, data);
        }
        None
    }

    fn end_of_interrupt(&self, vector: u8) {
        if let Some((_, pins)) = &self.ioapic {
            pins.end_of_interrupt(vector);
        }
    }
}

/// Counts the ioctls.
struct Watched {
    vm: Arc<dyn InterruptVm>,
    ioctls: Arc<AtomicUsize>,
}

impl Watched {
    fn count<T>(&self, ioctl: impl FnOnce(&dyn InterruptVm) -> T) -> T {
        self.ioctls.fetch_add(1, Ordering::Relaxed);
        ioctl(&*self.vm)
    }
}

impl IrqFds for Watched {
    fn attach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.count(|vm| vm.attach_irqfd(gsi, fd))
    }
    fn attach_resampled_irqfd(&self, gsi: u32, fd: &EventFd, resample: &EventFd) -> Result<(), IoctlError> {
        self.count(|vm| vm.attach_resampled_irqfd(gsi, fd, resample))
    }
    fn detach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.count(|vm| vm.detach_irqfd(gsi, fd))
    }
}

impl IrqRoutes for Watched {
    fn set_routes(&self, routes: &[IrqRoute]) -> Result<(), IoctlError> {
        self.count(|vm| vm.set_routes(routes))
    }
}

impl IrqInjection for Watched {
    fn set_line(&self, gsi: u32, high: bool) -> Result<(), IoctlError> {
        self.count(|vm| vm.set_line(gsi, high))
    }
    fn signal_message(&self, message: MsiMessage) -> Result<(), IoctlError> {
        self.count(|vm| vm.signal_message(message))
    }
    fn ioapic_pin_masked(&self, pin: u32) -> Result<bool, IoctlError> {
        self.count(|vm| vm.ioapic_pin_masked(pin))
    }
}

/// A machine whose guest runs.
struct Counting {
    // Dropped in this order.
    _thread: VcpuThread,
    handler: Arc<Handler>,
    memory: AddressSpace,
    router: IrqRouter,
    ioctls: Arc<AtomicUsize>,
}

impl Counting {
    fn start(name: &str, irqchip: Irqchip) -> Result<Self> {
        let ioctls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&ioctls);
        let watched = |vm| Arc::new(Watched { vm, ioctls: counter }) as Arc<dyn InterruptVm>;
        let SmallMachine { mut vcpus, memory, router, .. } =
            SmallMachine::boot_with(&guest(name), (1, 0), irqchip, watched)?;
        let vcpu = vcpus.pop().context("a vCPU")?;
        let (handler, ready) = Handler::new(&router, irqchip);
        let exits = Arc::clone(&handler);
        let thread = VcpuThread::spawn(vcpu, exits, ThreadOptions::default(), |_, _| {})?;
        thread.resume();
        let machine = Self { _thread: thread, handler, memory, router, ioctls };
        if name == "irq_counters" {
            ready.recv_timeout(DEADLINE).context("the guest is not ready")?;
        }
        Ok(machine)
    }

    fn count(&self, index: usize) -> Result<u32> {
        Ok(self.memory.memory().read_obj(GuestAddress(COUNTERS + 4 * index as u64))?)
    }

    /// Waits until counter `index` is `count`.
    fn wait(&self, index: usize, count: u32) -> Result<()> {
        let seen = self.wait_for(index, count)?;
        ensure!(seen == count, "{seen} interrupts instead of {count}");
        Ok(())
    }

    /// Waits until counter `index` is at least `count`, and gives it.
    fn wait_for(&self, index: usize, count: u32) -> Result<u32> {
        let deadline = Instant::now() + DEADLINE;
        while self.count(index)? < count {
            ensure!(Instant::now() < deadline, "{} of {count} interrupts have arrived", self.count(index)?);
            std::thread::yield_now();
        }
        self.count(index)
    }

    fn ioctls_of(&self, act: impl FnOnce() -> Result<()>) -> Result<usize> {
        let before = self.ioctls.load(Ordering::Relaxed);
        act()?;
        Ok(self.ioctls.load(Ordering::Relaxed) - before)
    }
}

fn every_pulse_of_an_edge_line_arrives() -> Result<()> {
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        let machine = Counting::start("irq_counters", irqchip)?;
        let line = machine.router.edge_line(EDGE_PIN, "edge")?;
        let trigger = line.trigger();
        for round in 1..=1000 {
            trigger.trigger();
            machine.wait(EDGE, round).context(format!("{irqchip:?}"))?;
        }
        drop(line);
        trigger.trigger();
        let again = machine.router.edge_line(EDGE_PIN, "edge again")?;
        again.trigger().trigger();
        machine.wait(EDGE, 1001).context("a line that is gone, and one that is not")?;
    }
    Ok(())
}

fn messages_arrive_at_the_vectors_they_are_routed_to() -> Result<()> {
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        for by in [TriggeredBy::UserSpace, TriggeredBy::Kernel] {
            let machine = Counting::start("irq_counters", irqchip)?;
            let vectors =
                (0..4).map(|_| machine.router.msi_vector("net", by)).collect::<Result<Vec<_>, _>>()?;
            for vector in &vectors {
                vector.trigger().trigger();
            }
            for turn in 0..4 {
                let target = |index: usize| MESSAGES + (index + turn) % 4;
                machine.router.batch(|changes| {
                    vectors
                        .iter()
                        .enumerate()
                        .for_each(|(i, vector)| changes.set(vector, message(target(i))));
                })?;
                for (index, vector) in vectors.iter().enumerate() {
                    // What was triggered before the first unmask was pending.
                    vector.unmask()?;
                    if turn > 0 {
                        vector.trigger().trigger();
                    }
                    machine.wait(target(index), turn as u32 + 1).context(format!("{irqchip:?}, {by:?}"))?;
                }
            }
        }
    }
    Ok(())
}

fn a_level_line_of_two_devices_interrupts_until_both_have_taken_it_back() -> Result<()> {
    const ROUNDS: u32 = 200;
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        let machine = Counting::start("irq_counters", irqchip)?;
        let line = machine.router.level_line(LEVEL_PIN, "pci")?;
        let sharers = || lock(&machine.handler.sharers);
        sharers().inputs = vec![line.input(), line.input()];
        let worker = Worker::spawn(&vmm_devices::calls::SELFTEST, VmEvents::new()?)?;
        let listen = |resample: Resample| {
            let fd = resample.eventfd();
            let ended = move |_| {
                resample.handle();
                Progress::Done
            };
            worker.add("level line", fd, ended, || ())
        };
        // With the split irqchip nobody has to.
        let _listener = line.resample().map(listen).transpose()?;
        for round in 1..=ROUNDS {
            sharers().assert(0);
            until(Instant::now() + DEADLINE, "two devices are served", || {
                Ok((sharers().served == 2 * round).then_some(()))
            })
            .context(format!("{irqchip:?}, round {round}: {} served", sharers().served))?;
        }
        // The last one may still be under way.
        until(Instant::now() + DEADLINE, "every interrupt is accounted for", || {
            let (arrived, ended) = (machine.count(LEVEL)?, machine.count(ENDED)?);
            Ok((arrived == 2 * ROUNDS + sharers().spurious && ended == arrived).then_some(()))
        })?;
        let spurious = sharers().spurious;
        // With its own I/O APIC, KVM raises such a line from a work item, perhaps when the device has been served already.
        // KVM-PVM ends the interrupt of a guest that does not know it when it delivers it (its trace has `kvm_eoi` before the
        // first instruction of the handler), and a line that is still asserted then is sent again.
        let expected = if irqchip == Irqchip::Split && !is_pvm() { 0 } else { ROUNDS };
        ensure!(spurious <= expected, "{irqchip:?}: {spurious} spurious interrupts");
    }
    Ok(())
}

fn msix_costs_the_ioctls_that_its_driver_causes() -> Result<()> {
    allow_many_descriptors()?;
    let machine = Counting::start("irq_counters", Irqchip::Kernel)?;
    let table = machine.router.msix_table("nvme", 1000, TriggeredBy::UserSpace)?;
    let trigger = |index| table.trigger(index).context("a trigger");
    let masked = machine.ioctls_of(|| {
        for index in 0..1000 {
            table.set_message(index, message(MESSAGES))?;
            table.set_mask(index, false)?;
        }
        trigger(7)?.trigger();
        Ok(())
    })?;
    ensure!(masked == 0 && table.pending(0) == 1 << 7, "{masked} ioctls for masked vectors");
    let released = machine.ioctls_of(|| Ok(table.set_function_mask(false)?))?;
    ensure!(released == 1, "{released} ioctls for the function mask over 1000 vectors");
    machine.wait(MESSAGES, 1).context("the pending one")?;
    // Right after the unmask, with a message that has changed.
    for round in 0..500 {
        let index = MESSAGES + 1 + round % 2;
        table.set_mask(999, true)?;
        table.set_message(999, message(index))?;
        let unmasked = machine.ioctls_of(|| Ok(table.set_mask(999, false)?))?;
        trigger(999)?.trigger();
        ensure!(unmasked <= 1, "{unmasked} ioctls for an unmask");
        machine.wait(index, round as u32 / 2 + 1)?;
    }
    Ok(())
}

/// Two threads that meet before and after each round.
#[derive(Default)]
struct Turns {
    begun: AtomicU32,
    done: AtomicU32,
    failed: AtomicBool,
}

impl Turns {
    /// Waits until `word` is `round`; false if the other one has failed.
    fn meet(&self, word: &AtomicU32, round: u32) -> bool {
        while word.load(Ordering::Acquire) < round {
            if self.failed.load(Ordering::Relaxed) {
                return false;
            }
            std::hint::spin_loop();
            std::thread::yield_now();
        }
        true
    }
}

/// In each round one thread triggers while the other unmasks, or masks and unmasks; afterwards the round's interrupt must be
/// there. `arrived` waits for it, given the round.
fn race(count: u32, vector: &MsiVector, mut arrived: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let turns = Turns::default();
    let trigger = vector.trigger();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=count {
                if !turns.meet(&turns.begun, round) {
                    return;
                }
                // So that the two meet in different places.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                trigger.trigger();
                turns.done.store(round, Ordering::Release);
            }
        });
        let mut driver = || -> Result<()> {
            for round in 1..=count {
                vector.mask()?;
                turns.begun.store(round, Ordering::Release);
                (0..round % 61).for_each(|_| std::hint::spin_loop());
                vector.unmask()?;
                if round % 2 == 0 {
                    vector.mask()?;
                    vector.unmask()?;
                }
                turns.meet(&turns.done, round);
                ensure!(!vector.is_pending(), "round {round}: an interrupt is stuck behind an open mask");
                arrived(round).context(format!("round {round}"))?;
            }
            Ok(())
        };
        let result = driver();
        turns.failed.store(true, Ordering::Relaxed);
        result
    })
}

fn no_trigger_is_lost_beside_a_mask_in_a_million_rounds() -> Result<()> {
    let vm = Arc::new(FakeVm::default());
    let router = IrqRouter::new(vm.clone(), IrqOptions::all());
    let vector = router.msi_vector("net", TriggeredBy::UserSpace)?;
    let gsi = vm.irqfds()[0];
    let count = u32::try_from(rounds(1_000_000))?;
    race(count, &vector, |_| {
        let signals = vm.signals(gsi);
        ensure!(signals == 1, "{signals} signals for one trigger");
        Ok(())
    })
}

fn no_trigger_is_lost_between_a_mask_and_a_guest() -> Result<()> {
    for by in [TriggeredBy::UserSpace, TriggeredBy::Kernel] {
        let machine = Counting::start("irq_counters", Irqchip::Kernel)?;
        let vector = machine.router.msi_vector("net", by)?;
        vector.set_message(message(MESSAGES))?;
        vector.unmask()?;
        let count = u32::try_from(rounds(20_000))?;
        let mut before = 0;
        let arrived = |_| {
            let seen = machine.wait_for(MESSAGES, before + 1)?;
            // KVM looks at an eventfd when it is attached, and is woken by it: a signal at this moment may be heard twice.
            let most = before + if by == TriggeredBy::Kernel { 2 } else { 1 };
            ensure!(seen <= most, "{seen} interrupts, {before} before this round");
            before = seen;
            Ok(())
        };
        race(count, &vector, arrived).context(format!("{by:?}"))?;
    }
    Ok(())
}

fn open_files() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// The deadlock of 2009: a line is deassigned while its handler injects and a vCPU is in the device. Here the vCPU's handler
/// triggers every line and vector there is, a thread does the same, and both go on while all of them are taken away; the
/// three begin in each of their six orders.
fn lines_and_vectors_go_while_a_handler_and_a_thread_inject() -> Result<()> {
    const ORDERS: [[u32; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let machine = Counting::start("bench_exits_port_write", Irqchip::Kernel)?;
    let (go, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let count = u32::try_from(rounds(100_000))?;
    let files = open_files()?;
    std::thread::scope(|scope| {
        let injector = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                let now = go.load(Ordering::Acquire);
                if now == seen {
                    std::thread::yield_now();
                    continue;
                }
                seen = now;
                let triggers = lock(&machine.handler.triggers).clone();
                (0..20).for_each(|_| triggers.iter().for_each(IrqTrigger::trigger));
            }
        });
        let deassign = || -> Result<()> {
            for round in 0..count {
                let line = machine.router.edge_line(EDGE_PIN, "edge")?;
                let level = machine.router.level_line(LEVEL_PIN, "level")?;
                let vector = machine.router.msi_vector("net", TriggeredBy::UserSpace)?;
                vector.unmask()?;
                let input = level.input();
                let mut parts = Some((line, level, vector));
                let triggers: Vec<_> =
                    parts.iter().flat_map(|(line, _, vector)| [line.trigger(), vector.trigger()]).collect();
                for part in ORDERS[round as usize % ORDERS.len()] {
                    match part {
                        // The vCPU's handler begins.
                        0 => lock(&machine.handler.triggers).clone_from(&triggers),
                        // The thread begins.
                        1 => go.store(round + 1, Ordering::Release),
                        _ => {
                            input.set(true);
                            drop(parts.take());
                        }
                    }
                }
                drop(input);
            }
            Ok(())
        };
        let result = deassign();
        stop.store(true, Ordering::Relaxed);
        result.and(injector.join().map_err(|_| anyhow!("the thread that injects has panicked")))
    })?;
    lock(&machine.handler.triggers).clear();
    let before = machine.handler.accesses.load(Ordering::Relaxed);
    until(Instant::now() + DEADLINE, "the vCPU goes on", || {
        Ok((machine.handler.accesses.load(Ordering::Relaxed) > before + 100).then_some(()))
    })?;
    until(Instant::now() + DEADLINE, "as many descriptors as before", || {
        Ok((open_files()? <= files).then_some(()))
    })?;
    machine.router.edge_line(EDGE_PIN, "edge")?;
    Ok(())
}
