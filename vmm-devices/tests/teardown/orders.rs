//! Taking a device apart while it is in use: a vCPU is in its register, its worker is in its handler, both inject.
//!
//! Somebody else waits for a change of the same bus meanwhile, and the register has changes of its own posted. Nobody may
//! wait for somebody who waits for him: in 2009 KVM deassigned an interrupt under the lock that injecting it took.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use vmm_core::fake::FakeVm;
use vmm_core::irq::{
    IrqLine, IrqOptions, IrqRouter, IrqTrigger, LevelInput, LevelLine, MsiMessage, MsiVector, TriggeredBy,
};
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Retired, VmEvents};
use vmm_devices::{Bus, BusDevice, Doorbell, Handler, Poster, Progress, Reconfigure, Worker};

use crate::held::{DEADLINE, Held, WORKER, alone, lock};

const REGISTER: u64 = 0x1000;
const OTHER: u64 = 0x2000;
const EDGE_PIN: u32 = 4;
const LEVEL_PIN: u32 = 10;

/// Rounds of a lap, after each of which the test is known to be alive.
const LAP: usize = 1_000;
const LAPS: usize = 100;
/// Machines that are at work at the same time: waits that coincide share a barrier.
const MACHINES: usize = 20;

/// Where a thread says that it has come, and waits until it may go on. `None`: it goes on.
type Stop = Option<(Sender<()>, Mutex<Receiver<()>>)>;

fn pass(stop: &Stop) {
    if let Some((here, go)) = stop {
        // Both ends go when the test is over.
        let _ = here.send(());
        let _ = lock(go).recv();
    }
}

/// What the machine around the device has, with whatever comes and goes in it.
struct Machine {
    vm: Arc<FakeVm>,
    router: IrqRouter,
    bus: Arc<Bus>,
    worker: Worker,
    reconfigure: Reconfigure,
}

/// A register with nothing behind it.
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl Machine {
    fn new() -> Arc<Self> {
        let (vm, events) = (Arc::new(FakeVm::default()), VmEvents::new().unwrap());
        let bus = Arc::new(Bus::new("test"));
        bus.insert(OTHER, 4, "other", Arc::new(Nothing)).unwrap();
        Arc::new(Self {
            router: IrqRouter::new(vm.clone(), IrqOptions::all()),
            vm,
            bus,
            worker: Worker::spawn(&WORKER, events.clone()).unwrap(),
            reconfigure: Reconfigure::new(events),
        })
    }

    /// A change of the bus that has nothing to do with the device, and the end of its grace period.
    fn change_bus_and_wait(&self) {
        self.bus.move_range(OTHER, OTHER).unwrap().wait().unwrap();
    }

    /// Waits until all changes have been made that were posted before.
    fn end_changes(&self) {
        let (made, wait) = channel::<()>();
        self.reconfigure.poster().post(move || drop(made)).unwrap();
        assert!(wait.recv_timeout(DEADLINE).is_err());
    }
}

/// The register of the device. A write needs what a device needs: the doorbell, the interrupts, the routes, the bus, the
/// thread of posted changes.
struct Register {
    doorbell: Arc<Doorbell>,
    interrupts: Vec<IrqTrigger>,
    level: LevelInput,
    /// The guest programs this one: each time takes the routes' lock.
    vector: MsiVector,
    writes: AtomicUsize,
    poster: Poster,
    bus: Arc<Bus>,
    stop: Stop,
    is_gone: AtomicBool,
    late: Arc<AtomicUsize>,
}

impl BusDevice for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        pass(&self.stop);
        if self.is_gone.load(Ordering::SeqCst) {
            self.late.fetch_add(1, Ordering::SeqCst);
        }
        self.doorbell.ring();
        let _ = self.doorbell.address();
        self.interrupts.iter().for_each(IrqTrigger::trigger);
        let count = self.writes.fetch_add(1, Ordering::SeqCst);
        self.level.set(count.is_multiple_of(2));
        self.vector.mask().unwrap();
        self.vector.set_message(message(count)).unwrap();
        self.vector.unmask().unwrap();
        let bus = Arc::clone(&self.bus);
        // Somebody else takes the device away at the same time: one of the two finds nothing.
        let remove = move || drop(bus.remove(REGISTER).map(Retired::wait));
        let _ = self.poster.post(remove);
    }
}

fn message(count: usize) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data: u32::try_from(count).unwrap() }
}

/// What the device has of interrupts, beside what is its register's.
type Interrupts = (IrqLine, LevelLine, MsiVector);

/// A device on a bus, with its worker's handler, its doorbell and its interrupts.
struct Device {
    machine: Arc<Machine>,
    register: Arc<Register>,
    doorbell: Arc<Doorbell>,
    handler: Mutex<Option<Handler>>,
    interrupts: Mutex<Option<Interrupts>>,
    late: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
}

/// The parts of a teardown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Doorbell,
    Interrupts,
    Handler,
    Bus,
}

impl Step {
    const ALL: [Self; 4] = [Self::Doorbell, Self::Interrupts, Self::Handler, Self::Bus];

    /// Whether it has to wait for those who are in the device.
    fn waits(self) -> bool {
        matches!(self, Self::Handler | Self::Bus)
    }
}

/// Every order of the four.
fn orders() -> Vec<[Step; 4]> {
    let all = (0..256_usize).map(|number| [0, 2, 4, 6].map(|shift| Step::ALL[number >> shift & 3]));
    let orders: Vec<_> = all.filter(|order| Step::ALL.iter().all(|step| order.contains(step))).collect();
    assert_eq!(orders.len(), 24);
    orders
}

impl Device {
    fn new(machine: &Arc<Machine>, in_register: Stop, in_handler: Stop) -> Arc<Self> {
        let Machine { vm, router, bus, worker, reconfigure } = &**machine;
        let host: Arc<dyn DoorbellFds> = Arc::clone(vm) as _;
        let doorbell = Arc::new(Doorbell::new(Some(host), REGISTER).unwrap());
        let late = Arc::<AtomicUsize>::default();
        let vector = || router.msi_vector("device", TriggeredBy::UserSpace).unwrap();
        let interrupts: Interrupts = (
            router.edge_line(EDGE_PIN, "device").unwrap(),
            router.level_line(LEVEL_PIN, "device").unwrap(),
            vector(),
        );
        interrupts.2.set_message(message(0)).unwrap();
        interrupts.2.unmask().unwrap();
        let vector = vector();
        let triggers = vec![interrupts.0.trigger(), interrupts.2.trigger(), vector.trigger()];
        let register = Arc::new(Register {
            doorbell: Arc::clone(&doorbell),
            interrupts: triggers.clone(),
            level: interrupts.1.input(),
            vector,
            writes: AtomicUsize::new(0),
            poster: reconfigure.poster(),
            bus: Arc::clone(bus),
            stop: in_register,
            is_gone: AtomicBool::new(false),
            late: Arc::clone(&late),
        });
        bus.insert(REGISTER, 4, "register", Arc::clone(&register) as Arc<dyn BusDevice>).unwrap();
        let served = Arc::<AtomicUsize>::default();
        let serve = {
            // What a queue needs: its doorbell to ring it again, its interrupts, the bus as a DMA engine would.
            let (doorbell, bus, served) = (Arc::clone(&doorbell), Arc::clone(bus), Arc::clone(&served));
            let level = interrupts.1.input();
            move |_| {
                pass(&in_handler);
                let _ = doorbell.address();
                triggers.iter().for_each(IrqTrigger::trigger);
                level.set(true);
                bus.read(OTHER, 1, &mut [0]);
                level.set(false);
                served.fetch_add(1, Ordering::SeqCst);
                Progress::Done
            }
        };
        let handler = worker.add("device", doorbell.eventfd(), serve, || ()).unwrap();
        let (space, address) = (DoorbellSpace::Mmio, REGISTER);
        doorbell.rebind(DoorbellAddress { space, address, width: 4, datamatch: None }).unwrap();
        Arc::new(Self {
            machine: Arc::clone(machine),
            register,
            doorbell,
            handler: Mutex::new(Some(handler)),
            interrupts: Mutex::new(Some(interrupts)),
            late,
            served,
        })
    }

    fn write(&self) {
        drop(self.machine.bus.write(REGISTER, 4, &[0; 4]));
    }

    fn take_apart(&self, order: [Step; 4], done: impl Fn(Step)) {
        for step in order {
            self.take(step);
            done(step);
        }
    }

    fn take(&self, step: Step) {
        match step {
            Step::Doorbell => self.doorbell.unbind(),
            Step::Interrupts => {
                let interrupts = lock(&self.interrupts).take();
                drop(interrupts);
            }
            Step::Handler => {
                let handler = lock(&self.handler).take();
                handler.unwrap().remove().unwrap();
                let served = self.served.load(Ordering::SeqCst);
                self.doorbell.ring();
                assert_eq!(self.served.load(Ordering::SeqCst), served);
            }
            Step::Bus => {
                // The register may have had itself removed: then somebody else waits, and this waits with him.
                match self.machine.bus.remove(REGISTER) {
                    Ok(retired) => retired.wait().unwrap(),
                    Err(_) => self.machine.change_bus_and_wait(),
                }
                self.register.is_gone.store(true, Ordering::SeqCst);
            }
        }
    }

    /// To be called by the last who has it: what was the device's is nowhere.
    fn ensure_gone(self: Arc<Self>) {
        let Self { machine, register, doorbell, late, .. } = Arc::into_inner(self).unwrap();
        machine.end_changes();
        assert_eq!(late.load(Ordering::SeqCst), 0);
        let unclaimed = machine.bus.unclaimed();
        let _ = machine.bus.write(REGISTER, 4, &[0; 4]);
        assert_eq!(machine.bus.unclaimed(), unclaimed + 1);
        // Tables that nobody waited for go a little later.
        while Arc::strong_count(&register) != 1 {
            thread::yield_now();
        }
        drop(register);
        assert_eq!(Arc::strong_count(&doorbell), 1);
        let vm = &machine.vm;
        assert_eq!((vm.doorbells(), vm.irqfds(), vm.routes()), (vec![], vec![], vec![]));
    }
}

/// A place to stop, and the other ends of it: who waits for the arrival, who lets go.
fn stop() -> (Stop, Receiver<()>, Sender<()>) {
    let ((here, arrived), (go, wait)) = (channel(), channel());
    (Some((here, Mutex::new(wait))), arrived, go)
}

#[test]
fn a_device_is_taken_apart_in_every_order_around_a_vcpu_and_a_worker_that_are_in_it() {
    let _alone = alone();
    let before = Held::now();
    for order in orders() {
        for register_first in [true, false] {
            let machine = Machine::new();
            let (in_register, register_reached, leave_register) = stop();
            let (in_handler, handler_reached, leave_handler) = stop();
            let device = Device::new(&machine, in_register, in_handler);
            let (end, ended) = channel();
            let run = |work: Box<dyn FnOnce(&Device) + Send>| {
                let (device, end) = (Arc::clone(&device), end.clone());
                thread::spawn(move || {
                    work(&device);
                    drop(device);
                    end.send(()).unwrap();
                })
            };
            device.doorbell.ring();
            handler_reached.recv_timeout(DEADLINE).unwrap();
            let mut threads = vec![run(Box::new(Device::write))];
            register_reached.recv_timeout(DEADLINE).unwrap();
            let (taken, took) = channel();
            threads.push(run(Box::new(move |device| {
                device.take_apart(order, |step| taken.send(step).unwrap());
            })));
            // A second change waits at the same time, and for the same vCPU.
            threads.push(run(Box::new(|device| device.machine.change_bus_and_wait())));
            // Deassigning waits for nobody who is in the device.
            for step in order.into_iter().take_while(|step| !step.waits()) {
                assert_eq!(took.recv_timeout(DEADLINE), Ok(step), "{order:?}");
            }
            let both = [leave_register, leave_handler];
            let [first, second] = if register_first { [0, 1] } else { [1, 0] };
            let [mut register, mut handler] = both.map(Some);
            for which in [first, second] {
                drop(if which == 0 { register.take() } else { handler.take() });
                thread::yield_now();
            }
            for _ in &threads {
                assert!(ended.recv_timeout(DEADLINE).is_ok(), "{order:?}: deadlock");
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            device.ensure_gone();
        }
    }
    before.ensure_again("afterwards");
}

/// The same without stops, whoever comes first: one lap.
fn take_apart_again_and_again() {
    let (machine, orders) = (Machine::new(), orders());
    let (begin, end) = (Barrier::new(3), Barrier::new(3));
    let current: Mutex<Option<Arc<Device>>> = Mutex::new(None);
    // `None`: it is over.
    let each_round = |act: fn(&Device)| {
        loop {
            begin.wait();
            let Some(device) = lock(&current).clone() else { return };
            act(&device);
            drop(device);
            end.wait();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| each_round(|device| (0..3).for_each(|_| device.write())));
        scope.spawn(|| {
            each_round(|device| {
                device.doorbell.ring();
                // Two changes wait at once.
                device.machine.change_bus_and_wait();
            });
        });
        for round in 0..LAP {
            let device = Device::new(&machine, None, None);
            *lock(&current) = Some(Arc::clone(&device));
            begin.wait();
            device.take_apart(orders[round % orders.len()], |_| ());
            end.wait();
            *lock(&current) = None;
            device.ensure_gone();
        }
        begin.wait();
    });
}

#[test]
fn a_device_is_taken_apart_100_000_times_while_vcpus_and_its_worker_use_it() {
    let _alone = alone();
    let before = Held::now();
    let (lap, laps) = channel();
    let rounds = [(); MACHINES].map(|()| {
        let lap = lap.clone();
        thread::spawn(move || {
            for _ in 0..LAPS / MACHINES {
                take_apart_again_and_again();
                lap.send(()).unwrap();
            }
        })
    });
    drop(lap);
    for lap in 0..LAPS {
        assert!(laps.recv_timeout(DEADLINE).is_ok(), "deadlock or failure in lap {lap}");
    }
    rounds.into_iter().for_each(|rounds| rounds.join().unwrap());
    before.ensure_again("afterwards");
}
