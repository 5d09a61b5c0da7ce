//! The device between a scripted driver and a program that has the other end of a stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::*;
use crate::ByPath;
use crate::rate_limiter::Limits;
use crate::virtio::VirtioDevice;
use crate::virtio::net::frame::LONGEST;
use crate::virtio::net::{Net, NetOptions, Throttle};
use crate::virtio::testing::{Driver, Started, ram};

const SIZE: u16 = 16;
const HEADER: usize = 12;

/// A device, and the program at the other end of its stream.
struct Bench {
    memory: Arc<AddressSpace>,
    link: Arc<StreamLink>,
    net: Net,
    receive: Driver,
    transmit: Driver,
    listener: Option<UnixListener>,
    host: UnixStream,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let link = Arc::new(StreamLink::open(Arc::new(ByPath::new(&path))).unwrap());
        let (host, _) = listener.accept().unwrap();
        let options = NetOptions {
            name: "net0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            receive: Throttle::new(Limits::default()),
            transmit: Throttle::new(Limits::default()),
        };
        let memory = ram();
        Self {
            net: Net::new(Arc::clone(&link) as _, options, &VmEvents::new().unwrap()).unwrap(),
            link,
            receive: Driver::new(&memory, 0, SIZE, 0x1_0000),
            transmit: Driver::new(&memory, 1, SIZE, 0x9_0000),
            listener: Some(listener),
            host,
            directory,
            memory,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Nobody listens any more.
    fn close(&mut self) {
        self.listener = None;
        std::fs::remove_file(self.path()).unwrap();
    }

    /// Somebody listens again, and is found.
    fn listen_again(&mut self) {
        let listener = UnixListener::bind(self.path()).unwrap();
        self.host = listener.accept().unwrap().0;
        self.listener = Some(listener);
    }

    fn start(&self) -> Started {
        Started::new(&self.net, &self.memory, &[&self.receive, &self.transmit], 0).unwrap()
    }

    /// The same, when what was sent before is thrown away.
    fn started(&mut self) -> Started {
        let started = self.start();
        started.doorbells[0].ring();
        // A ring is served after one that came before it, or together with it: twice is enough.
        (0..2).for_each(|_| self.send(&started, b"a frame of 14 bytes and more"));
        started
    }

    /// Has the guest send a frame, and the host receive it.
    fn send(&mut self, started: &Started, frame: &[u8]) {
        self.transmit.submit(&[&[0; HEADER], frame], &[]);
        started.doorbells[1].ring();
        started.wait_used(&mut self.transmit, 1);
        assert!(self.next() == frame);
    }

    /// The next frame that comes to the host.
    fn next(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.host.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.host.read_exact(&mut frame).unwrap();
        frame
    }

    /// What the guest gets of frames that come as `pieces`.
    fn receive(&mut self, started: &Started, pieces: &[&[u8]], frames: usize) -> Vec<Vec<u8>> {
        let buffers: Vec<_> = (0..frames).map(|_| self.receive.submit(&[], &[1400]).writable[0].0).collect();
        started.doorbells[0].ring();
        pieces.iter().for_each(|piece| self.host.write_all(piece).unwrap());
        let used = started.wait_used(&mut self.receive, frames);
        let frames = used.iter().zip(buffers).map(|(used, address)| {
            let mut packet = self.receive.read(address, used.written as usize);
            let frame = packet.split_off(HEADER);
            // Nothing is left to the guest.
            assert_eq!(packet, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            frame
        });
        frames.collect()
    }

    /// Waits until the link is as `up` says.
    fn wait_for_link(&self, up: bool) {
        let is_up = || {
            let mut status = [0; 2];
            self.net.read_config(6, &mut status);
            status[0] != 0
        };
        while is_up() != up {
            std::thread::yield_now();
        }
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

#[test]
fn frames_go_both_ways_however_the_stream_is_cut() {
    let mut bench = Bench::new();
    assert_eq!(bench.net.features() & 0b11, 0, "checksums are left to nobody");
    let started = bench.started();
    let frames: Vec<Vec<u8>> = (0..5_u8).map(|at| vec![at; 20 + 300 * usize::from(at)]).collect();
    for frame in &frames {
        bench.send(&started, frame);
    }
    let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    for length in [1, 5, 1000, stream.len()] {
        let pieces: Vec<&[u8]> = stream.chunks(length).collect();
        assert!(bench.receive(&started, &pieces, 5) == frames, "in pieces of {length}");
    }
    let counts = bench.net.counts();
    assert_eq!((counts.received_frames, counts.host_errors), (20, 0));
}

#[test]
fn what_is_no_frame_is_the_end_of_the_stream_and_another_one_is_looked_for() {
    let mut bench = Bench::new();
    let started = bench.started();
    bench.receive.submit(&[], &[2000]);
    started.doorbells[0].ring();
    bench.close();
    bench.host.write_all(&(LONGEST - HEADER as u32 + 1).to_be_bytes()).unwrap();
    bench.wait_for_link(false);
    assert_eq!(bench.host.read(&mut [0]).unwrap(), 0);
    // What is sent meanwhile is gone.
    bench.transmit.submit(&[&[0; HEADER], &[0; 20]], &[]);
    started.doorbells[1].ring();
    started.wait_used(&mut bench.transmit, 1);
    bench.listen_again();
    bench.wait_for_link(true);
    bench.send(&started, &[7; 100]);
    // Into the buffer that was lent before.
    bench.host.write_all(&framed(&[8; 100])).unwrap();
    assert_eq!(started.wait_used(&mut bench.receive, 1)[0].written, 112);
    let counts = bench.net.counts();
    assert_eq!((counts.link_losses, counts.link_returns, counts.transmitted_failed), (1, 1, 1));
}

#[test]
fn a_program_that_has_gone_before_the_driver_came_is_missed() {
    let mut bench = Bench::new();
    bench.close();
    bench.host.shutdown(std::net::Shutdown::Both).unwrap();
    while bench.link.shared.is_connected.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    let started = bench.start();
    bench.wait_for_link(false);
    bench.listen_again();
    bench.wait_for_link(true);
    bench.send(&started, &[7; 100]);
    assert!(bench.receive(&started, &[&framed(&[8; 50])], 1) == [[8; 50]]);
}

#[test]
fn a_program_that_takes_nothing_keeps_frames_waiting_in_their_order() {
    let mut bench = Bench::new();
    let started = bench.started();
    let frame = |round: usize| vec![round as u8; 60_000 + round];
    // Together more than the sockets hold.
    for round in 0..SIZE.into() {
        bench.transmit.submit(&[&[[0; HEADER].to_vec(), frame(round)].concat()], &[]);
    }
    started.doorbells[1].ring();
    for round in 0..SIZE.into() {
        assert!(bench.next() == frame(round), "frame {round}");
    }
    started.wait_used(&mut bench.transmit, SIZE.into());
}

#[test]
fn a_guest_without_buffers_keeps_a_program_waiting_and_loses_nothing() {
    let mut bench = Bench::new();
    let started = bench.started();
    let mut host = bench.host.try_clone().unwrap();
    // More than all buffers on the way hold, until the device is gone.
    let writing = std::thread::spawn(move || {
        let mut rounds = 0..u32::MAX;
        let frame = |round: u32| framed(&[&round.to_be_bytes()[..], &[0; 996]].concat());
        rounds.find(|round| host.write_all(&frame(*round)).is_err()).unwrap()
    });
    for round in 0..300_u32 {
        let frame = bench.receive(&started, &[], 1).remove(0);
        assert_eq!(frame[..4], round.to_be_bytes());
    }
    drop(started);
    drop(bench);
    assert!(writing.join().unwrap() >= 300);
}

#[test]
fn a_device_that_lets_go_of_its_link_ends_the_connection() {
    let mut bench = Bench::new();
    let started = bench.started();
    bench.net.lose_link();
    assert_eq!(bench.host.read(&mut [0]).unwrap(), 0);
    assert_eq!(started.stop().len(), 2);
}
