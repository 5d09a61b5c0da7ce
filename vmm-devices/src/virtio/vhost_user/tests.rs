//! Devices whose back end is a thread of the test.

mod hostile;
mod pairs;
mod peer;

use std::io::{Read, Write};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_core::VmEvents;
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing, BackingKind, Change, RamRange};

use super::connection::Connection;
use super::{Class, FsTag, VhostUser, VhostUserDevice};
use crate::ByPath;
use crate::virtio::testing::{Driver, RAM, Started};
use crate::virtio::vhost::VhostMemory;
use crate::virtio::{VirtioDevice, features};
use peer::{
    ADD_MEM_REG, Answer, Has, Message, Peer, REM_MEM_REG, SET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR,
    SET_VRING_CALL, SET_VRING_KICK,
};

const SIZE: u16 = 16;
const BLOCK: Class = Class::Block { queues: 1, exactly: false };
const NET: Class = Class::Net { mac: [2, 0, 0, 0, 0, 1], mtu: None, pairs: 1 };
/// Where the rings of the first queue are.
const RINGS: u64 = 0x1_0000;

fn fs() -> Class {
    Class::Fs { tag: FsTag::new("share").unwrap() }
}

/// Guest RAM in a file, and what follows it.
fn shared_ram() -> (Arc<AddressSpace>, Arc<VhostMemory>) {
    let memory = Arc::new(AddressSpace::new(Arc::new(FakeVm::default())));
    memory.map(&RAM, &Backing::new(BackingKind::Memfd)).unwrap();
    let followed = VhostMemory::new();
    memory.add_observer(Arc::clone(&followed) as _).unwrap();
    (memory, followed)
}

/// A device with a back end, its machine's memory, and the drivers of its first two queues.
struct Bench {
    memory: Arc<AddressSpace>,
    _followed: Arc<VhostMemory>,
    user: Arc<VhostUser>,
    device: VhostUserDevice,
    drivers: [Driver; 2],
}

impl Bench {
    fn new(class: Class, has: Has) -> (Self, Peer) {
        Self::with_idea(class, has, |_| Answer::AsUsual)
    }

    fn with_idea(
        class: Class,
        has: Has,
        idea: impl FnMut(&Message) -> Answer + Send + 'static,
    ) -> (Self, Peer) {
        let (socket, peer) = Peer::pair(has, idea);
        let connection = Connection::over(socket, class.wanted()).unwrap();
        (
            Self::over(VhostUser::over(Arc::new(ByPath::new("/nowhere/socket")), class, connection).unwrap()),
            peer,
        )
    }

    fn over(user: VhostUser) -> Self {
        let (memory, followed) = shared_ram();
        let user = Arc::new(user);
        let device = VhostUserDevice::new(&user, &followed, &VmEvents::new().unwrap()).unwrap();
        let drivers = [Driver::new(&memory, 0, SIZE, RINGS), Driver::new(&memory, 1, SIZE, 4 * RINGS)];
        Self { memory, _followed: followed, user, device, drivers }
    }

    fn start(&self, queues: usize) -> Started {
        let drivers: Vec<_> = self.drivers.iter().take(queues).collect();
        Started::new(&self.device, &self.memory, &drivers, features::VERSION_1 | features::EVENT_IDX).unwrap()
    }

    fn config(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.device.read_config(offset, &mut data);
        data
    }
}

/// Waits until the device says so.
fn wait_for_needs_reset(started: &Started) {
    while !started.needs_reset() {
        std::thread::yield_now();
    }
}

/// `count` words of 8 bytes from `at` on.
fn words(payload: &[u8], at: usize, count: usize) -> Vec<u64> {
    let words = payload[at..].chunks(8).take(count);
    words.map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn a_back_end_gets_rings_doorbells_and_interrupts_and_only_what_was_negotiated() {
    let (bench, peer) = Bench::new(BLOCK, Has { features: u64::MAX, ..Has::default() });
    assert_eq!(bench.device.device_type(), 2);
    // A disk without a configuration that can be written, without zones, secure erase and the like.
    let offered: u64 = [1, 2, 5, 6, 9, 10, 13, 14].map(|bit| 1 << bit).into_iter().sum();
    assert_eq!(bench.device.features(), offered);
    assert_eq!(bench.device.ring_features(), features::OF_RINGS);
    let started = bench.start(1);
    assert_eq!(peer.wait_for(SET_VRING_KICK, 1)[0], [0; 8]);
    let accepted = features::VERSION_1 | features::EVENT_IDX | 1 << 30;
    assert_eq!(words(&peer.wait_for(SET_FEATURES, 1)[0], 0, 1), [accepted]);
    // Addresses of this process: of descriptors, used ring, available ring.
    let setup = bench.drivers[0].setup();
    let memory = bench.memory.memory();
    let host = |address| memory.get_host_address(GuestAddress(address)).unwrap() as u64;
    let places = [host(setup.descriptor_table), host(setup.used_ring), host(setup.available_ring)];
    assert_eq!(words(&peer.wait_for(SET_VRING_ADDR, 1)[0], 8, 3), places);
    // Once for what was available before.
    let mut kick = peer.file(SET_VRING_KICK, 0);
    while kick.read(&mut [0; 8]).is_err() {
        std::thread::yield_now();
    }
    peer.file(SET_VRING_CALL, 0).write_all(&1_u64.to_ne_bytes()).unwrap();
    started.interrupts.wait_for_queue();
    let states = started.stop();
    // From where the back end says that it goes on.
    assert_eq!((states.len(), states[0].next_available), (1, 3));
}

#[test]
fn what_a_device_is_comes_from_the_back_end_or_from_the_configuration() {
    let (bench, _peer) = Bench::new(BLOCK, Has::default());
    assert_eq!(bench.config(0, 8), [7; 8]);
    assert_eq!((bench.config(34, 2), bench.config(58, 4)), (vec![1, 0], vec![7, 7, 0, 0]));
    let (bench, _peer) = Bench::new(fs(), Has::default());
    assert_eq!((bench.device.device_type(), bench.device.features()), (26, 0));
    assert_eq!(bench.config(0, 8), *b"share\0\0\0");
    assert_eq!(bench.config(36, 4), [1, 0, 0, 0]);
    // Without rings in tables of their own, as a back end has them or not.
    let (bench, peer) = Bench::new(NET, Has { features: 1 << 32 | 1 << 30 | 1 << 15, ..Has::default() });
    assert_eq!((bench.device.features(), bench.device.ring_features()), (1 << 5 | 1 << 16 | 1 << 15, 0));
    assert_eq!(bench.config(0, 10), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0]);
    assert!(!peer.requests().contains(&peer::GET_QUEUE_NUM));
    assert!(!peer.requests().contains(&peer::GET_CONFIG));
}

#[test]
fn a_back_end_knows_of_all_memory_and_of_nothing_that_has_gone() {
    let (bench, peer) = Bench::new(BLOCK, Has::default());
    let runs = |payloads: Vec<Vec<u8>>| -> Vec<_> {
        payloads.iter().map(|payload| (words(payload, 8, 1)[0], words(payload, 16, 1)[0])).collect()
    };
    let known: Vec<_> = RAM.iter().map(|range| (range.start, range.size)).collect();
    assert_eq!(runs(peer.wait_for(ADD_MEM_REG, 3)), known);
    let _started = bench.start(1);
    peer.wait_for(SET_VRING_KICK, 1);
    let more = RamRange { start: 0x100_0000, size: 0x10_0000 };
    bench.memory.map(&[more], &Backing::new(BackingKind::Memfd)).unwrap();
    assert_eq!(runs(peer.wait_for(ADD_MEM_REG, 4))[3], (more.start, more.size));
    bench.memory.apply([Change::Unmap(more)]).unwrap();
    assert_eq!(runs(peer.wait_for(REM_MEM_REG, 1)), [(more.start, more.size)]);
    // It was never stopped for that.
    assert!(!peer.requests().contains(&peer::GET_VRING_BASE));
}

#[test]
fn a_back_end_that_takes_memory_as_a_whole_rests_meanwhile() {
    let protocol = Has::default().protocol & !peer::SLOTS;
    let (bench, peer) = Bench::new(BLOCK, Has { protocol, ..Has::default() });
    let regions = |payload: &Vec<u8>| words(payload, 0, 1)[0];
    assert_eq!(peer.wait_for(SET_MEM_TABLE, 1).iter().map(regions).collect::<Vec<_>>(), [3]);
    let _started = bench.start(1);
    peer.wait_for(SET_VRING_KICK, 1);
    let more = RamRange { start: 0x100_0000, size: 0x10_0000 };
    bench.memory.map(&[more], &Backing::new(BackingKind::Memfd)).unwrap();
    peer.wait_for(SET_VRING_KICK, 2);
    let requests = peer.requests();
    let order = [peer::GET_VRING_BASE, SET_MEM_TABLE, SET_VRING_KICK];
    let places = order.map(|request| requests.iter().rposition(|told| *told == request).unwrap());
    assert!(places.is_sorted(), "{requests:?}");
    // It takes eight, of which it has four.
    for region in 0..5 {
        let more = RamRange { start: 0x200_0000 + region * 0x20_0000, size: 0x10_0000 };
        let mapped = bench.memory.map(&[more], &Backing::new(BackingKind::Memfd));
        assert_eq!(mapped.is_ok(), region < 4, "region {region}");
    }
    assert_eq!(bench.user.counts().losses, 0);
}

#[test]
fn a_disk_whose_back_end_is_killed_answers_with_errors() {
    let (mut bench, peer) = Bench::new(BLOCK, Has::default());
    let started = bench.start(1);
    peer.wait_for(SET_VRING_KICK, 1);
    // One that it has taken, and will not answer.
    let request = bench.drivers[0].submit(&[&[0; 16]], &[512, 1]);
    peer.die();
    wait_for_needs_reset(&started);
    let used = started.wait_used(&mut bench.drivers[0], 1);
    assert_eq!(used[0].head, u32::from(request.head));
    let status = |address| bench.memory.memory().read_obj::<u8>(GuestAddress(address)).unwrap();
    assert_eq!(status(request.writable[1].0), 1);
    // And one that nobody has taken.
    let request = bench.drivers[0].submit(&[&[0; 16]], &[1]);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut bench.drivers[0], 1)[0].head, u32::from(request.head));
    let counts = bench.user.counts();
    assert_eq!((counts.connected, counts.losses, counts.failed_requests), (0, 1, 2));
    // Memory comes and goes without it, and the device stops.
    bench.memory.apply([Change::Unmap(RAM[2])]).unwrap();
    let states = started.stop();
    assert_eq!((states.len(), states[0].next_available), (1, 2));
}

#[test]
fn a_file_system_without_a_back_end_is_not_connected() {
    let (mut bench, peer) = Bench::new(fs(), Has::default());
    let started = bench.start(2);
    peer.wait_for(SET_VRING_KICK, 2);
    peer.die();
    wait_for_needs_reset(&started);
    let header: Vec<u8> = [[40, 0, 0, 0, 26, 0, 0, 0], [9; 8], [0; 8]].concat();
    let request = bench.drivers[1].submit(&[&header], &[16, 64]);
    // One that has no answer, one that is too short for a request.
    bench.drivers[1].submit(&[&header], &[]);
    bench.drivers[1].submit(&[&[1]], &[80]);
    started.doorbells[1].ring();
    let used = started.wait_used(&mut bench.drivers[1], 3);
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [16, 0, 0]);
    let mut answer = [0; 16];
    bench.memory.memory().read_slice(&mut answer, GuestAddress(request.writable[0].0)).unwrap();
    let error = (-libc::ENOTCONN).to_le_bytes();
    assert_eq!(answer.to_vec(), [&[16, 0, 0, 0][..], &error, &[9; 8]].concat());
}

#[test]
fn the_link_of_a_network_device_without_a_back_end_is_down() {
    let (mut bench, peer) = Bench::new(NET, Has::default());
    let started = bench.start(2);
    peer.wait_for(SET_VRING_KICK, 2);
    assert_eq!(bench.config(6, 2), [1, 0]);
    bench.drivers[0].submit(&[], &[100]);
    peer.die();
    wait_for_needs_reset(&started);
    assert_eq!(bench.config(6, 2), [0, 0]);
    // What is sent is gone; what is received never comes.
    bench.drivers[1].submit(&[&[0; 60]], &[]);
    started.doorbells[1].ring();
    started.wait_used(&mut bench.drivers[1], 1);
    assert!(bench.drivers[0].take_used().is_none());
}

#[test]
fn the_next_driver_finds_a_back_end_that_is_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (socket, peer) = Peer::pair(Has::default(), |_| Answer::AsUsual);
    let connection = Connection::over(socket, BLOCK.wanted()).unwrap();
    let bench = Bench::over(VhostUser::over(Arc::new(ByPath::new(&path)), BLOCK, connection).unwrap());
    peer.die();
    // Nobody is there yet.
    let started = bench.start(1);
    wait_for_needs_reset(&started);
    drop(started.stop());
    let again = Peer::listen(&path, Has { config: 9, ..Has::default() });
    let started = bench.start(1);
    again.wait_for(SET_VRING_KICK, 1);
    // It has read what the other one had said.
    started.interrupts.wait_for_config();
    assert_eq!(again.wait_for(ADD_MEM_REG, 3).len(), 3);
    assert_eq!(bench.config(0, 1), [9]);
    let counts = bench.user.counts();
    assert_eq!((counts.connected, counts.connections, counts.losses), (1, 2, 1));
    drop(started.stop());
}
