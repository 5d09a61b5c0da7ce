//! Taking a device apart while it is in use: a vCPU is in its register, its worker is in its handler, and somebody else waits
//! for a change of the same bus. Nobody may wait for somebody who waits for him.

#![cfg(test)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use vmm_core::fake::FakeVm;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Retired, VmEvents};
use vmm_devices::{Bus, BusDevice, Doorbell, Handler, Poster, Progress, Reconfigure, Worker};

const REGISTER: u64 = 0x1000;
const OTHER: u64 = 0x2000;

/// Far more than a step takes; what has not come then waits for ever.
const DEADLINE: Duration = Duration::from_secs(60);

/// Rounds of the stress tests: all of them where the environment says so.
fn rounds() -> usize {
    if std::env::var_os("VMM_STRESS").is_some() { 100_000 } else { 1_000 }
}

/// Where a thread says that it has come, and waits until it may go on. `None`: it goes on.
type Stop = Option<(Sender<()>, Mutex<Receiver<()>>)>;

fn pass(stop: &Stop) {
    if let Some((here, go)) = stop {
        // Both ends go when the test is over.
        let _ = here.send(());
        let _ = go.lock().unwrap().recv();
    }
}

/// The register of the device. A write needs what a device needs: the bus, the doorbell, the thread of posted changes.
struct Register {
    doorbell: Arc<Doorbell>,
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
        let bus = Arc::clone(&self.bus);
        // Somebody else takes the device away at the same time: one of the two finds nothing.
        let remove = move || drop(bus.remove(REGISTER).map(Retired::wait));
        let _ = self.poster.post(remove);
    }
}

/// A register with nothing behind it.
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// A device on a bus with its worker and its doorbell.
struct World {
    vm: Arc<FakeVm>,
    bus: Arc<Bus>,
    register: Arc<Register>,
    doorbell: Arc<Doorbell>,
    handler: Mutex<Option<Handler>>,
    late: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    worker: Worker,
    reconfigure: Reconfigure,
}

/// The parts of a teardown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Doorbell,
    Handler,
    Bus,
}

const ORDERS: [[Step; 3]; 6] = [
    [Step::Doorbell, Step::Handler, Step::Bus],
    [Step::Doorbell, Step::Bus, Step::Handler],
    [Step::Handler, Step::Doorbell, Step::Bus],
    [Step::Handler, Step::Bus, Step::Doorbell],
    [Step::Bus, Step::Doorbell, Step::Handler],
    [Step::Bus, Step::Handler, Step::Doorbell],
];

impl World {
    fn new(in_register: Stop, in_handler: Stop) -> Arc<Self> {
        let events = VmEvents::new().unwrap();
        let vm = Arc::new(FakeVm::default());
        let host: Arc<dyn DoorbellFds> = Arc::clone(&vm) as _;
        let doorbell = Arc::new(Doorbell::new(Some(host), REGISTER).unwrap());
        let (bus, late) = (Arc::new(Bus::new("test")), Arc::<AtomicUsize>::default());
        let reconfigure = Reconfigure::new(events.clone());
        let register = Arc::new(Register {
            doorbell: Arc::clone(&doorbell),
            poster: reconfigure.poster(),
            bus: Arc::clone(&bus),
            stop: in_register,
            is_gone: AtomicBool::new(false),
            late: Arc::clone(&late),
        });
        bus.insert(REGISTER, 4, "register", Arc::clone(&register) as Arc<dyn BusDevice>).unwrap();
        bus.insert(OTHER, 4, "other", Arc::new(Nothing)).unwrap();
        let worker = Worker::spawn("test", events).unwrap();
        let served = Arc::<AtomicUsize>::default();
        let serve = {
            // What a queue needs: its doorbell to ring it again, the bus as a DMA engine would.
            let (doorbell, bus, served) = (Arc::clone(&doorbell), Arc::clone(&bus), Arc::clone(&served));
            move |_| {
                pass(&in_handler);
                let _ = doorbell.address();
                bus.read(OTHER, 1, &mut [0]);
                served.fetch_add(1, Ordering::SeqCst);
                Progress::Done
            }
        };
        let handler = worker.add("register", doorbell.eventfd(), serve, || ()).unwrap();
        let address =
            DoorbellAddress { space: DoorbellSpace::Mmio, address: REGISTER, width: 4, datamatch: None };
        doorbell.rebind(address).unwrap();
        let handler = Mutex::new(Some(handler));
        Arc::new(Self { vm, bus, register, doorbell, handler, late, served, worker, reconfigure })
    }

    fn take_apart(&self, order: [Step; 3]) {
        for step in order {
            match step {
                Step::Doorbell => self.doorbell.unbind(),
                Step::Handler => {
                    let handler = self.handler.lock().unwrap().take();
                    handler.unwrap().remove().unwrap();
                    let served = self.served.load(Ordering::SeqCst);
                    self.doorbell.ring();
                    assert_eq!(self.served.load(Ordering::SeqCst), served);
                }
                Step::Bus => {
                    // The register may have had itself removed: then somebody else waits, and this waits with him.
                    match self.bus.remove(REGISTER) {
                        Ok(retired) => retired.wait().unwrap(),
                        Err(_) => self.bus.move_range(OTHER, OTHER).unwrap().wait().unwrap(),
                    }
                    self.register.is_gone.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    fn ensure_gone(self: Arc<Self>) {
        assert_eq!(self.vm.doorbells(), []);
        assert_eq!(self.late.load(Ordering::SeqCst), 0);
        self.bus.write(REGISTER, 4, &[0; 4]);
        assert!(self.bus.unclaimed() >= 1);
        let World { register, worker, reconfigure, .. } = Arc::into_inner(self).unwrap();
        drop(worker);
        drop(reconfigure);
        // Tables that nobody waited for go a little later.
        while Arc::strong_count(&register) != 1 {
            thread::yield_now();
        }
    }
}

/// A place to stop, and the other ends of it: who waits for the arrival, who lets go.
fn stop() -> (Stop, Receiver<()>, Sender<()>) {
    let ((here, arrived), (go, wait)) = (channel(), channel());
    (Some((here, Mutex::new(wait))), arrived, go)
}

#[test]
fn a_device_is_taken_apart_in_every_order_around_a_vcpu_and_a_worker_that_are_in_it() {
    for order in ORDERS {
        for register_first in [true, false] {
            let (in_register, register_reached, leave_register) = stop();
            let (in_handler, handler_reached, leave_handler) = stop();
            let world = World::new(in_register, in_handler);
            let (end, ended) = channel();
            let run = |work: Box<dyn FnOnce(&World) + Send>| {
                let (world, end) = (Arc::clone(&world), end.clone());
                thread::spawn(move || {
                    work(&world);
                    drop(world);
                    end.send(()).unwrap();
                })
            };
            world.doorbell.ring();
            handler_reached.recv_timeout(DEADLINE).unwrap();
            let mut threads = vec![run(Box::new(|world| drop(world.bus.write(REGISTER, 4, &[0; 4]))))];
            register_reached.recv_timeout(DEADLINE).unwrap();
            threads.push(run(Box::new(move |world| world.take_apart(order))));
            // A second change waits at the same time, and for the same vCPU.
            threads.push(run(Box::new(|world| {
                world.bus.move_range(OTHER, OTHER).unwrap().wait().unwrap();
            })));
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
            world.ensure_gone();
        }
    }
}

/// The same without stops: whoever comes first, again and again.
#[test]
fn a_device_is_taken_apart_while_vcpus_and_its_worker_use_it_again_and_again() {
    for round in 0..rounds() {
        let world = World::new(None, None);
        let start = Barrier::new(4);
        thread::scope(|scope| {
            let (world, start) = (&world, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..3 {
                    drop(world.bus.write(REGISTER, 4, &[0; 4]));
                }
            });
            scope.spawn(move || {
                start.wait();
                world.doorbell.ring();
                // Two changes wait at once.
                world.bus.move_range(OTHER, OTHER).unwrap().wait().unwrap();
            });
            scope.spawn(move || {
                start.wait();
                world.take_apart(ORDERS[round % ORDERS.len()]);
            });
            start.wait();
        });
        world.ensure_gone();
    }
}
