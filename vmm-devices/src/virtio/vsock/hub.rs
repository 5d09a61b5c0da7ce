//! `Hub`: where packets of the guest meet sockets of the host, for one life of a driver.
//!
//! Nothing here waits, and nothing grows without bound: connections and clients are counted, each connection holds no more bytes
//! than the guest was promised, and what a guest provokes without a connection is a line of refusals, which stops the transmit
//! queue when it is full (virtio 1.3, section 5.10.6.1).

mod hosts;

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_core::LogLimit;

use super::connection::{Connection, Received};
use super::counters::Counters;
use super::host::{Read, Stream, Watch};
use super::packet::{HEADER_LENGTH, HOST_CID, Header, Op, STREAM, Sides};
use super::table::{End, Key, Table};
use crate::Connector;

/// Refusals that wait for the guest to take them.
pub(super) const MOST_REFUSALS: usize = 256;

/// How long a guest may take to complete the end of a connection that the host has left.
const CLOSING: Duration = Duration::from_secs(10);

/// What a hub is made of.
pub(super) struct Parts {
    pub(super) cid: u64,
    /// Whether the driver knows stream sockets.
    pub(super) streams: bool,
    /// Most connections.
    pub(super) most: usize,
    /// To what listens to the guest's connections to a port.
    pub(super) ports: Arc<dyn Connector>,
    pub(super) listener: UnixListener,
    pub(super) watch: Arc<Watch>,
    pub(super) counters: Arc<Counters>,
}

/// The connections of a driver.
pub(super) struct Hub {
    parts: Parts,
    table: Table,
    refusals: VecDeque<Header>,
    /// Connections that the host had no place for at that moment.
    retries: VecDeque<u64>,
    retry_at: Option<Instant>,
    /// Whether the listener is watched.
    listens: bool,
    /// Nobody is taken in before that.
    deaf_until: Option<Instant>,
    /// The transmit queue has been left because of the refusals.
    pub(super) holds_transmit: bool,
    /// For hosts that have run out of descriptors.
    log: LogLimit,
}

impl Hub {
    pub(super) fn new(parts: Parts) -> Self {
        parts.counters.connections.set(0);
        let mut hub = Self {
            table: Table::new(hosts::LISTENER.wrapping_add(1), parts.most),
            refusals: VecDeque::new(),
            retries: VecDeque::new(),
            retry_at: None,
            listens: false,
            deaf_until: None,
            holds_transmit: false,
            log: LogLimit::default(),
            parts,
        };
        hub.listen();
        hub
    }

    /// Whether there is a packet for the guest, or perhaps.
    pub(super) fn has_packets(&self) -> bool {
        !self.refusals.is_empty() || self.table.queued() != 0
    }

    /// Whether packets of the guest can be taken: whatever they are, there is room for the answer.
    pub(super) fn takes_packets(&self) -> bool {
        self.refusals.len() < MOST_REFUSALS
    }

    /// A buffer of the guest that is no packet.
    pub(super) fn malformed(&self) {
        self.parts.counters.broken.one();
    }

    /// A packet of the guest with `there` bytes behind its header. Returns whose the data is, for [`deliver`](Self::deliver).
    pub(super) fn receive(&mut self, header: &Header, there: u32, now: Instant) -> Option<u64> {
        self.parts.counters.packets_to_host.one();
        let known = header.src_cid == self.parts.cid && header.dst_cid == HOST_CID && header.kind == STREAM;
        if !known {
            self.parts.counters.broken.one();
            self.refuse(header);
            return None;
        }
        let key = Key { host: header.dst_port, guest: header.src_port };
        let op = Op::of(header.op);
        let whole = op != Some(Op::Rw) || header.len <= there;
        match self.table.find(key) {
            None if op == Some(Op::Request) => self.open(key, header, now),
            None => {
                if !whole || op.is_none() {
                    self.parts.counters.broken.one();
                }
                self.refuse(header);
            }
            Some(id) => {
                let data = self.receive_of(id, header, whole);
                self.wake(id);
                return data.then_some(id);
            }
        }
        None
    }

    /// A packet of the connection `id`, of which all has come, or not. Whether its data is wanted.
    fn receive_of(&mut self, id: u64, header: &Header, whole: bool) -> bool {
        let Some(End::Connected { key, connection, stream }) = self.table.get(id) else { return false };
        let port = key.host;
        let was_requested = connection.is_requested();
        let received = if whole { connection.receive(header) } else { connection.break_off() };
        let counters = &self.parts.counters;
        if was_requested && (received == Received::Gone || connection.has_ended()) {
            counters.refused_by_guest.one();
        }
        match received {
            Received::Nothing => {}
            Received::Data => return true,
            Received::Accepted => {
                let accepted = stream.as_mut().is_some_and(|stream| hosts::greet(stream, port));
                if accepted {
                    counters.opened_by_host.one();
                } else {
                    connection.fail();
                }
                self.table.expire(id, None);
            }
            Received::Shut(Sides::BOTH) => {
                if let Some(stream) = stream.take() {
                    self.linger(stream);
                }
            }
            Received::Shut(sides) => {
                if let Some(stream) = stream {
                    if sides.receive {
                        stream.shut_read();
                    }
                    if sides.send && stream.backlog() == 0 {
                        stream.shut_write();
                    }
                }
            }
            Received::Broken => counters.broken.one(),
            Received::Gone => drop(self.table.remove(id)),
        }
        false
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        self.refusals.extend(header.refusal());
    }

    /// The guest asks for a connection.
    fn open(&mut self, key: Key, header: &Header, now: Instant) {
        if !self.parts.streams || !self.table.has_place() {
            self.parts.counters.refused_by_host.one();
            self.refuse(header);
            return;
        }
        let connection = Connection::asked_by_guest(header, self.table.room());
        let id = self.table.number();
        self.table.insert(id, End::Connected { key, connection, stream: None });
        self.table.expire(id, now.checked_add(hosts::CONNECTING));
        self.connect(id, key.host, now);
    }

    /// Data of the guest for the connection `id`.
    pub(super) fn deliver(&mut self, id: u64, bytes: &[u8]) {
        let Some(End::Connected { connection, stream: Some(stream), .. }) = self.table.get(id) else {
            return;
        };
        if connection.has_ended() || connection.shut_by_host().receive {
            return;
        }
        match stream.write(bytes) {
            Ok(taken) => {
                forward(connection, taken);
                self.parts.counters.bytes_to_host.add(taken);
                if stream.backlog() != 0 && !stream.wants_room {
                    stream.wants_room = self.parts.watch.change(stream, id, true).is_ok();
                }
            }
            Err(_) => shut(connection, stream, Sides { receive: true, send: false }),
        }
        self.wake(id);
    }

    /// Puts the connection `id` into the line, if the guest is to get something of it. To be called when anything has happened to
    /// it; the host's end goes here if nothing more comes or goes.
    fn wake(&mut self, id: u64) {
        let Some(End::Connected { connection, stream, .. }) = self.table.get(id) else { return };
        if connection.has_ended() || connection.shut_by_host() == Sides::BOTH {
            *stream = None;
        }
        let readable = stream.as_ref().is_some_and(|stream| stream.readable);
        if readable {
            connection.has_data();
        }
        if connection.owes() || readable && connection.room() != 0 {
            self.table.queue(id);
        }
    }

    /// The next packet for the guest: its header, and how many bytes of `data` are its data. There may be another one though
    /// there is none now: [`has_packets`](Self::has_packets) says so.
    pub(super) fn next_packet(&mut self, data: &mut [u8], now: Instant) -> Option<(Header, usize)> {
        let packet = match self.refusals.pop_front() {
            Some(refusal) => Some((refusal, 0)),
            // Whoever comes into the line meanwhile is not looked at: this is to end.
            None => (0..self.table.queued()).find_map(|_| {
                let id = self.table.next_queued()?;
                let packet = self.packet_of(id, data, now);
                self.wake(id);
                packet
            }),
        };
        let (header, length) = packet?;
        let counters = &self.parts.counters;
        counters.packets_to_guest.one();
        counters.bytes_to_guest.add(length);
        if header.op == Op::Rst.number() {
            counters.resets.one();
        }
        Some((header, length))
    }

    fn packet_of(&mut self, id: u64, data: &mut [u8], now: Instant) -> Option<(Header, usize)> {
        let End::Connected { key, connection, stream } = self.table.get(id)? else { return None };
        let (op, flags, length) = match connection.next() {
            Some((op, flags)) => (op, flags, 0),
            None => match read(connection, stream.as_mut(), data) {
                0 => return None,
                length => (Op::Rw, 0, length),
            },
        };
        let (buf_alloc, fwd_cnt) = connection.tell_credit();
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: self.parts.cid,
            src_port: key.host,
            dst_port: key.guest,
            // At most as much as there was credit for.
            len: u32::try_from(length).unwrap_or(u32::MAX),
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc,
            fwd_cnt,
        };
        match op {
            Op::Rst => drop(self.table.remove(id)),
            Op::Shutdown if Sides::of(flags) == Sides::BOTH => {
                self.table.expire(id, now.checked_add(CLOSING));
            }
            _ => {}
        }
        Some((header, length))
    }

    /// Takes what is left of a connection whose guest has sent all.
    fn linger(&mut self, stream: Stream) {
        if stream.backlog() == 0 {
            return;
        }
        let id = self.table.number();
        if self.parts.watch.change(&stream, id, true).is_ok() {
            self.table.insert(id, End::Lingering { stream });
        }
    }

    /// How many connections there are, for those who count.
    pub(super) fn count(&self) {
        self.parts.counters.connections.set(self.table.connections());
    }

    /// The first moment at which something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.table.deadline(), self.retry_at, self.deaf_until].into_iter().flatten().min()
    }
}

/// Says that the host has taken `length` of the guest's bytes, of which there are no more than were promised.
fn forward(connection: &mut Connection, length: usize) {
    connection.forward(u32::try_from(length).unwrap_or(u32::MAX));
}

/// The host has shut these sides of a connection.
fn shut(connection: &mut Connection, stream: &mut Stream, sides: Sides) {
    connection.shut(sides);
    if connection.shut_by_host().receive {
        stream.discard();
    }
}

/// Reads data for the guest into `data`, no more than there is credit for; how many bytes those are.
fn read(connection: &mut Connection, stream: Option<&mut Stream>, data: &mut [u8]) -> usize {
    let Some(stream) = stream.filter(|stream| stream.readable) else { return 0 };
    let most = usize::try_from(connection.room()).unwrap_or(usize::MAX).min(data.len());
    let Some(data) = data.get_mut(..most).filter(|data| !data.is_empty()) else { return 0 };
    match stream.read(data) {
        Ok(Read::Bytes(length)) => {
            connection.send(u32::try_from(length).unwrap_or(u32::MAX));
            length
        }
        Ok(Read::Nothing) => 0,
        Ok(Read::End) => {
            let sides = Sides { receive: stream.hung_up, send: true };
            shut(connection, stream, sides);
            0
        }
        // The other end has gone without reading all.
        Err(_) => {
            connection.fail();
            0
        }
    }
}

/// The most bytes of data that fit into a buffer of the guest.
pub(super) fn room_for_data(buffer: u32) -> Option<usize> {
    usize::try_from(buffer.checked_sub(HEADER_LENGTH)?).ok()
}
