//! virtio-mmio from the driver's side, register by register.

use std::sync::mpsc::channel;

use vmm_core::VmEvents;
use vmm_core::fake::FakeVm;
use vmm_memory::AddressSpace;

use super::*;
use crate::virtio::features::{RING_RESET, VERSION_1};
use crate::virtio::queue::QueueState;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, Used, ram};
use crate::virtio::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use crate::{Bus, Worker};

const BASE: u64 = 0xd000_2000;

struct Machine {
    bus: Bus,
    vm: Arc<FakeVm>,
    trigger: IrqTrigger,
    memory: Arc<AddressSpace>,
}

impl Machine {
    /// A machine with an entropy device, with ioeventfds or without; without, the doorbells exit.
    fn new(ioeventfd: bool) -> Self {
        let (vm, memory) = (Arc::new(FakeVm::default()), ram());
        let trigger = IrqTrigger::unconnected().unwrap();
        let worker = Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap();
        let setup = MmioSetup {
            name: "rng",
            base: BASE,
            memory: MemoryReader::new(Arc::clone(&memory)),
            trigger: trigger.clone(),
            doorbells: ioeventfd.then(|| Arc::clone(&vm) as _),
        };
        let device = VirtioMmio::new(Arc::new(Rng::new(Arc::new(worker))), setup).unwrap();
        let bus = Bus::new("mmio");
        bus.insert(BASE, VirtioMmio::LENGTH, "rng", Arc::new(device)).unwrap();
        Self { bus, vm, trigger, memory }
    }

    fn load(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.bus.read(BASE + u64::from(register), 4, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&self, register: u32, value: u32) {
        self.wait(self.bus.write(BASE + u64::from(register), 4, &value.to_le_bytes()));
    }

    /// As a vCPU whose access is deferred.
    fn wait(&self, access: Option<Deferred>) {
        if let Some(access) = access {
            let (sender, ended) = channel();
            access.on_complete(move || sender.send(()).unwrap());
            ended.recv().unwrap();
        }
    }

    fn status(&self) -> u8 {
        self.load(VIRTIO_MMIO_STATUS) as u8
    }

    fn set_status(&self, status: u8) -> u8 {
        self.store(VIRTIO_MMIO_STATUS, status.into());
        self.status()
    }

    /// Up to FEATURES_OK.
    fn negotiate(&self, features: u64) {
        assert_eq!(self.set_status(0), 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for page in 0..2 {
            self.store(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.store(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        assert_eq!(self.set_status(status), status);
    }

    fn set_up(&self, queue: &QueueState) {
        self.store(VIRTIO_MMIO_QUEUE_SEL, queue.index as u32);
        self.store(VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, queue.descriptor_table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, queue.available_ring),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, queue.used_ring),
        ] {
            self.store(low, address as u32);
            self.store(high, (address >> 32) as u32);
        }
        self.store(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// The driver of a device that is ready, with fresh rings.
    fn start(&self) -> Driver {
        let driver = Driver::new(&self.memory, 0, 16, 0x1_0000);
        driver.write(driver.setup().available_ring, &[0; 4]);
        driver.write(driver.setup().used_ring, &[0; 4]);
        self.negotiate(VERSION_1 | RING_RESET);
        self.set_up(&driver.setup());
        let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(self.set_status(ready), ready);
        driver
    }

    /// One request, with the doorbell as an exit; waits until it is used.
    fn request(&self, driver: &mut Driver) -> Used {
        driver.submit(&[], &[8]);
        self.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        loop {
            match driver.take_used() {
                Some(used) => return used,
                None => std::thread::yield_now(),
            }
        }
    }
}

#[test]
fn a_driver_finds_an_entropy_device_and_gets_entropy() {
    let machine = Machine::new(false);
    assert_eq!(machine.load(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((machine.load(VIRTIO_MMIO_VERSION), machine.load(VIRTIO_MMIO_DEVICE_ID)), (2, 4));
    assert_eq!(machine.load(VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    let mut driver = machine.start();
    assert_eq!(machine.request(&mut driver), Used { head: 0, written: 8 });
    while machine.load(VIRTIO_MMIO_INTERRUPT_STATUS) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(machine.load(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    machine.store(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(machine.load(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn each_queue_has_a_doorbell_at_one_address_for_the_life_of_the_device() {
    let machine = Machine::new(true);
    let address =
        DoorbellAddress { space: DoorbellSpace::Mmio, address: BASE + 0x50, width: 4, datamatch: Some(0) };
    assert_eq!(machine.vm.doorbells(), [address]);
    let Machine { bus, vm, .. } = machine;
    drop(bus);
    assert_eq!(vm.doorbells(), []);
}

#[test]
fn fault_b1_other_widths_and_places_read_as_zero_and_change_nothing() {
    let machine = Machine::new(false);
    machine.start();
    let status = machine.status();
    for width in [1, 2, 8] {
        for offset in [0_u64, 0x10, 0x34, 0x70, 0xf8] {
            machine.wait(machine.bus.write(BASE + offset, width, &vec![0; width]));
            let mut data = vec![0xff; width];
            machine.bus.read(BASE + offset, width, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
        }
    }
    for offset in [0x01, 0x6f, 0x71, 0x72, 0x0c, 0x40, 0xf0] {
        machine.wait(machine.bus.write(BASE + offset, 4, &[0; 4]));
    }
    for gap in [0x18, 0x28, 0x3c, 0x54, 0x74, 0xc4, 0xf8] {
        assert_eq!(machine.load(gap), 0, "{gap:#x}");
    }
    // Over the end of the registers, and over the end of the device.
    machine.wait(machine.bus.write(BASE + 0xfe, 4, &[0xff; 4]));
    let mut data = [0; 8];
    machine.bus.read(BASE + 0x1fc, 8, &mut data);
    assert_eq!((data, machine.status()), ([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], status));
}

#[test]
fn fault_b2_the_configuration_is_zeros_to_its_end() {
    let machine = Machine::new(false);
    for (offset, width) in [(0x100, 1), (0x101, 2), (0x103, 4), (0x1f8, 8)] {
        machine.wait(machine.bus.write(BASE + offset, width, &vec![0xff; width]));
        let mut data = vec![0xff; width];
        machine.bus.read(BASE + offset, width, &mut data);
        assert_eq!(data, vec![0; width]);
    }
}

#[test]
fn fault_b5_a_queue_that_is_not_there_reads_as_zero() {
    let machine = Machine::new(false);
    machine.negotiate(VERSION_1);
    for index in [1, 2, 0x1_0000, u32::MAX] {
        machine
            .set_up(&QueueState { index: index as usize, ..Driver::new(&machine.memory, 0, 16, 0).setup() });
        let read = [VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, QUEUE_RESET].map(|r| machine.load(r));
        assert_eq!(read, [0; 3]);
        machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
}

#[test]
fn fault_a8_queues_that_cannot_be_leave_a_device_that_needs_a_reset() {
    let machine = Machine::new(false);
    let good = Driver::new(&machine.memory, 0, 16, 0x1_0000).setup();
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    for bad in [
        None,
        Some(QueueState::new(0, 16)),
        Some(QueueState { size: 0, ..good }),
        Some(QueueState { size: 3, ..good }),
        Some(QueueState { size: 512, ..good }),
        Some(QueueState { descriptor_table: 0x1_0001, ..good }),
        Some(QueueState { available_ring: u64::MAX - 1, ..good }),
        Some(QueueState { used_ring: good.available_ring & !3, ..good }),
        Some(QueueState { used_ring: BASE, ..good }),
    ] {
        let _ = machine.trigger.signals();
        machine.negotiate(VERSION_1);
        bad.iter().for_each(|queue| machine.set_up(queue));
        assert_eq!(machine.set_status(ready), ready | NEEDS_RESET, "{bad:?}");
        assert_eq!(machine.load(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(machine.trigger.signals(), 1);
        machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
    let mut driver = machine.start();
    assert_eq!(machine.load(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(machine.request(&mut driver).written, 8);
}

#[test]
fn fault_a10_a_notification_before_the_driver_is_ready_or_after_a_reset_has_no_effect() {
    let machine = Machine::new(false);
    machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    let mut driver = machine.start();
    machine.store(VIRTIO_MMIO_STATUS, 0);
    driver.submit(&[], &[8]);
    (0..100).for_each(|_| machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0));
    assert_eq!((machine.status(), driver.used_index()), (0, 0));
    let mut driver = machine.start();
    assert_eq!((machine.request(&mut driver).written, driver.used_index()), (8, 1));
}

#[test]
fn fault_b6_resets_under_load_end_and_the_device_is_as_new() {
    let machine = Machine::new(false);
    for round in 0..200 {
        let mut driver = machine.start();
        (0..16).for_each(|_| drop(driver.submit(&[], &[64])));
        machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        machine.store(VIRTIO_MMIO_STATUS, 0);
        let used = driver.used_index();
        assert_eq!((machine.status(), machine.load(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
        assert_eq!(machine.load(VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(driver.used_index(), used, "round {round}: used after the reset has ended");
    }
    let mut driver = machine.start();
    assert_eq!(machine.request(&mut driver).written, 8);
}

#[test]
fn fault_b6_every_vcpu_that_writes_zero_waits_for_the_same_reset() {
    let machine = Machine::new(false);
    for _ in 0..50 {
        let mut driver = machine.start();
        (0..16).for_each(|_| drop(driver.submit(&[], &[64])));
        machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    machine.store(VIRTIO_MMIO_STATUS, 0);
                    assert_eq!(machine.status(), 0);
                });
            }
        });
    }
}

#[test]
fn a_queue_that_is_reset_reads_so_until_it_has_stopped_and_starts_again() {
    let machine = Machine::new(false);
    let mut driver = machine.start();
    for _ in 0..20 {
        assert_eq!(machine.request(&mut driver).written, 8);
        machine.store(QUEUE_RESET, 1);
        while machine.load(QUEUE_RESET) == 1 {
            std::thread::yield_now();
        }
        assert_eq!(machine.load(VIRTIO_MMIO_QUEUE_READY), 0);
        driver = Driver::new(&machine.memory, 0, 16, 0x1_0000);
        driver.write(driver.setup().available_ring, &[0; 4]);
        driver.write(driver.setup().used_ring, &[0; 4]);
        machine.set_up(&driver.setup());
    }
    assert_eq!(machine.status() & NEEDS_RESET, 0);
}

#[test]
fn fault_a1_a_driver_that_breaks_its_ring_finds_needs_reset_and_a_reset_mends_it() {
    let machine = Machine::new(false);
    for _ in 0..3 {
        let driver = machine.start();
        let _ = machine.trigger.signals();
        driver.set_available_index(1000);
        machine.store(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        while machine.status() & NEEDS_RESET == 0 {
            std::thread::yield_now();
        }
        while machine.load(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG == 0 {
            std::thread::yield_now();
        }
    }
    let mut driver = machine.start();
    assert_eq!(machine.request(&mut driver).written, 8);
}

#[test]
fn fault_c1_a_device_without_a_doorbell_is_not_made() {
    let (vm, memory) = (Arc::new(FakeVm::default()), ram());
    vm.fail_call(0, libc::ENOSPC);
    let worker = Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap();
    let setup = MmioSetup {
        name: "rng",
        base: BASE,
        memory: MemoryReader::new(memory),
        trigger: IrqTrigger::unconnected().unwrap(),
        doorbells: Some(Arc::clone(&vm) as _),
    };
    let error = VirtioMmio::new(Arc::new(Rng::new(Arc::new(worker))), setup).err().unwrap();
    assert!(matches!(error, MmioError { device: "rng", source: DoorbellError::NoSpace { .. } }));
    assert_eq!(vm.doorbells(), []);
}
