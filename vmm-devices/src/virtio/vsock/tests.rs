//! The device with a driver that behaves and one that does not, and with programs of the host of both kinds.

mod credit;
mod faults;
mod streams;
mod time;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::desc::split::Descriptor;
use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::features::EVENT_IDX;
use crate::virtio::testing::{Driver, NEXT, Started, WRITE, ram};
use crate::{ByPath, Worker};

/// Descriptors of a queue.
const SIZE: u16 = 16;
/// The guest's address.
const CID: u64 = 3;
/// Where the buffers of the queues are, one a descriptor.
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const RECEIVE_BUFFER: u64 = 0x1000;
const TRANSMIT_BUFFERS: u64 = 0x20_0000;
const TRANSMIT_BUFFER: u64 = 0x9000;
/// Most bytes of data in one packet of [`Guest::send`].
const MOST: usize = 0x8000;
/// Bytes the guest's sockets have room for, if a test does not say otherwise.
const ROOM: u32 = 64 << 10;

/// A device without a driver.
struct Machine {
    device: Vsock,
    memory: Arc<AddressSpace>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self::with_places(usize::MAX)
    }

    /// With a place for so many connections.
    fn with_places(connections: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
        let ports = Arc::new(ByPath::new(&path));
        let options = VsockOptions { cid: CID as u32, listener, ports, connections };
        Self { device: Vsock::new(worker, options).unwrap(), memory: ram(), path, _directory: directory }
    }

    /// Something of the host listens to the guest's connections to `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A program of the host that wants `port` of the guest.
    fn ask(&self, port: u32) -> UnixStream {
        let mut stream = self.client();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream
    }

    fn client(&self) -> UnixStream {
        patient(UnixStream::connect(&self.path).unwrap())
    }

    /// A driver with buffers for packets.
    fn start(&self) -> Guest<'_> {
        let mut guest = self.start_without_buffers(EVENT_IDX);
        guest.lend_all();
        guest
    }

    fn start_without_buffers(&self, features: u64) -> Guest<'_> {
        let [receive, transmit, event] =
            [(0, 0x1_0000), (1, 0x3_0000), (2, 0x5_0000)].map(|(index, base)| {
                let driver = Driver::new(&self.memory, index, SIZE, base);
                // As after a reset.
                driver.write(driver.setup().available_ring, &[0; 4]);
                driver.write(driver.setup().used_ring, &[0; 4]);
                driver
            });
        let started =
            Started::new(&self.device, &self.memory, &[&receive, &transmit, &event], features).unwrap();
        Guest { machine: self, started, receive, transmit, next: 0 }
    }
}

/// Nothing here takes as long: a watchdog, not a measure.
fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// A driver that is ready.
struct Guest<'a> {
    machine: &'a Machine,
    started: Started,
    receive: Driver,
    transmit: Driver,
    /// The descriptor of the next packet.
    next: u16,
}

impl Guest<'_> {
    /// Lends all buffers for packets.
    fn lend_all(&mut self) {
        (0..SIZE).for_each(|index| self.lend(index));
    }

    fn lend(&mut self, index: u16) {
        let address = RECEIVE_BUFFERS + RECEIVE_BUFFER * u64::from(index);
        let descriptor = Descriptor::new(address, RECEIVE_BUFFER as u32, WRITE, 0);
        self.receive.set_descriptor(index, descriptor);
        self.receive.make_available(index);
        self.started.doorbells[0].ring();
    }

    /// The next packet; its buffer is lent again.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let used = self.started.wait_used(&mut self.receive, 1)[0];
        self.open(used.head as u16, used.written)
    }

    fn open(&mut self, index: u16, written: u32) -> (Header, Vec<u8>) {
        let address = RECEIVE_BUFFERS + RECEIVE_BUFFER * u64::from(index);
        let bytes = self.receive.read(address, written as usize);
        self.lend(index);
        let header = Header::read(bytes[..HEADER].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER);
        (header, bytes[HEADER..].to_vec())
    }

    /// The next packet, which is one of this operation.
    #[track_caller]
    fn expect(&mut self, op: Op) -> Header {
        let (header, data) = self.packet();
        assert_eq!((Op::of(header.op), data.len()), (Some(op), 0), "{header:?}");
        header
    }

    /// The news that a program has gone; that it sends no more may be told before.
    #[track_caller]
    fn expect_gone(&mut self) -> Header {
        let mut header = self.expect(Op::Shutdown);
        while header.flags != 3 {
            assert_eq!(header.flags, 2);
            header = self.expect(Op::Shutdown);
        }
        header
    }

    /// Makes a packet available, of at most [`MOST`] bytes of data; the device has not taken it then.
    fn post(&mut self, header: &Header, data: &[u8]) {
        let index = self.next;
        self.next = (index + 1) % SIZE;
        let address = TRANSMIT_BUFFERS + TRANSMIT_BUFFER * u64::from(index);
        self.transmit.write(address, &[&header.bytes()[..], data].concat());
        let length = (HEADER + data.len()) as u32;
        self.transmit.set_descriptor(index, Descriptor::new(address, length, 0, 0));
        self.transmit.make_available(index);
        self.started.doorbells[1].ring();
    }

    /// Sends a packet, and waits until the device has taken it.
    fn send(&mut self, header: &Header, data: &[u8]) {
        self.post(header, data);
        assert_eq!(self.started.wait_used(&mut self.transmit, 1)[0].written, 0);
    }

    /// A stream from `guest` to what listens at `host`, and the other end.
    fn connect(&mut self, guest: u32, host: u32, listener: &UnixListener) -> (Stream, UnixStream) {
        let stream = Stream::new(guest, host);
        self.send(&stream.header(Op::Request), &[]);
        let (socket, _) = listener.accept().unwrap();
        let response = self.expect(Op::Response);
        assert_eq!((response.src_port, response.dst_port), (host, guest));
        (Stream { credit: response.buf_alloc, ..stream }, patient(socket))
    }

    /// The same of one that the host asks for.
    fn accept(&mut self, port: u32) -> (Stream, UnixStream) {
        let client = self.machine.ask(port);
        let request = self.expect(Op::Request);
        let mut stream = Stream::new(port, request.src_port);
        stream.credit = request.buf_alloc;
        self.send(&stream.header(Op::Response), &[]);
        let mut line = String::new();
        BufReader::with_capacity(1, &client).read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port));
        (stream, client)
    }

    /// Sends data with credit, in pieces of at most [`MOST`]; waits for credit where there is none.
    fn write(&mut self, stream: &mut Stream, mut data: &[u8]) {
        while !data.is_empty() {
            while stream.free() == 0 {
                let (header, _) = self.packet();
                stream.learn(&header);
            }
            let (now, rest) = data.split_at(data.len().min(MOST).min(stream.free() as usize));
            self.send(&Header { len: now.len() as u32, ..stream.header(Op::Rw) }, now);
            stream.sent = stream.sent.wrapping_add(now.len() as u32);
            data = rest;
        }
    }

    /// Reads so many bytes, says for each packet that it was read, and answers questions.
    fn read(&mut self, stream: &mut Stream, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            let (header, data) = self.packet();
            stream.learn(&header);
            match Op::of(header.op).unwrap() {
                Op::Rw => {
                    assert!(!data.is_empty());
                    all.extend(&data);
                    stream.taken = stream.taken.wrapping_add(data.len() as u32);
                    self.send(&stream.header(Op::CreditUpdate), &[]);
                }
                Op::CreditRequest => self.send(&stream.header(Op::CreditUpdate), &[]),
                Op::CreditUpdate => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(all.len(), length);
        all
    }

    /// Everything that the device was given so far has had its effect, and there was no packet but one that answers this.
    #[track_caller]
    fn ensure_quiet(&mut self) {
        let probe = Header { src_port: 0xdead, ..Stream::new(0xdead, 0xbeef).header(Op::CreditRequest) };
        self.send(&probe, &[]);
        let reset = self.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (0xbeef, 0xdead));
    }

    fn counts(&self) -> VsockCounts {
        self.machine.device.counts()
    }
}

/// The guest's end of a stream.
#[derive(Clone, Copy, Debug)]
struct Stream {
    guest: u32,
    host: u32,
    /// Room here, and what was read of what has come.
    room: u32,
    taken: u32,
    /// Room there, and what was sent and taken.
    credit: u32,
    sent: u32,
    forwarded: u32,
}

impl Stream {
    fn new(guest: u32, host: u32) -> Self {
        Self { guest, host, room: ROOM, taken: 0, credit: 0, sent: 0, forwarded: 0 }
    }

    fn header(&self, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            kind: STREAM,
            op: op.number(),
            buf_alloc: self.room,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header { flags, ..self.header(Op::Shutdown) }
    }

    fn free(&self) -> u32 {
        self.credit - self.sent.wrapping_sub(self.forwarded)
    }

    fn learn(&mut self, header: &Header) {
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
        assert_eq!((header.src_port, header.dst_port), (self.host, self.guest));
        self.credit = header.buf_alloc;
        self.forwarded = header.fwd_cnt;
    }
}

/// Bytes of which no piece is like another.
fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    (0..length).map(next).collect()
}

/// Reads until the end.
fn rest(socket: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).unwrap();
    all
}
