//! The device with a scripted driver on the other side, well-behaved and not.

mod resize;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::*;
use virtio_queue::desc::split::Descriptor;
use vmm_core::VmEvents;
use vmm_memory::{AddressSpace, Change, MemoryReader, PinnedBuffers};

use super::*;
use crate::rate_limiter::{Limit, Limits};
use crate::sync::lock;
use crate::virtio::testing::{
    CountedInterrupts, Driver, NEXT, RAM, Request as Lent, Started, Used, WRITE, ram,
};
use crate::virtio::{Activation, ActiveQueue, DeviceStatus, QueueInterrupt, VirtioDevice, features};

const SECTORS: u64 = 64;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

fn options() -> BlockOptions {
    BlockOptions {
        name: "disk0".into(),
        read_only: false,
        queues: 1,
        engine: EngineChoice::Auto,
        throttle: Throttle::new(Limits::default()),
    }
}

fn image_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * SECTOR).unwrap();
    file
}

fn raw(file: &tempfile::NamedTempFile) -> Backend {
    Backend::Raw(Arc::new(Image::open(file.path(), ImageOptions::default()).unwrap()))
}

fn block(backend: Backend, options: BlockOptions) -> Block {
    Block::new(backend, options, VmEvents::new().unwrap()).unwrap()
}

/// A disk whose only queue is driven by a test.
struct Bench {
    memory: Arc<AddressSpace>,
    block: Block,
    driver: Driver,
    started: Started,
}

impl Bench {
    fn new(block: Block) -> Self {
        Self::with(block, |features| features)
    }

    /// The driver takes what `accept` makes of what is offered.
    fn with(block: Block, accept: impl Fn(u64) -> u64) -> Self {
        let memory = ram();
        let driver = Driver::new(&memory, 0, 64, 0);
        let features = accept(block.features() | features::INDIRECT_DESC | features::EVENT_IDX);
        let started = Started::new(&block, &memory, &[&driver], features).unwrap();
        Self { memory, block, driver, started }
    }

    fn file(file: &tempfile::NamedTempFile) -> Self {
        Self::new(block(raw(file), options()))
    }

    /// Rings, and waits for the next used chain.
    fn wait(&mut self) -> Used {
        self.started.doorbells[0].ring();
        loop {
            if let Some(used) = self.driver.take_used() {
                self.driver.set_used_event(self.driver.used_index());
                return used;
            }
            self.started.interrupts.wait_for_queue();
        }
    }

    fn status(&self, request: &Lent) -> u8 {
        let (address, length) = *request.writable.last().unwrap();
        self.driver.read(address + u64::from(length) - 1, 1)[0]
    }

    /// One request from its submission to its status, and how much is said to be written.
    fn perform(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u8, u32) {
        let request = self.driver.submit(readable, writable);
        let used = self.wait();
        assert_eq!(used.head, u32::from(request.head));
        (self.status(&request), used.written)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.perform(&[&header(VIRTIO_BLK_T_OUT, sector), data], &[1]).0
    }

    fn read(&mut self, sector: u64, length: u32) -> (u8, Vec<u8>) {
        let request = self.driver.submit(&[&header(VIRTIO_BLK_T_IN, sector)], &[length, 1]);
        let used = self.wait();
        let status = self.status(&request);
        assert_eq!(used.written, if status == OK { length + 1 } else { 0 });
        (status, self.driver.read(request.writable[0].0, length as usize))
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.perform(&[&header(kind, 0), &range], &[1]).0
    }

    fn config<const LENGTH: usize>(&self, offset: u64) -> [u8; LENGTH] {
        let mut data = [0; LENGTH];
        self.block.read_config(offset, &mut data);
        data
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

#[test]
fn what_is_written_is_read_back_whatever_the_engine_and_the_shape_of_the_chain() {
    for engine in [EngineChoice::Threads, EngineChoice::Auto] {
        let file = image_file();
        let mut bench = Bench::new(block(raw(&file), BlockOptions { engine, ..options() }));
        let data: Vec<_> = (0..1024).map(|at| (at % 251) as u8).collect();
        let head = header(VIRTIO_BLK_T_OUT, 3);
        let (start, rest) = head.split_at(5);
        // A header in two buffers, the second of which has data too; the data in three.
        let second = [rest, &data[..7]].concat();
        assert_eq!(bench.perform(&[start, &second, &data[7..600], &data[600..]], &[1]), (OK, 1));
        assert_eq!(bench.perform(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]), (OK, 1));
        let request = bench.driver.submit_indirect(&[&header(VIRTIO_BLK_T_IN, 3)], &[100, 925]);
        assert_eq!(bench.wait().written, 1025);
        assert_eq!(bench.status(&request), OK);
        let (one, other) = (request.writable[0].0, request.writable[1].0);
        assert_eq!([bench.driver.read(one, 100), bench.driver.read(other, 924)].concat(), data);
        // The last one may be on its way.
        while bench.block.counts().interrupts < 3 {
            std::thread::yield_now();
        }
        let counts = bench.block.counts();
        assert_eq!((counts.reads, counts.writes, counts.flushes), (1, 1, 1));
        assert_eq!((counts.bytes_read, counts.bytes_written), (1024, 1024));
        let latencies = [counts.read_latency_hist, counts.write_latency_hist, counts.flush_latency_hist];
        assert_eq!(latencies.map(|latency| latency.iter().sum::<u64>()), [1; 3]);
        // One request at a time: each rings, is given to the host, and ends with an interrupt.
        assert_eq!((counts.interrupts, counts.host_calls), (3, 3));
        assert!(counts.notifications >= 3, "{counts:?}");
    }
}

#[test]
fn the_identification_is_the_name_filled_up_with_zeros() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!(bench.wait().written, 21);
    assert_eq!(bench.driver.read(request.writable[0].0, 20), b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.perform(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[3, 1]).0, OK);
    assert_eq!(bench.perform(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[4096]), (OK, 0));
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let file = image_file();
    let block = block(raw(&file), BlockOptions { queues: 3, ..options() });
    assert_eq!(block.queue_sizes(), [256; 3]);
    let bench = Bench::new(block);
    assert_eq!(u64::from_le_bytes(bench.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(bench.config(12)), 254);
    assert_eq!(u32::from_le_bytes(bench.config(20)), 512);
    assert_eq!(
        512 << bench.config::<1>(24)[0],
        file.as_file().metadata().map(|m| std::os::unix::fs::MetadataExt::blksize(&m)).unwrap()
    );
    assert_eq!((bench.config(32), bench.config(34)), ([1], [3, 0]));
    for offset in [36, 48] {
        assert_eq!(u32::from_le_bytes(bench.config(offset)), request::MAX_RANGE_SECTORS);
        assert_eq!(u32::from_le_bytes(bench.config(offset + 4)), 1);
    }
    assert_eq!((bench.config(56), bench.config::<4>(57)), ([1], [0; 4]));
}

#[test]
fn fault_a6_chains_of_the_wrong_shape_come_back_and_the_queue_goes_on() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    let read = header(VIRTIO_BLK_T_IN, 0);
    // No status byte, and nothing to be read either.
    for readable in [&[&read[..]][..], &[&[]], &[&read[..], &[0; 512]]] {
        bench.driver.submit(readable, &[]);
        assert_eq!(bench.wait().written, 0);
    }
    bench.driver.submit(&[], &[0]);
    assert_eq!(bench.wait().written, 0);
    // A header that is too short, missing, or writable.
    assert_eq!(bench.perform(&[&read[..15]], &[1]), (IOERR, 1));
    assert_eq!(bench.perform(&[], &[1]), (IOERR, 1));
    assert_eq!(bench.perform(&[], &[16, 512, 1]), (IOERR, 0));
    // Buffers of no length are as none.
    assert_eq!(bench.perform(&[&[], &read], &[512, 0, 1]), (OK, 513));
    assert_eq!((bench.block.counts().refused, bench.started.needs_reset()), (7, false));
}

#[test]
fn fault_b8_what_is_not_whole_inside_of_the_disk_is_refused_before_anything_is_done() {
    let file = image_file();
    file.as_file().write_all_at(&[7; (SECTORS * SECTOR) as usize], 0).unwrap();
    let mut bench = Bench::file(&file);
    let last = SECTORS - 1;
    for (sector, length) in [
        (SECTORS, 512),
        (last, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 513),
        (1 << 55, 512),
    ] {
        assert_eq!(bench.write(sector, &vec![1; length]), IOERR, "write {length} at {sector}");
        assert_eq!(bench.read(sector, length as u32).0, IOERR, "read {length} at {sector}");
    }
    // The last sector and one more, in buffers of their own.
    let parts: [&[u8]; 3] = [&header(VIRTIO_BLK_T_OUT, last), &[1; 512], &[1; 512]];
    assert_eq!(bench.perform(&parts, &[1]), (IOERR, 1));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (sector, sectors) in [(last, 2), (u64::MAX, 1), (0, u32::MAX), (SECTORS + 1, 0)] {
            assert_eq!(bench.range(kind, sector, sectors, 0), IOERR, "{kind}: {sectors} at {sector}");
        }
        assert_eq!(bench.range(kind, 0, 1, 2), UNSUPP);
        for length in [0, 15, 17, 32] {
            let range = vec![0; length];
            assert_eq!(bench.perform(&[&header(kind, 0), &range], &[1]).0, IOERR, "{length}");
        }
    }
    assert_eq!(bench.range(VIRTIO_BLK_T_DISCARD, 0, 1, 1), UNSUPP);
    for kind in [3, 5, 7, 9, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.perform(&[&header(kind, 0)], &[512, 1]), (UNSUPP, 0), "type {kind}");
    }
    // Nothing, inside of the disk, is nothing.
    assert_eq!((bench.write(SECTORS, &[]), bench.range(VIRTIO_BLK_T_DISCARD, SECTORS, 0, 0)), (OK, OK));
    let mut contents = vec![0; (SECTORS * SECTOR) as usize];
    file.as_file().read_exact_at(&mut contents, 0).unwrap();
    assert!(contents.iter().all(|byte| *byte == 7));
    assert_eq!(file.as_file().metadata().unwrap().len(), SECTORS * SECTOR);
}

#[test]
fn fault_b8_a_disk_that_is_only_read_refuses_every_change() {
    let file = image_file();
    let image = Image::open(file.path(), ImageOptions { read_only: true, direct: false }).unwrap();
    let block = block(Backend::Raw(Arc::new(image)), BlockOptions { read_only: true, ..options() });
    assert_ne!(block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    // A driver that takes more than is offered.
    let all = |features| features | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    let mut bench = Bench::with(block, all);
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.range(kind, 0, 1, 0), IOERR);
    }
    assert_eq!(bench.read(0, 512).0, OK);
}

#[test]
fn discard_and_write_zeroes_are_unknown_unless_they_were_negotiated() {
    let file = image_file();
    file.as_file().write_all_at(&[7; 2048], 0).unwrap();
    let without = |features| features & !(1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES);
    let mut bench = Bench::with(block(raw(&file), options()), without);
    assert_eq!(bench.range(VIRTIO_BLK_T_DISCARD, 0, 1, 0), UNSUPP);
    assert_eq!(bench.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0), UNSUPP);
    drop(bench);
    let mut bench = Bench::file(&file);
    assert_eq!(bench.range(VIRTIO_BLK_T_WRITE_ZEROES, 1, 1, 0), OK);
    assert_eq!(bench.range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 1), OK);
    assert_eq!(bench.range(VIRTIO_BLK_T_DISCARD, 3, 1, 0), OK);
    let (status, data) = bench.read(0, 1536);
    assert_eq!((status, data), (OK, [vec![7; 512], vec![0; 1024]].concat()));
}

#[test]
fn fault_c3_an_image_that_was_truncated_is_an_error_for_the_guest_only() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    file.as_file().set_len(1024).unwrap();
    assert_eq!(bench.read(0, 1024).0, OK);
    assert_eq!(bench.read(1, 1024).0, IOERR);
    assert_eq!(bench.read(10, 512).0, IOERR);
    assert_eq!((bench.block.counts().failed, bench.started.needs_reset()), (2, false));
}

#[test]
fn fault_c5_the_header_of_another_format_stays_data() {
    let file = image_file();
    let mut qcow = [0; 512];
    qcow[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    assert_eq!(Bench::file(&file).write(0, &qcow), OK);
    let mut bench = Bench::file(&file);
    assert_eq!(u64::from_le_bytes(bench.config(0)), SECTORS);
    assert_eq!(bench.read(0, 512), (OK, qcow.to_vec()));
}

/// A storage that answers when it is let, and remembers what it was asked for.
struct Slow {
    calls: std::sync::Mutex<Sender<&'static str>>,
    go: std::sync::Mutex<Receiver<io::Result<()>>>,
}

struct SlowSide {
    calls: Receiver<&'static str>,
    go: Sender<io::Result<()>>,
}

impl Slow {
    fn backend() -> (Backend, SlowSide) {
        let ((called, calls), (answer, go)) = (channel(), channel());
        let slow = Self { calls: std::sync::Mutex::new(called), go: std::sync::Mutex::new(go) };
        (Backend::Other(Arc::new(slow)), SlowSide { calls, go: answer })
    }

    fn call(&self, what: &'static str) -> io::Result<()> {
        // Nobody listens any more at the end of a test.
        let _ = lock(&self.calls).send(what);
        lock(&self.go).recv().unwrap_or(Ok(()))
    }
}

impl Storage for Slow {
    fn read(&self, _: PinnedBuffers, _: u64) -> io::Result<()> {
        self.call("read")
    }

    fn write(&self, _: PinnedBuffers, _: u64, durable: bool) -> io::Result<()> {
        self.call(if durable { "durable write" } else { "write" })
    }

    fn flush(&self) -> io::Result<()> {
        self.call("flush")
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.call("discard")
    }

    fn write_zeroes(&self, _: u64, length: u64, _: bool) -> io::Result<u64> {
        self.call("write zeroes").map(|()| length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(SECTORS * SECTOR)
    }
}

#[test]
fn fault_c3_what_the_host_fails_is_an_io_error_and_the_next_request_goes_on() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    for errno in [libc::ENOSPC, libc::EIO, libc::EPERM] {
        slow.go.send(Err(io::Error::from_raw_os_error(errno))).unwrap();
        assert_eq!(bench.write(0, &[1; 512]), IOERR);
    }
    slow.go.send(Ok(())).unwrap();
    assert_eq!(bench.write(0, &[1; 512]), OK);
    let counts = bench.block.counts();
    assert_eq!((counts.failed, counts.writes, counts.bytes_written), (3, 1, 512));
}

#[test]
fn fault_a5_a_chain_that_is_available_twice_stops_the_queue_and_not_its_neighbour() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.driver.make_available(request.head);
    bench.started.doorbells[0].ring();
    bench.started.interrupts.wait_for_config();
    assert!(bench.started.needs_reset());
    assert_eq!(slow.calls.recv().unwrap(), "read");
    let file = image_file();
    assert_eq!(Bench::file(&file).read(0, 512).0, OK);
    slow.go.send(Ok(())).unwrap();
    assert_eq!(bench.started.stop().len(), 1);
}

#[test]
fn fault_b6_a_device_that_is_stopped_ends_when_its_last_request_has() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.started.doorbells[0].ring();
    slow.calls.recv().unwrap();
    let (sender, stopped) = channel();
    bench.started.running.stop(Box::new(move |states| sender.send(states).unwrap()));
    // In flight: neither stopped nor given back.
    assert!(stopped.try_recv().is_err() && bench.driver.take_used().is_none());
    slow.go.send(Ok(())).unwrap();
    let states = stopped.recv().unwrap();
    assert_eq!((states[0].next_available, states[0].next_used), (1, 1));
    assert_eq!(bench.driver.take_used(), Some(Used { head: request.head.into(), written: 513 }));
}

#[test]
fn a_disk_that_loses_its_storage_fails_what_comes_and_lets_it_go_when_the_last_request_has_ended() {
    let (backend, slow) = Slow::backend();
    let storage = match &backend {
        Backend::Other(storage) => Arc::downgrade(storage),
        Backend::Raw(_) => panic!(),
    };
    let mut bench = Bench::new(block(backend, options()));
    let first = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.started.doorbells[0].ring();
    slow.calls.recv().unwrap();
    let ((sender, lost), of) = (channel(), storage.clone());
    bench.block.lose_storage(move || sender.send(of.strong_count()).unwrap());
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    // In flight: the storage is needed still.
    assert!(lost.try_recv().is_err());
    slow.go.send(Ok(())).unwrap();
    assert_eq!(lost.recv().unwrap(), 0, "somebody has the storage");
    assert_eq!(bench.wait().head, u32::from(first.head));
    assert_eq!(bench.status(&first), OK);
    for _ in 0..3 {
        assert_eq!(bench.read(0, 512).0, IOERR);
        assert_eq!(bench.perform(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]).0, IOERR);
    }
    assert!(bench.block.rescan().is_err());
    assert_eq!(bench.started.stop().len(), 1);
}

#[test]
fn a_disk_that_does_not_run_loses_its_storage_at_once() {
    let file = image_file();
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        let block = block(raw(&file), BlockOptions { engine, ..options() });
        let (sender, lost) = channel();
        block.lose_storage(move || sender.send(()).unwrap());
        lost.recv().unwrap();
        assert!(Image::open(file.path(), ImageOptions::default()).is_ok(), "the image is locked");
    }
}

#[test]
fn memory_under_a_request_in_flight_goes_when_the_request_has_ended() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.started.doorbells[0].ring();
    slow.calls.recv().unwrap();
    std::thread::scope(|scope| {
        let memory = Arc::clone(&bench.memory);
        let unmapping = scope.spawn(move || memory.apply([Change::Unmap(RAM[0])]));
        slow.go.send(Ok(())).unwrap();
        unmapping.join().unwrap().unwrap();
    });
}

/// A read of 512 bytes to `address`, as the next request of `driver`, its header and its status being elsewhere.
fn submit_read_to(driver: &mut Driver, first: u16, address: u64) {
    let (head, status) = (driver.allocate(16), driver.allocate(1));
    driver.write(head, &header(VIRTIO_BLK_T_IN, 0));
    driver.set_descriptor(first, Descriptor::new(head, 16, NEXT, first + 1));
    driver.set_descriptor(first + 1, Descriptor::new(address, 512, NEXT | WRITE, first + 2));
    driver.set_descriptor(first + 2, Descriptor::new(status, 1, WRITE, 0));
    driver.make_available(first);
}

#[test]
fn fault_b6_memory_that_is_to_go_is_asked_back_of_a_queue_that_is_stopping() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    // As many as the threads that there are at most, and one that has not begun.
    for at in 0..8 {
        submit_read_to(&mut bench.driver, 3 * at, RAM[0].start + 0x10_0000);
    }
    bench.started.doorbells[0].ring();
    (0..8).for_each(|_| assert_eq!(slow.calls.recv().unwrap(), "read"));
    submit_read_to(&mut bench.driver, 24, RAM[2].start);
    bench.started.doorbells[0].ring();
    // It is taken when the driver is told that notifications are wanted again behind it.
    while bench.driver.available_event() != 9 {
        std::thread::yield_now();
    }
    let (sender, stopped) = channel();
    bench.started.running.stop(Box::new(move |states| sender.send(states).unwrap()));
    bench.memory.apply([Change::Unmap(RAM[2])]).unwrap();
    assert!(stopped.try_recv().is_err());
    (0..8).for_each(|_| slow.go.send(Ok(())).unwrap());
    assert_eq!(stopped.recv().unwrap()[0].next_used, 9);
    assert_eq!((bench.block.counts().reads, bench.block.counts().failed), (8, 1));
}

#[test]
fn a_device_whose_second_queue_cannot_start_stops_the_first_by_its_reset() {
    let (backend, slow) = Slow::backend();
    let block = block(backend, BlockOptions { queues: 2, ..options() });
    let memory = ram();
    let mut drivers: Vec<_> =
        (0..2).map(|index| Driver::new(&memory, index, 16, index as u64 * 0x4_0000)).collect();
    drivers[0].submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    let interrupts = Arc::new(CountedInterrupts::new());
    let status = DeviceStatus::new("test", Arc::clone(&interrupts) as _);
    // A worker cannot wait for the same doorbell twice.
    let doorbell = crate::Doorbell::new(None, 0).unwrap();
    doorbell.ring();
    let features = block.features();
    let queues = drivers.iter().enumerate().map(|(index, driver)| ActiveQueue {
        index,
        queue: driver.queue(features),
        doorbell: doorbell.eventfd(),
        interrupt: QueueInterrupt::new(Arc::clone(&interrupts) as _, index),
    });
    let reader = MemoryReader::new(Arc::clone(&memory));
    let activation =
        Activation { features, memory: reader, queues: queues.collect(), status: status.clone() };
    let running = block.start(activation).unwrap();
    assert!(status.needs_reset());
    assert_eq!(slow.calls.recv().unwrap(), "read");
    let (sender, stopped) = channel();
    running.stop(Box::new(move |states| sender.send(states.len()).unwrap()));
    assert!(stopped.try_recv().is_err());
    slow.go.send(Ok(())).unwrap();
    assert_eq!(stopped.recv().unwrap(), 1);
}

#[test]
fn a_queue_whose_turns_are_cut_short_by_their_bytes_is_served_to_the_end() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    // Refused, as they leave the disk, and long all the same: each turn takes one.
    for at in 0..20 {
        let head = bench.driver.allocate(16);
        bench.driver.write(head, &header(VIRTIO_BLK_T_IN, SECTORS));
        let pieces = [(head, 16, NEXT), (0x10_0000, 0x10_0000, NEXT | WRITE), (0x20_0000, 0x10_0000, WRITE)];
        for (index, (address, length, flags)) in (3 * at..).zip(pieces) {
            bench.driver.set_descriptor(index, Descriptor::new(address, length, flags, index + 1));
        }
        bench.driver.make_available(3 * at);
    }
    bench.driver.set_used_event(19);
    bench.started.doorbells[0].ring();
    while bench.driver.used_index() != 20 {
        bench.started.interrupts.wait_for_queue();
    }
    assert_eq!(bench.block.counts().refused, 20);
}

/// One operation in 20 ms.
fn slow_limit() -> Limits {
    let limit = Limit::new(1, Duration::from_millis(20), 0).unwrap();
    Limits { operations: Some(limit), bytes: None }
}

#[test]
fn requests_beyond_the_limit_wait_and_are_served_in_turn() {
    let file = image_file();
    let mut bench =
        Bench::new(block(raw(&file), BlockOptions { throttle: Throttle::new(slow_limit()), ..options() }));
    let heads: Vec<_> =
        (0..4).map(|_| bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]).head).collect();
    let used: Vec<_> = (0..4).map(|_| bench.wait().head as u16).collect();
    assert_eq!(used, heads);
    assert!(bench.block.counts().throttled >= 3);
}

/// A bucket that is not filled again in the time of a test.
fn empty_for_long() -> Limits {
    let limit = Limit::new(1, Duration::from_secs(1 << 30), 0).unwrap();
    Limits { operations: Some(limit), bytes: None }
}

#[test]
fn fault_b15_a_limit_that_is_lifted_lets_go_what_waits() {
    let file = image_file();
    let mut bench = Bench::new(block(
        raw(&file),
        BlockOptions { throttle: Throttle::new(empty_for_long()), ..options() },
    ));
    assert_eq!(bench.read(0, 512).0, OK);
    let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.started.doorbells[0].ring();
    while bench.block.counts().throttled == 0 {
        std::thread::yield_now();
    }
    bench.block.change_limits(|_| Limits::default());
    assert_eq!(bench.wait().head, u32::from(request.head));
}

#[test]
fn a_queue_that_is_stopped_while_a_request_waits_for_the_limit_takes_it_again() {
    let file = image_file();
    let block = block(raw(&file), BlockOptions { throttle: Throttle::new(empty_for_long()), ..options() });
    let mut bench = Bench::new(block);
    assert_eq!(bench.read(0, 512).0, OK);
    let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    bench.started.doorbells[0].ring();
    while bench.block.counts().throttled == 0 {
        std::thread::yield_now();
    }
    let states = bench.started.stop();
    assert_eq!((states[0].next_available, states[0].next_used), (1, 1));
    bench.block.change_limits(|_| Limits::default());
    let mut driver = Driver::new(&bench.memory, 0, 64, 0).starting_at(1);
    driver.set_available_index(2);
    let features = bench.block.features() | features::EVENT_IDX;
    let started = Started::new(&bench.block, &bench.memory, &[&driver], features).unwrap();
    started.doorbells[0].ring();
    while driver.used_index() != 2 {
        started.interrupts.wait_for_queue();
    }
    assert_eq!(driver.take_used().unwrap().head, u32::from(request.head));
}

#[test]
fn a_cache_that_is_turned_off_is_flushed_and_then_every_write_is_durable() {
    let (backend, slow) = Slow::backend();
    let mut bench = Bench::new(block(backend, options()));
    (0..4).for_each(|_| slow.go.send(Ok(())).unwrap());
    assert_eq!((bench.write(0, &[1; 512]), slow.calls.recv().unwrap()), (OK, "write"));
    // Other widths and other places are not the toggle.
    bench.block.write_config(32, &[0, 0]);
    bench.block.write_config(31, &[0]);
    assert_eq!(bench.config(32), [1]);
    bench.block.write_config(32, &[0]);
    assert_eq!((bench.config(32), slow.calls.recv().unwrap()), ([0], "flush"));
    assert_eq!((bench.write(0, &[1; 512]), slow.calls.recv().unwrap()), (OK, "durable write"));
    bench.block.write_config(32, &[1]);
    assert_eq!((bench.write(0, &[1; 512]), slow.calls.recv().unwrap()), (OK, "write"));
    assert!(bench.driver.take_used().is_none());
}

#[test]
fn writes_of_a_driver_that_cannot_flush_are_durable() {
    for (accepted, expected) in [(0, "durable write"), (1 << VIRTIO_BLK_F_FLUSH, "write")] {
        let (backend, slow) = Slow::backend();
        let both = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE;
        let mut bench = Bench::with(block(backend, options()), |features| features & !both | accepted);
        slow.go.send(Ok(())).unwrap();
        assert_eq!((bench.write(0, &[1; 512]), slow.calls.recv().unwrap()), (OK, expected));
    }
}

#[test]
fn a_driver_that_wants_one_interrupt_for_many_requests_gets_one() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    for _ in 0..16 {
        bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    }
    bench.driver.set_used_event(15);
    bench.started.doorbells[0].ring();
    bench.started.interrupts.wait_for_queue();
    assert_eq!((bench.driver.used_index(), bench.started.interrupts.total()), (16, 1));
    assert_eq!(bench.started.stop()[0].next_used, 16);
    let counts = bench.block.counts();
    assert_eq!((counts.reads, counts.interrupts), (16, 1));
    assert!(!bench.block.uses_uring() || counts.host_calls == 1, "{counts:?}");
}

#[test]
fn every_queue_of_a_disk_is_served() {
    let file = image_file();
    let block = block(raw(&file), BlockOptions { queues: 4, ..options() });
    let memory = ram();
    let mut drivers: Vec<_> =
        (0..4).map(|index| Driver::new(&memory, index, 16, index as u64 * 0x4_0000)).collect();
    let started = {
        let drivers: Vec<_> = drivers.iter().collect();
        Started::new(&block, &memory, &drivers, block.features()).unwrap()
    };
    for (driver, doorbell) in drivers.iter_mut().zip(&started.doorbells) {
        driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
        doorbell.ring();
    }
    while drivers.iter().any(|driver| driver.used_index() == 0) {
        started.interrupts.wait_for_queue();
    }
    assert_eq!(block.counts().reads, 4);
}

#[test]
fn a_device_that_is_dropped_has_nothing_left() {
    let file = image_file();
    let bench = Bench::file(&file);
    let Bench { block, started, .. } = bench;
    drop(started);
    drop(block);
    let again = File::options().read(true).write(true).open(file.path()).unwrap();
    while super::lock::lock(&again, true).is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn fault_c3_io_uring_that_is_forbidden_is_an_error_only_if_it_was_asked_for() {
    let refuse = || Err::<(), _>(io::Error::from_raw_os_error(libc::EPERM));
    let choose = |engine| device::choose(&BlockOptions { engine, ..options() }, Some(refuse));
    assert!(!choose(EngineChoice::Auto).unwrap());
    assert!(!choose(EngineChoice::Threads).unwrap());
    let error = choose(EngineChoice::Uring).unwrap_err();
    assert_eq!(error.to_string(), "the disk disk0 cannot use io_uring on this host");
    let not_raw = device::choose(
        &BlockOptions { engine: EngineChoice::Uring, ..options() },
        None::<fn() -> io::Result<()>>,
    );
    assert!(matches!(not_raw, Err(BlockError::NotRaw { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fault_b8_any_request_is_answered_and_only_what_fits_is_done(
        requests in prop::collection::vec(
            (
                prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
                prop_oneof![0..SECTORS + 2, Just(u64::MAX), any::<u64>()],
                prop::collection::vec(prop_oneof![Just(512_usize), 0..1200_usize], 0..4),
                prop::collection::vec(prop_oneof![Just(512_u32), 0..1200_u32], 0..4),
            ),
            1..20,
        ),
    ) {
        let file = image_file();
        let mut bench = Bench::file(&file);
        for (kind, sector, readable, writable) in requests {
            let data: Vec<_> = readable.iter().map(|length| vec![kind as u8; *length]).collect();
            let head = header(kind, sector);
            let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(data.iter().map(Vec::as_slice)).collect();
            let request = bench.driver.submit(&parts, &writable);
            let used = bench.wait();
            prop_assert_eq!(used.head, u32::from(request.head));
            let room: u32 = writable.iter().sum();
            prop_assert!(used.written <= room);
            let count = |bytes: u64| bytes.is_multiple_of(512) && sector.checked_add(bytes / 512).is_some_and(|end| end <= SECTORS);
            let fits = match kind {
                VIRTIO_BLK_T_IN => count(u64::from(room).saturating_sub(1)),
                VIRTIO_BLK_T_OUT => count(readable.iter().sum::<usize>() as u64),
                _ => continue,
            };
            let last = request.writable.iter().rfind(|(_, length)| *length != 0);
            if let Some((address, length)) = last {
                let status = bench.driver.read(address + u64::from(*length) - 1, 1)[0];
                prop_assert_eq!(status, if fits { OK } else { IOERR });
            }
        }
        prop_assert!(!bench.started.needs_reset());
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), SECTORS * SECTOR);
    }
}
