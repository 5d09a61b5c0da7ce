//! The device between a scripted driver and a host that is a socket.

mod control;
mod faults;
mod kernel;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::fs::OFlags;
use virtio_bindings::virtio_net::*;
use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::frame::{HEADER, LONGEST};
use super::offloads::bit;
use super::*;
use crate::rate_limiter::{Limit, Limits};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::testing::{Driver, Request, Started, Used, ram};

const SIZE: u16 = 16;
const MERGEABLE: u64 = bit(VIRTIO_NET_F_MRG_RXBUF);

/// A link whose other ends a test has, and that notes what it is told.
struct Sockets {
    queues: Vec<Arc<LinkQueue>>,
    left: Mutex<Vec<Offloads>>,
    used: Mutex<Vec<usize>>,
}

impl Sockets {
    /// With the other ends, a packet a call.
    fn new(pairs: usize) -> (Arc<Self>, Vec<File>) {
        let pair = |_| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
            rustix::fs::fcntl_setfl(own.as_fd(), OFlags::NONBLOCK).unwrap();
            (Arc::new(LinkQueue::new(own)), File::from(other))
        };
        let (queues, others) = (0..pairs).map(pair).unzip();
        (Arc::new(Self { queues, left: Mutex::default(), used: Mutex::default() }), others)
    }
}

impl Link for Sockets {
    fn queues(&self) -> &[Arc<LinkQueue>] {
        &self.queues
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: false }
    }

    fn leave(&self, offloads: Offloads) -> io::Result<()> {
        lock(&self.left).push(offloads);
        Ok(())
    }

    fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        lock(&self.used).push(pairs);
        Ok(())
    }
}

/// A device of one pair between a driver and a host.
struct Bench {
    memory: Arc<AddressSpace>,
    net: Net,
    host: File,
    options: NetOptions,
    receive: Driver,
    transmit: Driver,
}

fn options() -> NetOptions {
    NetOptions {
        name: "net0".into(),
        mac: [2, 1, 2, 3, 4, 5],
        mtu: Some(1500),
        receive: Throttle::new(Limits::default()),
        transmit: Throttle::new(Limits::default()),
    }
}

impl Bench {
    fn new() -> Self {
        let (link, mut hosts) = Sockets::new(1);
        let (memory, options) = (ram(), options());
        Self {
            net: Net::new(link, options.clone(), &VmEvents::new().unwrap()).unwrap(),
            host: hosts.remove(0),
            options,
            receive: Driver::new(&memory, 0, SIZE, 0x1_0000),
            transmit: Driver::new(&memory, 1, SIZE, 0x9_0000),
            memory,
        }
    }

    /// Starts the device, and waits until what was sent before is thrown away.
    fn start(&mut self, features: u64) -> Started {
        let drivers = [&self.receive, &self.transmit];
        let started = Started::new(&self.net, &self.memory, &drivers, features).unwrap();
        self.turn(&started);
        started
    }

    /// Comes back when the worker has looked at the receive queue since it was called.
    fn turn(&mut self, started: &Started) {
        started.doorbells[0].ring();
        // A ring is served after one that came before it, or together with it: twice is enough.
        for _ in 0..2 {
            self.send(started, b"turn");
        }
    }

    /// Has the guest send a frame that ends with `text`, and the host receive it.
    fn send(&mut self, started: &Started, text: &[u8]) {
        let frame = frame(text);
        self.transmit.submit(&[&frame], &[]);
        started.doorbells[1].ring();
        assert_eq!(started.wait_used(&mut self.transmit, 1)[0].written, 0);
        assert_eq!(self.next(), frame);
    }

    /// What the host gets next.
    fn next(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; LONGEST as usize + 1];
        let count = self.host.read(&mut bytes).unwrap();
        bytes.truncate(count);
        bytes
    }

    /// Lends a receive buffer.
    fn lend(&mut self, started: &Started, lengths: &[u32]) -> Request {
        let request = self.receive.submit(&[], lengths);
        started.doorbells[0].ring();
        request
    }

    fn received(&self, request: &Request, length: u32) -> Vec<u8> {
        let mut left = length as usize;
        let read = request.writable.iter().flat_map(|&(address, there)| {
            let count = left.min(there as usize);
            left -= count;
            self.receive.read(address, count)
        });
        read.collect()
    }
}

/// A header of some bytes, an Ethernet header of zeros, and `text`.
fn frame(text: &[u8]) -> Vec<u8> {
    let header = [1, 0, 54, 0, 16, 5, 34, 0, 6, 0, 0, 0];
    [&header, &[0; 14][..], text].concat()
}

/// The same as a guest gets it that has lent so many buffers for it.
fn in_buffers(mut frame: Vec<u8>, buffers: u8) -> Vec<u8> {
    frame[10] = buffers;
    frame
}

/// A text of this length.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn frames_go_both_ways_with_their_headers() {
    for features in [0, EVENT_IDX | INDIRECT_DESC, MERGEABLE, MERGEABLE | EVENT_IDX] {
        let mut bench = Bench::new();
        let started = bench.start(features);
        for round in 0..40 {
            let text = text(round * 37);
            bench.send(&started, &text);
            // A header in three pieces.
            let request = bench.lend(&started, &[5, 6, 1, 2000]);
            let frame = frame(&text);
            assert_eq!(bench.host.write(&frame).unwrap(), frame.len());
            let used = started.wait_used(&mut bench.receive, 1);
            assert_eq!(used, [Used { head: request.head.into(), written: frame.len() as u32 }]);
            let received = bench.received(&request, frame.len() as u32);
            assert_eq!(received, in_buffers(frame, 1), "{features:#x}");
        }
        let counts = bench.net.counts();
        assert_eq!((counts.received_frames, counts.transmitted_frames), (40, 42));
        assert_eq!(counts.received_bytes, (0..40).map(|round| 14 + round * 37).sum::<u64>());
        assert_eq!(counts.host_errors, 0);
        assert!(!started.needs_reset());
    }
}

#[test]
fn each_ring_and_each_interrupt_of_a_pair_is_counted() {
    let mut bench = Bench::new();
    // A ring for the receive queue, and two for the other one.
    let started = bench.start(0);
    (0..4).for_each(|_| started.doorbells[0].ring());
    (0..3).for_each(|_| started.doorbells[1].ring());
    while bench.net.counts().notifications < 10 {
        std::thread::yield_now();
    }
    bench.lend(&started, &[2000]);
    bench.host.write_all(&frame(b"counted")).unwrap();
    started.wait_used(&mut bench.receive, 1);
    let interrupts = Arc::clone(&started.interrupts);
    drop(started.stop());
    let counts = bench.net.counts();
    assert!((10..=11).contains(&counts.notifications), "{counts:?}");
    assert!(counts.interrupts > 0);
    assert_eq!(counts.interrupts, interrupts.total());
}

#[test]
fn a_long_frame_is_merged_from_buffers_that_come_at_once() {
    let mut bench = Bench::new();
    let started = bench.start(MERGEABLE);
    // As many as the longest frame needs: it is read straight into them.
    let requests: Vec<_> = (0..SIZE - 1).map(|_| bench.receive.submit(&[], &[5000])).collect();
    bench.lend(&started, &[100]);
    bench.turn(&started);
    let long = frame(&text(12_000));
    bench.host.write_all(&long).unwrap();
    let used = started.wait_used(&mut bench.receive, 3);
    let lengths: Vec<_> = used.iter().map(|used| used.written).collect();
    assert_eq!(lengths, [5000, 5000, 12_026 - 10_000]);
    let whole: Vec<u8> = requests
        .iter()
        .zip(&lengths)
        .flat_map(|(request, length)| bench.received(request, *length))
        .collect();
    assert_eq!(whole, in_buffers(long, 3));
}

#[test]
fn a_frame_for_which_too_few_buffers_are_lent_waits_for_more() {
    let mut bench = Bench::new();
    let started = bench.start(MERGEABLE | EVENT_IDX);
    let first = bench.lend(&started, &[1000]);
    let long = frame(&text(1500));
    bench.host.write_all(&long).unwrap();
    bench.turn(&started);
    assert_eq!(bench.receive.used_index(), 0);
    let second = bench.lend(&started, &[1000]);
    let used = started.wait_used(&mut bench.receive, 2);
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [1000, 526]);
    let whole = [bench.received(&first, 1000), bench.received(&second, 526)].concat();
    assert_eq!(whole, in_buffers(long, 2));
    assert_eq!(bench.net.counts().received_too_long, 0);
}

#[test]
fn what_was_sent_before_a_driver_is_ready_is_not_for_it() {
    let mut bench = Bench::new();
    bench.host.write_all(&frame(b"stale")).unwrap();
    let started = bench.start(0);
    let request = bench.lend(&started, &[2000]);
    let fresh = frame(b"fresh");
    bench.host.write_all(&fresh).unwrap();
    let used = started.wait_used(&mut bench.receive, 1);
    assert_eq!(bench.received(&request, used[0].written), in_buffers(fresh, 1));
}

#[test]
fn either_direction_goes_on_under_a_flood_of_the_other() {
    let mut bench = Bench::new();
    let started = bench.start(EVENT_IDX);
    let mut flood = bench.host.try_clone().unwrap();
    let flooding = std::thread::spawn(move || {
        // Until the device is gone.
        while flood.write(&frame(&[0; 100])).is_ok() {}
    });
    for round in 0..200 {
        bench.lend(&started, &[2000]);
        bench.transmit.submit(&[&frame(&text(round))], &[]);
        started.doorbells[1].ring();
        started.wait_used(&mut bench.transmit, 1);
        started.wait_used(&mut bench.receive, 1);
        assert_eq!(bench.next(), frame(&text(round)));
    }
    drop(started);
    drop(bench);
    flooding.join().unwrap();
}

#[test]
fn a_queue_that_stops_leaves_the_buffers_that_it_holds_to_the_next() {
    let mut bench = Bench::new();
    for round in 0..20_u16 {
        let started = bench.start(MERGEABLE);
        for _ in 0..3 {
            bench.lend(&started, &[2000]);
        }
        bench.host.write_all(&frame(b"one")).unwrap();
        started.wait_used(&mut bench.receive, 1);
        bench.turn(&started);
        let mut states = started.stop();
        states.sort_by_key(|state| state.index);
        assert_eq!((states[0].next_available, states[0].next_used), (1, 1), "round {round}");
        let (memory, base) = (&bench.memory, [0x1_0000, 0x9_0000]);
        bench.receive = Driver::new(memory, 0, SIZE, base[0]).starting_at(0);
        bench.transmit = Driver::new(memory, 1, SIZE, base[1]).starting_at(0);
    }
}

/// A bucket of so many operations that is not filled again in the time of a test.
fn operations(capacity: u64) -> Limits {
    let limit = Limit::new(capacity, Duration::from_secs(1 << 30), 0).unwrap();
    Limits { bytes: None, operations: Some(limit) }
}

#[test]
fn fault_b15_each_direction_has_its_limit_and_what_waits_goes_when_it_is_lifted() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    bench.options.transmit.change(|_| operations(1));
    bench.options.receive.change(|_| operations(1));
    for text in [b"one", b"two"] {
        bench.transmit.submit(&[&frame(text)], &[]);
        bench.lend(&started, &[2000]);
        bench.host.write_all(&frame(text)).unwrap();
    }
    started.doorbells[1].ring();
    started.wait_used(&mut bench.transmit, 1);
    started.wait_used(&mut bench.receive, 1);
    assert_eq!(bench.next(), frame(b"one"));
    // The worker has found the second ones by then.
    while bench.net.counts().transmitted_throttled + bench.net.counts().received_throttled < 2 {
        std::thread::yield_now();
    }
    (0..50).for_each(|_| started.doorbells.iter().for_each(crate::Doorbell::ring));
    assert_eq!((bench.transmit.used_index(), bench.receive.used_index()), (1 + 2, 1));
    bench.options.transmit.change(|_| Limits::default());
    bench.options.receive.change(|_| Limits::default());
    started.wait_used(&mut bench.transmit, 1);
    started.wait_used(&mut bench.receive, 1);
    assert_eq!(bench.next(), frame(b"two"));
    let counts = bench.net.counts();
    assert_eq!((counts.transmitted_throttled, counts.received_throttled), (1, 1));
}
