//! A socket device that a vhost without a kernel serves.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_core::VmEvents;
use vmm_memory::{AddressSpace, Backing, Change, RamRange};
use vmm_sys_util::eventfd::EventFd;

use super::testing::FakeFd;
use super::{Backend, HandedVhost, VhostFd, VhostMemory};
use crate::Worker;
use crate::virtio::testing::{Driver, RAM, Started, ram};
use crate::virtio::vsock::KernelVsock;
use crate::virtio::{VirtioDevice, features};

const SIZE: u16 = 16;
const SEQPACKET: u64 = 1 << 1;
/// Where the receive ring is: in the last region, where nothing else is.
const RECEIVE: u64 = RAM[2].start;
const TRANSMIT: u64 = 0x1_0000;

#[test]
fn fault_c10_what_is_handed_over_and_is_something_else_is_refused() {
    for other in [tempfile::tempfile().unwrap(), std::fs::File::open("/dev/null").unwrap()] {
        let error = HandedVhost::adopt(other.into()).unwrap_err().to_string();
        assert_eq!(error, "the descriptor is of something else than /dev/vhost-net");
    }
}

/// A device, its machine's memory, and what is in the place of the kernel.
struct Bench {
    memory: Arc<AddressSpace>,
    fd: Arc<FakeFd>,
    device: KernelVsock,
    receive: Driver,
    transmit: Driver,
    event: Driver,
}

fn followed() -> (Arc<AddressSpace>, Arc<VhostMemory>) {
    let (memory, followed) = (ram(), VhostMemory::new());
    memory.add_observer(Arc::clone(&followed) as _).unwrap();
    (memory, followed)
}

fn ranges(ranges: &[RamRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.start, range.size)).collect()
}

impl Bench {
    fn new() -> Self {
        let (memory, followed) = followed();
        let fd = FakeFd::new(SEQPACKET | features::EVENT_IDX | 1 << VIRTIO_F_VERSION_1 | 1 << 26);
        let backend = Backend::new(vec![Arc::clone(&fd) as _], &followed).unwrap();
        let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
        Self {
            fd,
            device: KernelVsock::new(worker, backend, 7),
            receive: Driver::new(&memory, 0, SIZE, RECEIVE),
            transmit: Driver::new(&memory, 1, SIZE, TRANSMIT).starting_at(5),
            event: Driver::new(&memory, 2, SIZE, 0x8_0000),
            memory,
        }
    }

    /// Starts the device, and waits until its rings are served.
    fn start(&self) -> Started {
        let before = self.fd.starts();
        let started = self.start_with(&[&self.receive, &self.transmit, &self.event]);
        self.fd.wait_for_starts(before + 1);
        started
    }

    fn start_with(&self, drivers: &[&Driver]) -> Started {
        Started::new(&self.device, &self.memory, drivers, features::EVENT_IDX | 1 << 28).unwrap()
    }

    fn unmap_receive(&self) {
        self.memory.apply([Change::Unmap(RAM[2])]).unwrap();
    }
}

/// Waits for kicks.
fn kicks(kick: &EventFd) -> u64 {
    loop {
        match kick.read() {
            Ok(kicks) => return kicks,
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn the_kernel_gets_the_rings_their_doorbells_and_what_was_negotiated() {
    let bench = Bench::new();
    assert_eq!(bench.device.features(), SEQPACKET);
    let started = bench.start();
    let rings = bench.fd.rings();
    assert_eq!(rings.iter().map(|ring| ring.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((rings[0].queue, rings[1].queue), (bench.receive.setup(), bench.transmit.setup()));
    assert_eq!((bench.fd.memory(), bench.fd.served_features()), (ranges(&RAM), features::EVENT_IDX));
    // Once for what was available before.
    for _ in 0..2 {
        assert_eq!(kicks(&rings[1].kick), 1);
        started.doorbells[1].ring();
    }
    assert!(!started.needs_reset());
}

#[test]
fn an_interrupt_without_a_vector_is_passed_on() {
    let bench = Bench::new();
    let started = bench.start();
    bench.fd.rings()[1].call.write(1).unwrap();
    started.interrupts.wait_for_queue();
    assert_eq!(started.interrupts.total(), 1);
}

#[test]
fn a_device_that_is_stopped_says_how_far_its_queues_have_come() {
    let bench = Bench::new();
    let started = bench.start();
    bench.fd.set_base(9);
    let states = started.stop();
    assert!(bench.fd.rings().is_empty());
    let mut states: Vec<_> =
        states.iter().map(|state| (state.index, state.next_available, state.next_used)).collect();
    states.sort_unstable();
    assert_eq!(states, [(0, 9, 9), (1, 9, 9), (2, 0, 0)]);
    // Another driver.
    drop(bench.start());
    assert!(bench.fd.rings().is_empty());
}

#[test]
fn a_driver_without_rings_for_the_kernel_comes_to_its_end_too() {
    let bench = Bench::new();
    let started = bench.start_with(&[&bench.event]);
    assert_eq!(started.stop().len(), 1);
    assert!(!bench.start().needs_reset());
}

#[test]
fn a_fault_that_the_kernel_finds_is_the_end_until_the_reset() {
    let bench = Bench::new();
    let started = bench.start();
    let error = Arc::clone(&bench.fd.rings()[0].error);
    error.write(1).unwrap();
    started.interrupts.wait_for_config();
    assert!(started.needs_reset() && bench.fd.rings().is_empty());
    drop(started);
    assert!(!bench.start().needs_reset());
}

#[test]
fn rings_that_the_kernel_does_not_take_are_a_device_that_needs_a_reset() {
    let bench = Bench::new();
    bench.fd.refuse_after(0);
    let started = bench.start_with(&[&bench.receive]);
    started.interrupts.wait_for_config();
    assert!(started.needs_reset() && bench.fd.rings().is_empty());
}

#[test]
fn rings_in_two_regions_are_a_device_that_needs_a_reset() {
    let bench = Bench::new();
    // The first two regions adjoin.
    let across = Driver::new(&bench.memory, 0, SIZE, RAM[1].start - 0x80);
    let started = bench.start_with(&[&across]);
    started.interrupts.wait_for_config();
    assert!(started.needs_reset() && bench.fd.starts() == 0);
}

#[test]
fn memory_that_comes_and_goes_is_known_and_forgotten_while_rings_are_served() {
    let bench = Bench::new();
    let started = bench.start();
    let more = RamRange { start: 0x80_0000, size: 0x1000 };
    bench.memory.map(&[more], &Backing::default()).unwrap();
    assert_eq!(bench.fd.memory(), ranges(&[RAM[0], RAM[1], RAM[2], more]));
    bench.memory.apply([Change::Unmap(RAM[1])]).unwrap();
    assert_eq!(bench.fd.memory(), ranges(&[RAM[0], RAM[2], more]));
    assert_eq!((bench.fd.starts(), bench.fd.rings().len(), started.needs_reset()), (1, 2, false));
}

#[test]
fn rings_whose_memory_goes_are_stopped_and_go_on_where_it_comes_again() {
    let bench = Bench::new();
    let started = bench.start();
    bench.fd.set_base(3);
    bench.unmap_receive();
    assert!(bench.fd.rings().is_empty());
    assert_eq!(bench.fd.memory(), ranges(&RAM[..2]));
    bench.memory.map(&RAM[2..], &Backing::default()).unwrap();
    let bases: Vec<_> = bench.fd.rings().iter().map(|ring| ring.queue.next_available).collect();
    assert_eq!((bases, started.needs_reset()), (vec![3, 3], false));
    // Not while no driver is ready.
    let _ = started.stop();
    bench.unmap_receive();
    bench.memory.map(&RAM[2..], &Backing::default()).unwrap();
    assert!(bench.fd.rings().is_empty());
}

#[test]
fn memory_that_the_kernel_refuses_is_not_there_for_anybody() {
    let bench = Bench::new();
    let started = bench.start();
    let more = RamRange { start: 0x80_0000, size: 0x1000 };
    bench.fd.refuse_after(0);
    let error = bench.memory.map(&[more], &Backing::default()).unwrap_err();
    assert!(format!("{:#}", Chain(&error)).contains("vhost does not take 4 regions"), "{error:?}");
    assert_eq!((bench.memory.ranges().len(), bench.fd.memory()), (3, ranges(&RAM)));
    // The stop of the rings, and what is told after it.
    for calls in [0, 1] {
        bench.fd.refuse_after(calls);
        assert!(bench.memory.apply([Change::Unmap(RAM[2])]).is_err());
        assert_eq!((bench.memory.ranges().len(), bench.fd.memory()), (3, ranges(&RAM)));
        assert_eq!((bench.fd.rings().len(), started.needs_reset()), (2, false));
    }
}

/// All causes of an error.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        self.0.source().map_or(Ok(()), |source| write!(f, ": {}", Chain(source)))
    }
}

#[test]
fn all_descriptors_have_the_memory_or_none_has() {
    let (memory, followed) = followed();
    let fds = [FakeFd::new(0), FakeFd::new(0)];
    let backends = fds.clone().map(|fd| Backend::new(vec![fd as _], &followed).unwrap());
    fds[1].refuse_after(0);
    assert!(memory.apply([Change::Unmap(RAM[2])]).is_err());
    assert_eq!(fds.each_ref().map(|fd| fd.memory()), [ranges(&RAM), ranges(&RAM)]);
    memory.apply([Change::Unmap(RAM[2])]).unwrap();
    assert_eq!(fds.each_ref().map(|fd| fd.memory()), [ranges(&RAM[..2]), ranges(&RAM[..2])]);
    assert_eq!(backends.map(|backend| backend.queues()), [2, 2]);
    // Also those of one device.
    let pair = [FakeFd::new(3), FakeFd::new(6)];
    let device = Backend::new(pair.clone().map(|fd| fd as _).to_vec(), &followed).unwrap();
    assert_eq!(device.features(), 2);
    pair[1].refuse_after(0);
    assert!(memory.map(&RAM[2..], &Backing::default()).is_err());
    assert_eq!(pair.map(|fd| fd.memory()), [ranges(&RAM[..2]), ranges(&RAM[..2])]);
}

#[test]
fn the_kernel_forgets_all_memory_with_the_machine() {
    let (memory, followed) = followed();
    let fd = FakeFd::new(0);
    let _backend = Backend::new(vec![Arc::clone(&fd) as _], &followed).unwrap();
    drop(memory);
    assert_eq!((fd.memory(), fd.features()), (vec![], 0));
}
