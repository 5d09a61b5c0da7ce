//! `Connection`: the state of one stream between a port of the guest and one of the host (virtio 1.3, section 5.10.6.5), without
//! sockets, descriptors and addresses: what comes in is a header, and what goes out is an operation.
//!
//! What is owed to the guest is kept as one bit for each kind of packet, so that a guest that does not take packets costs no
//! memory, however many it provokes.

use super::credit::{Incoming, Outgoing};
use super::packet::{Header, Op, Sides};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has asked; the host has not answered.
    Opening,
    /// The host has asked; whether the guest knows.
    Requested { told: bool },
    /// There are two ends.
    Open,
    /// It is at its end. The guest is owed an RST, and nothing else.
    Ended,
}

/// What a packet of the guest means for the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing.
    Nothing,
    /// The guest has accepted what the host has asked for.
    Accepted,
    /// Its data is for the host.
    Data,
    /// The guest has shut these sides, with those of before; both: this is an orderly end, and the RST that completes it is owed.
    Shut(Sides),
    /// The guest has broken a rule: the connection is at its end, and an RST is owed.
    Broken,
    /// The guest has ended it, and knows nothing of it any more.
    Gone,
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    phase: Phase,
    incoming: Incoming,
    outgoing: Outgoing,
    /// What the guest has shut.
    guest: Sides,
    /// What the host has shut, and what of that the guest was told.
    host: Sides,
    told: Sides,
    owes_response: bool,
    owes_update: bool,
    owes_request: bool,
}

impl Connection {
    fn new(phase: Phase, allocated: u32, outgoing: Outgoing) -> Self {
        Self {
            phase,
            incoming: Incoming::new(allocated),
            outgoing,
            guest: Sides::default(),
            host: Sides::default(),
            told: Sides::default(),
            owes_response: false,
            owes_update: false,
            owes_request: false,
        }
    }

    /// The guest has asked by `request` for a connection, which has room for `allocated` bytes on this side.
    pub(super) fn asked_by_guest(request: &Header, allocated: u32) -> Self {
        Self::new(Phase::Opening, allocated, Outgoing::new(request.buf_alloc))
    }

    /// The host has asked.
    pub(super) fn asked_by_host(allocated: u32) -> Self {
        Self::new(Phase::Requested { told: false }, allocated, Outgoing::new(0))
    }

    /// The guest has sent a packet with that header, and with the `len` bytes it speaks of.
    pub(super) fn receive(&mut self, header: &Header) -> Received {
        let Some(op) = Op::of(header.op) else { return self.break_off() };
        if op == Op::Rst {
            return Received::Gone;
        }
        if self.phase == Phase::Ended {
            return Received::Nothing;
        }
        if !self.outgoing.learn(header.buf_alloc, header.fwd_cnt) {
            return self.break_off();
        }
        match (self.phase, op) {
            (Phase::Requested { told: true }, Op::Response) => {
                self.phase = Phase::Open;
                Received::Accepted
            }
            (Phase::Opening | Phase::Open, Op::CreditUpdate) => Received::Nothing,
            (Phase::Opening | Phase::Open, Op::CreditRequest) => {
                self.owes_update = true;
                Received::Nothing
            }
            (Phase::Open, Op::Rw) => self.receive_data(header.len),
            (Phase::Open, Op::Shutdown) => self.receive_shutdown(Sides::of(header.flags)),
            _ => self.break_off(),
        }
    }

    fn receive_data(&mut self, length: u32) -> Received {
        if self.guest.send || !self.incoming.take(length) {
            return self.break_off();
        }
        if self.host.receive {
            // It may not know yet that nobody receives it.
            self.forward(length);
            return Received::Nothing;
        }
        if length == 0 { Received::Nothing } else { Received::Data }
    }

    fn receive_shutdown(&mut self, sides: Sides) -> Received {
        self.guest = self.guest.and(sides);
        if self.guest == Sides::BOTH {
            self.phase = Phase::Ended;
        }
        Received::Shut(self.guest)
    }

    /// The guest has broken a rule.
    pub(super) fn break_off(&mut self) -> Received {
        self.phase = Phase::Ended;
        Received::Broken
    }

    /// The host has answered what the guest has asked for.
    pub(super) fn accept(&mut self) {
        if self.phase == Phase::Opening {
            self.phase = Phase::Open;
            self.owes_response = true;
        }
    }

    /// The host's end is gone without an orderly end, or has never been there.
    pub(super) fn fail(&mut self) {
        self.phase = Phase::Ended;
    }

    /// The host has shut these sides. `send` is said only when all that it has sent was read.
    pub(super) fn shut(&mut self, sides: Sides) {
        self.host = self.host.and(sides);
        if self.host.receive {
            self.forward(self.incoming.held());
        }
    }

    /// `length` bytes of the guest's were passed on to the host.
    pub(super) fn forward(&mut self, length: u32) {
        self.incoming.forward(length);
        self.owes_update |= self.incoming.is_news();
    }

    /// Whether the guest may get data of the host, if there is some and it has room.
    pub(super) fn wants_data(&self) -> bool {
        self.phase == Phase::Open && !self.guest.receive && !self.host.send
    }

    /// Bytes of data that may be sent to the guest now.
    pub(super) fn room(&self) -> u32 {
        if self.wants_data() { self.outgoing.room() } else { 0 }
    }

    /// There is data for the guest. Without room for it, the guest is to be asked for some.
    pub(super) fn has_data(&mut self) {
        if self.wants_data() {
            self.owes_request |= self.outgoing.ask();
        }
    }

    /// Whether the guest waits for a packet without data.
    pub(super) fn owes(&self) -> bool {
        match self.phase {
            Phase::Opening => false,
            Phase::Requested { told } => !told,
            Phase::Ended => true,
            Phase::Open => {
                self.owes_response || self.owes_update || self.owes_request || self.told != self.host
            }
        }
    }

    /// The next packet without data, and its flags; it is taken to be sent then. After an RST the connection is not there any
    /// more.
    pub(super) fn next(&mut self) -> Option<(Op, u32)> {
        match self.phase {
            Phase::Opening | Phase::Requested { told: true } => None,
            Phase::Requested { told: false } => {
                self.phase = Phase::Requested { told: true };
                Some((Op::Request, 0))
            }
            Phase::Ended => Some((Op::Rst, 0)),
            Phase::Open if std::mem::take(&mut self.owes_response) => Some((Op::Response, 0)),
            Phase::Open if self.told != self.host => {
                self.told = self.host;
                Some((Op::Shutdown, self.host.flags()))
            }
            Phase::Open if std::mem::take(&mut self.owes_request) => Some((Op::CreditRequest, 0)),
            Phase::Open if std::mem::take(&mut self.owes_update) => Some((Op::CreditUpdate, 0)),
            Phase::Open => None,
        }
    }

    /// `length` bytes of data, for which there is room, are sent.
    pub(super) fn send(&mut self, length: u32) {
        self.outgoing.send(length);
    }

    /// What every packet to the guest says of room: `buf_alloc` and `fwd_cnt`.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.owes_update = false;
        self.incoming.tell()
    }

    /// Whether it is open, however little.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the guest is asked for a connection, or will be.
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.phase, Phase::Requested { .. })
    }

    /// Whether it is at its end.
    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// What the guest has shut.
    pub(super) fn shut_by_guest(&self) -> Sides {
        self.guest
    }

    /// What the host has shut.
    pub(super) fn shut_by_host(&self) -> Sides {
        self.host
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
