//! A device behind PCI registers, against a driver that reads and writes them.

mod kernel;

use std::sync::Mutex;

use proptest::prelude::*;
use vmm_core::VmEvents;
use vmm_core::fake::FakeVm;
use vmm_core::irq::{IrqOptions, IrqRouter, TriggeredBy};
use vmm_memory::AddressSpace;

use super::interrupts::NO_VECTOR;
use super::*;
use crate::Worker;
use crate::pci::PciRoot;
use crate::pci::testing::{TestHost, finish};
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, ram};
use crate::virtio::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::virtio::{ActivateError, Activation, Running, Stopped, features};

/// Where the function is in configuration space: it is the first behind the bridge.
const FUNCTION: u8 = 1 << 3;
const COMMAND: usize = 4;
const BAR0: usize = 0x10;

/// Offsets of registers.
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;

/// Where the rings are.
const RINGS: u64 = 0x10_0000;

/// A function on a bus, and what its driver has of it.
struct Machine {
    host: TestHost,
    vm: Arc<FakeVm>,
    root: PciRoot,
    address: crate::pci::PciAddress,
    memory: Arc<AddressSpace>,
}

impl Machine {
    fn new(device: Arc<dyn VirtioDevice>) -> Self {
        Self::with_vm(device, Arc::new(FakeVm::default()))
    }

    fn with_vm(device: Arc<dyn VirtioDevice>, vm: Arc<FakeVm>) -> Self {
        Self::with_vectors(device, vm, TriggeredBy::UserSpace)
    }

    fn with_vectors(device: Arc<dyn VirtioDevice>, vm: Arc<FakeVm>, by: TriggeredBy) -> Self {
        let (host, memory) = (TestHost::new(), ram());
        let router = IrqRouter::new(Arc::clone(&vm) as _, IrqOptions::all());
        let vectors = router.msix_table("test", vectors(&*device), by).unwrap();
        let setup = PciSetup {
            name: "test",
            host: host.host(),
            memory: MemoryReader::new(Arc::clone(&memory)),
            vectors,
            doorbells: Some(Arc::clone(&vm) as _),
        };
        let root = PciRoot::new(&host.host()).unwrap();
        let address = root.insert(function(device, setup).unwrap()).unwrap();
        assert_eq!(address, crate::pci::PciAddress::from_bits(FUNCTION));
        let machine = Self { host, vm, root, address, memory };
        machine.configure(COMMAND, &[6, 0]);
        machine
    }

    fn configuration<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0xff; N];
        self.root.read(self.address, offset, &mut data);
        data
    }

    fn configure(&self, offset: usize, data: &[u8]) {
        finish(self.root.write(self.address, offset, data));
    }

    fn bar(&self) -> u64 {
        u32::from_le_bytes(self.configuration(BAR0)).into()
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.host.bus.read(self.bar() + offset, N, &mut data);
        data
    }

    fn write(&self, offset: u64, data: &[u8]) {
        assert!(self.host.bus.write(self.bar() + offset, data.len(), data).is_none());
    }

    fn load(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn store(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    /// A reset, as drivers do it: the end is when the status is 0.
    fn reset(&self) {
        self.write(STATUS, &[0]);
        while self.status() != 0 {
            std::thread::yield_now();
        }
    }

    /// Negotiates the features of the transport.
    fn negotiate(&self) {
        self.write(STATUS, &[ACKNOWLEDGE]);
        self.write(STATUS, &[ACKNOWLEDGE | DRIVER]);
        for page in 0..2u32 {
            self.write(0, &page.to_le_bytes());
            self.write(8, &page.to_le_bytes());
            let offered: [u8; 4] = self.read(4);
            self.write(0xc, &offered);
        }
        self.write(STATUS, &[ACKNOWLEDGE | DRIVER | FEATURES_OK]);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Sets queue `index` up as `driver` has it, with vector `index + 1`.
    fn set_up(&self, driver: &Driver) {
        let setup = driver.setup();
        let index = u16::try_from(setup.index).unwrap();
        self.store(QUEUE_SELECT, index);
        self.store(QUEUE_SIZE, setup.size);
        for (offset, address) in
            [(0x20, setup.descriptor_table), (0x28, setup.available_ring), (0x30, setup.used_ring)]
        {
            let [low, high] = [address as u32, (address >> 32) as u32];
            self.write(offset, &low.to_le_bytes());
            self.write(offset + 4, &high.to_le_bytes());
        }
        self.store(QUEUE_VECTOR, index + 1);
        assert_eq!(self.load(QUEUE_VECTOR), index + 1);
        self.store(QUEUE_ENABLE, 1);
        assert_eq!(self.load(QUEUE_ENABLE), 1);
    }

    fn start(&self) {
        self.write(STATUS, &[ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK]);
    }

    /// Turns MSI-X on, with message `data` of vector 0, and of the others those that follow.
    fn open_vectors(&self, count: u64, data: u32) {
        for (vector, data) in (0..count).zip(data..) {
            let row = layout::MSIX_TABLE.start + 16 * vector;
            for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, data), (12, 0)] {
                self.write(row + offset, &u32::to_le_bytes(value));
            }
        }
        self.set_msix(0x8000);
    }

    fn set_msix(&self, control: u16) {
        let at = self.capability(|kind, _| kind == Msix::CAPABILITY);
        self.configure(at + 2, &control.to_le_bytes());
    }

    /// Where the first capability is that `is_it` takes, by id and virtio's kind.
    fn capability(&self, is_it: impl Fn(u8, u8) -> bool) -> usize {
        let [mut at] = self.configuration(0x34);
        while at != 0 {
            let [id, next, _, kind] = self.configuration(at.into());
            if is_it(id, kind) {
                return at.into();
            }
            at = next;
        }
        panic!("no such capability");
    }

    /// Signals of the vector whose message is `data`.
    fn interrupts(&self, data: u32) -> u64 {
        let routes = self.vm.routes();
        routes.iter().find(|route| route.1.data == data).map_or(0, |route| self.vm.signals(route.0))
    }
}

fn rng() -> Arc<dyn VirtioDevice> {
    Arc::new(Rng::new(Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap())))
}

/// A device of two queues that stops when a test says so.
#[derive(Default)]
struct Held {
    stops: Arc<Mutex<Vec<Stopped>>>,
    starts: Mutex<Vec<Vec<usize>>>,
}

struct RunningHeld(Arc<Mutex<Vec<Stopped>>>);

impl VirtioDevice for Held {
    fn device_type(&self) -> u32 {
        5
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config(&[1, 2, 3, 4, 5], offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let queues = activation.queues.iter().map(|queue| queue.index).collect();
        self.starts.lock().unwrap().push(queues);
        Ok(Box::new(RunningHeld(Arc::clone(&self.stops))))
    }
}

impl Running for RunningHeld {
    fn stop(self: Box<Self>, done: Stopped) {
        self.0.lock().unwrap().push(done);
    }
}

impl Held {
    fn let_go(&self) -> usize {
        let stops = std::mem::take(&mut *self.stops.lock().unwrap());
        let count = stops.len();
        stops.into_iter().for_each(|done| done(Vec::new()));
        count
    }
}

#[test]
fn a_driver_finds_device_and_parts_by_configuration_space() {
    let machine = Machine::new(rng());
    assert_eq!(machine.configuration(0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(machine.configuration(8), [1]);
    for (kind, part, length) in [
        (1, layout::COMMON, 16),
        (2, layout::NOTIFICATIONS, 20),
        (3, layout::ISR, 16),
        (4, layout::DEVICE, 16),
        (5, 0..0, 20),
    ] {
        let at = machine.capability(|id, found| (id, found) == (9, kind));
        let [_, _, cap_len, cfg_type, bar, id, _, _] = machine.configuration(at);
        assert_eq!((cap_len, cfg_type, bar, id), (length, kind, 0, 0));
        assert_eq!(u64::from(u32::from_le_bytes(machine.configuration(at + 8))), part.start);
        assert_eq!(u64::from(u32::from_le_bytes(machine.configuration(at + 12))), part.end - part.start);
        if kind == 2 {
            assert_eq!(u32::from_le_bytes(machine.configuration(at + 16)), 4);
        }
    }
}

#[test]
fn a_request_is_served_and_interrupts_by_the_vector_of_its_queue() {
    let machine = Machine::new(rng());
    machine.open_vectors(2, 0x50);
    for _ in 0..3 {
        let mut driver = Driver::new(&machine.memory, 0, 16, RINGS);
        // The rings are the last driver's.
        driver.set_available_index(0);
        driver.write(driver.setup().used_ring, &[0; 4]);
        machine.negotiate();
        machine.set_up(&driver);
        machine.start();
        let request = driver.submit(&[], &[64]);
        machine.store(layout::NOTIFICATIONS.start, 0);
        let used = loop {
            if let Some(used) = driver.take_used() {
                break used;
            }
            std::thread::yield_now();
        };
        assert_eq!((used.head, used.written), (request.head.into(), 64));
        while machine.interrupts(0x51) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(machine.interrupts(0x50), 0);
        machine.reset();
        assert_eq!(machine.load(QUEUE_VECTOR), NO_VECTOR);
    }
}

#[test]
fn fault_b6_the_status_stays_until_the_device_has_stopped_and_then_all_is_as_in_the_beginning() {
    let device = Arc::new(Held::default());
    let machine = Machine::new(Arc::clone(&device) as _);
    for round in 1..=3 {
        machine.negotiate();
        for index in 0..2 {
            machine.set_up(&Driver::new(&machine.memory, index, 8, RINGS + 0x4_0000 * index as u64));
        }
        machine.start();
        assert_eq!(*device.starts.lock().unwrap(), vec![vec![0, 1]; round]);
        let running = machine.status();
        // A storm of resets is one.
        (0..10).for_each(|_| machine.write(STATUS, &[0]));
        assert_eq!((machine.status(), machine.load(QUEUE_ENABLE)), (running, 1));
        machine.write(STATUS, &[ACKNOWLEDGE]);
        assert_eq!(machine.status(), running);
        assert_eq!(device.let_go(), 1);
        assert_eq!(
            (machine.status(), machine.load(QUEUE_ENABLE), machine.load(QUEUE_VECTOR)),
            (0, 0, NO_VECTOR)
        );
    }
}

#[test]
fn fault_b3_only_steps_in_order_are_taken_and_0_always_resets() {
    let machine = Machine::new(rng());
    for bad in [DRIVER, FEATURES_OK, DRIVER_OK, 0xff, NEEDS_RESET, ACKNOWLEDGE | DRIVER | DRIVER_OK] {
        machine.write(STATUS, &[bad]);
        assert_eq!(machine.status(), 0, "{bad:#x}");
    }
    machine.write(STATUS, &[ACKNOWLEDGE | DRIVER]);
    machine.write(STATUS, &[ACKNOWLEDGE]);
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER, "no bit is taken back");
    machine.write(STATUS, &[ACKNOWLEDGE | DRIVER | FAILED]);
    machine.write(STATUS, &[ACKNOWLEDGE | DRIVER | FAILED | FEATURES_OK]);
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER | FAILED);
    machine.reset();
    machine.negotiate();
    // No queue is enabled.
    machine.start();
    assert_eq!(machine.status() & NEEDS_RESET, NEEDS_RESET);
    machine.reset();
}

#[test]
fn fault_b4_features_that_are_not_offered_stay_out_and_version_1_is_needed() {
    let machine = Machine::new(rng());
    machine.write(STATUS, &[ACKNOWLEDGE | DRIVER]);
    for page in [0u32, 1, 2, 33, u32::MAX] {
        machine.write(0, &page.to_le_bytes());
        machine.write(8, &page.to_le_bytes());
        // All but VERSION_1, bit 32.
        let all = if page == 1 { !1u32 } else { !0 };
        machine.write(0xc, &all.to_le_bytes());
        let offered =
            if page < 2 { (features::OF_TRANSPORT | features::RING_RESET) >> (32 * page) } else { 0 };
        assert_eq!(u32::from_le_bytes(machine.read(4)), offered as u32);
        assert_eq!(u32::from_le_bytes(machine.read(0xc)), offered as u32 & all);
    }
    machine.write(STATUS, &[ACKNOWLEDGE | DRIVER | FEATURES_OK]);
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn fault_b5_queues_and_vectors_that_are_not_there_are_none() {
    let machine = Machine::new(Arc::new(Held::default()));
    machine.negotiate();
    assert_eq!(machine.load(0x12), 2);
    for index in [2, 3, 0x7fff, 0xffff] {
        machine.store(QUEUE_SELECT, index);
        for (register, value) in [(QUEUE_SIZE, 8), (QUEUE_VECTOR, 0), (QUEUE_ENABLE, 1)] {
            machine.store(register, value);
        }
        machine.write(0x20, &[0xff; 4]);
        let registers = [QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, 0x1e, 0x20, 0x3a];
        assert_eq!(registers.map(|register| machine.load(register)), [index, 0, NO_VECTOR, 0, 0, 0, 0]);
    }
    machine.store(QUEUE_SELECT, 1);
    assert_eq!((machine.load(QUEUE_SIZE), machine.load(0x1e)), (16, 1));
    for (register, vector, expected) in
        [(QUEUE_VECTOR, 2, 2), (QUEUE_VECTOR, 3, NO_VECTOR), (0x10, 1, 1), (0x10, 0xfffe, NO_VECTOR)]
    {
        machine.store(register, vector);
        assert_eq!(machine.load(register), expected);
    }
    assert_eq!(machine.read::<8>(layout::MSIX_TABLE.start + 3 * 16), [0; 8]);
}

#[test]
fn fault_b1_registers_have_their_own_width_and_gaps_read_as_zero() {
    let machine = Machine::new(Arc::new(Held::default()));
    machine.negotiate();
    let before: [u8; 4] = machine.read(STATUS - 2);
    assert_eq!(before, [0; 4], "num_queues and status, read as one");
    for (offset, length) in [
        (STATUS, 2),
        (STATUS - 1, 2),
        (STATUS, 4),
        (0, 1),
        (0, 2),
        (8, 8),
        (0x20, 8),
        (2, 4),
        (QUEUE_SIZE, 1),
    ] {
        machine.write(offset, &vec![0; length]);
    }
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    for gap in [0x40, 0xfc, 0x104, 0xff8, 0x5000, 0x7ff8] {
        machine.write(gap, &[0xff; 8]);
        assert_eq!(machine.read::<8>(gap), [0; 8], "{gap:#x}");
    }
}

#[test]
fn fault_b2_beyond_the_configuration_of_the_device_all_is_zero() {
    let machine = Machine::new(Arc::new(Held::default()));
    let at = layout::DEVICE.start;
    assert_eq!(machine.read::<8>(at), [1, 2, 3, 4, 5, 0, 0, 0]);
    assert_eq!((machine.read::<2>(at + 4), machine.read::<4>(at + 0xffc)), ([5, 0], [0; 4]));
    machine.write(at + 0xffe, &[1; 4]);
    assert_eq!(machine.read::<4>(at + 0xffe), [0; 4]);
}

#[test]
fn without_msix_the_isr_status_says_it_and_a_read_clears_it() {
    let machine = Machine::new(rng());
    machine.negotiate();
    machine.start();
    assert_eq!(machine.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(machine.read::<1>(layout::ISR.start), [2]);
    assert_eq!(machine.read::<1>(layout::ISR.start), [0]);
}

#[test]
fn a_vector_that_is_masked_keeps_its_interrupt() {
    let machine = Machine::new(rng());
    machine.open_vectors(2, 0x60);
    machine.store(0x10, 0);
    machine.set_msix(0xc000);
    machine.negotiate();
    machine.start();
    assert_eq!(machine.interrupts(0x60), 0);
    assert_eq!(machine.read::<4>(layout::MSIX_PENDING.start), [1, 0, 0, 0]);
    machine.set_msix(0x8000);
    assert_eq!((machine.interrupts(0x60), machine.read::<1>(layout::ISR.start)), (1, [0]));
}

#[test]
fn a_route_that_the_host_refuses_needs_a_reset() {
    let machine = Machine::new(rng());
    machine.open_vectors(1, 0x60);
    machine.vm.fail_call(machine.vm.calls().len(), libc::EINVAL);
    machine.write(layout::MSIX_TABLE.start + 8, &[0x61, 0, 0, 0]);
    assert_eq!(machine.status(), NEEDS_RESET);
    machine.reset();
}

#[test]
fn notification_addresses_are_where_the_bar_is_and_nowhere_else() {
    let machine = Machine::new(Arc::new(Held::default()));
    let doorbells = |machine: &Machine| -> Vec<_> {
        machine.vm.doorbells().iter().map(|doorbell| (doorbell.address, doorbell.width)).collect()
    };
    let at = |bar: u64| vec![(bar + 0x4000, 0), (bar + 0x4004, 0)];
    assert_eq!(doorbells(&machine), at(machine.bar()));
    let moved = crate::pci::testing::WINDOW + 0x1_0000;
    machine.configure(BAR0, &(moved as u32).to_le_bytes());
    assert_eq!(doorbells(&machine), at(moved));
    machine.configure(COMMAND, &[0]);
    assert_eq!(doorbells(&machine), []);
    machine.configure(COMMAND, &[2]);
    machine.root.remove(machine.address).unwrap();
    assert_eq!(doorbells(&machine), []);
}

#[test]
fn a_device_whose_function_is_no_bus_master_does_not_start() {
    let device = Arc::new(Held::default());
    let machine = Machine::new(Arc::clone(&device) as _);
    machine.configure(COMMAND, &[2]);
    let start = || {
        machine.negotiate();
        machine.set_up(&Driver::new(&machine.memory, 0, 8, RINGS));
        machine.start();
        machine.status() & NEEDS_RESET != 0
    };
    assert!(start() && device.starts.lock().unwrap().is_empty());
    machine.configure(COMMAND, &[6]);
    assert!(device.starts.lock().unwrap().is_empty());
    machine.reset();
    assert!(!start());
    assert_eq!(*device.starts.lock().unwrap(), [[0]]);
}

#[test]
fn fault_b6_a_device_that_may_not_access_memory_any_more_stops_before_the_access_and_its_reset_end() {
    let device = Arc::new(Held::default());
    let machine = Machine::new(Arc::clone(&device) as _);
    machine.negotiate();
    machine.set_up(&Driver::new(&machine.memory, 0, 8, RINGS));
    machine.start();
    let access = machine.root.write(machine.address, COMMAND, &[2]).unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    access.on_complete(move || sender.send(()).unwrap());
    while device.stops.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    machine.write(STATUS, &[0]);
    assert!(machine.status() & NEEDS_RESET != 0 && ended.try_recv().is_err());
    assert_eq!(device.let_go(), 1);
    ended.recv().unwrap();
    assert_eq!(machine.status(), 0);
    machine.configure(COMMAND, &[6]);
    assert_eq!((machine.status(), device.let_go()), (0, 0));
}

#[test]
fn a_host_without_doorbells_of_any_width_has_those_of_16_bits_and_the_others_exit() {
    let vm = Arc::new(FakeVm::default());
    let vectors = 2;
    // After the irqfds of the vectors.
    vm.fail_call(vectors, libc::EINVAL);
    let machine = Machine::with_vm(rng(), vm);
    let address = machine.bar() + layout::NOTIFICATIONS.start;
    let doorbells = machine.vm.doorbells();
    assert_eq!(doorbells.iter().map(|at| (at.address, at.width)).collect::<Vec<_>>(), [(address, 2)]);
    let mut driver = Driver::new(&machine.memory, 0, 16, RINGS);
    machine.negotiate();
    machine.set_up(&driver);
    machine.start();
    driver.submit(&[], &[8]);
    machine.write(layout::NOTIFICATIONS.start, &[0; 4]);
    while driver.take_used().is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn fault_b7_a_doorbell_that_the_host_refuses_rings_by_exits() {
    let vm = Arc::new(FakeVm::default());
    let vectors = 2;
    // After the irqfds of the vectors.
    vm.fail_call(vectors, libc::ENOSPC);
    let machine = Machine::with_vm(rng(), vm);
    assert_eq!(machine.vm.doorbells(), []);
    let mut driver = Driver::new(&machine.memory, 0, 16, RINGS);
    machine.negotiate();
    machine.set_up(&driver);
    machine.start();
    driver.submit(&[], &[8]);
    for width in [2, 4] {
        machine.write(layout::NOTIFICATIONS.start, &vec![0; width]);
    }
    while driver.take_used().is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn the_registers_are_reached_through_configuration_space_without_the_bar() {
    let machine = Machine::new(rng());
    machine.configure(COMMAND, &[0]);
    let at = machine.capability(|id, kind| (id, kind) == (9, 5));
    machine.configure(at + 8, &(STATUS as u32).to_le_bytes());
    machine.configure(at + 12, &1u32.to_le_bytes());
    machine.configure(at + 16, &[ACKNOWLEDGE]);
    assert_eq!(machine.configuration::<1>(at + 16), [ACKNOWLEDGE]);
    machine.configure(COMMAND, &[2]);
    assert_eq!(machine.status(), ACKNOWLEDGE);
}

#[test]
fn a_device_that_does_not_fit_is_refused() {
    struct Large(Vec<u16>, u32);
    impl VirtioDevice for Large {
        fn device_type(&self) -> u32 {
            self.1
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
        fn write_config(&self, _offset: u64, _data: &[u8]) {}
        fn start(&self, _activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
            Ok(Box::new(RunningHeld(Arc::default())))
        }
    }
    let (host, memory, vm) = (TestHost::new(), ram(), Arc::new(FakeVm::default()));
    let make = |queues, device_type| {
        let router = IrqRouter::new(Arc::clone(&vm) as _, IrqOptions::all());
        let vectors = router.msix_table("test", 1, TriggeredBy::UserSpace).unwrap();
        let memory = MemoryReader::new(Arc::clone(&memory));
        let setup = PciSetup { name: "test", host: host.host(), memory, vectors, doorbells: None };
        function(Arc::new(Large(vec![2; queues], device_type)), setup)
    };
    assert!(matches!(make(layout::MAX_QUEUES + 1, 1), Err(VirtioPciError::TooMany { queues: 1025, .. })));
    assert!(matches!(make(1, 0x40), Err(VirtioPciError::Type(0x40))));
    assert!(make(1, 1).is_ok());
    assert_eq!(vectors(&Large(vec![2; 300], 1)), layout::MAX_VECTORS);
}

/// An access to the BAR.
fn accesses() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let offset = prop_oneof![
        4 => 0u64..0x40,
        1 => layout::ISR.start..layout::ISR.end,
        1 => layout::DEVICE.start..layout::DEVICE.start + 8,
        1 => layout::MSIX_TABLE.start..layout::MSIX_TABLE.start + 0x40,
        1 => layout::NOTIFICATIONS.start..layout::NOTIFICATIONS.start + 0x10,
        1 => 0..layout::LENGTH - 8,
    ];
    let byte = prop_oneof![Just(0), Just(1), Just(3), Just(0xb), Just(0xf), any::<u8>()];
    let data = prop_oneof![Just(1), Just(2), Just(4), Just(8), 1usize..9]
        .prop_flat_map(move |length| prop::collection::vec(byte.clone(), length));
    prop::collection::vec((offset, data), 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_is_written_a_reset_brings_the_device_back(accesses in accesses()) {
        let machine = Machine::new(rng());
        for (offset, data) in accesses {
            machine.write(offset, &data);
            let mut read = vec![0; data.len()];
            machine.host.bus.read(machine.bar() + offset, data.len(), &mut read);
        }
        machine.reset();
        let mut driver = Driver::new(&machine.memory, 0, 16, RINGS);
        machine.negotiate();
        machine.store(0x10, NO_VECTOR);
        machine.set_up(&driver);
        machine.start();
        driver.submit(&[], &[8]);
        machine.store(layout::NOTIFICATIONS.start, 0);
        while driver.take_used().is_none() {
            std::thread::yield_now();
        }
    }
}
