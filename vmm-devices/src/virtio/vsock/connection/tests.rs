//! A connection, packet by packet, and against a model that knows everything.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const ROOM: u32 = 1000;

fn packet(op: Op) -> Header {
    Header { op: op.number(), buf_alloc: ROOM, ..Header::default() }
}

fn data(length: u32) -> Header {
    Header { len: length, ..packet(Op::Rw) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(Op::Shutdown) }
}

/// One that the guest has asked for, and that the host has accepted.
fn open() -> Connection {
    let mut connection = Connection::asked_by_guest(&packet(Op::Request), ROOM);
    connection.accept();
    assert_eq!((connection.next(), connection.tell_credit()), (Some((Op::Response, 0)), (ROOM, 0)));
    assert!(!connection.owes());
    connection
}

/// It is at its end, and an RST is all that it has to say.
#[track_caller]
fn ensure_reset(connection: &mut Connection) {
    assert!(connection.has_ended() && connection.owes() && connection.room() == 0);
    assert_eq!(connection.next(), Some((Op::Rst, 0)));
}

#[test]
fn a_guest_that_asks_gets_an_answer_when_the_host_has_one() {
    let mut connection = Connection::asked_by_guest(&packet(Op::Request), ROOM);
    assert_eq!((connection.owes(), connection.next(), connection.room()), (false, None, 0));
    connection.accept();
    assert!(connection.owes());
    assert_eq!(connection.next(), Some((Op::Response, 0)));
    assert_eq!(connection.room(), ROOM);

    let mut connection = Connection::asked_by_guest(&packet(Op::Request), ROOM);
    connection.fail();
    ensure_reset(&mut connection);
}

#[test]
fn a_guest_that_is_asked_is_asked_once_and_answers_only_then() {
    let mut connection = Connection::asked_by_host(ROOM);
    assert_eq!(connection.next(), Some((Op::Request, 0)));
    assert_eq!((connection.owes(), connection.next(), connection.room()), (false, None, 0));
    assert_eq!(connection.receive(&packet(Op::Response)), Received::Accepted);
    assert_eq!(connection.room(), ROOM);

    let mut connection = Connection::asked_by_host(ROOM);
    assert_eq!(connection.receive(&packet(Op::Response)), Received::Broken);
    ensure_reset(&mut connection);
}

#[test]
fn fault_b10_packets_that_do_not_fit_the_state_end_the_connection() {
    use Op::{CreditRequest, CreditUpdate, Request, Response, Rw, Shutdown};
    let opening = || Connection::asked_by_guest(&packet(Request), ROOM);
    let requested = || {
        let mut connection = Connection::asked_by_host(ROOM);
        connection.next();
        connection
    };
    for (states, ops) in [
        (opening as fn() -> Connection, &[Request, Response, Rw, Shutdown][..]),
        (requested, &[Request, Rw, Shutdown, CreditUpdate, CreditRequest]),
        (open, &[Request, Response]),
    ] {
        for op in ops {
            let mut connection = states();
            assert_eq!(connection.receive(&packet(*op)), Received::Broken, "{op:?}");
            ensure_reset(&mut connection);
        }
        for number in [0, 8, u16::MAX] {
            let mut connection = states();
            assert_eq!(connection.receive(&Header { op: number, ..data(0) }), Received::Broken);
            ensure_reset(&mut connection);
        }
        assert_eq!(states().receive(&packet(Op::Rst)), Received::Gone);
    }
}

#[test]
fn fault_b10_credit_that_overflows_ends_the_connection() {
    let mut connection = open();
    assert_eq!(connection.receive(&data(ROOM)), Received::Data);
    assert_eq!(connection.receive(&data(0)), Received::Nothing);
    assert_eq!(connection.receive(&data(1)), Received::Broken);
    ensure_reset(&mut connection);
    // Whatever comes until the guest knows: nothing of it is taken.
    assert_eq!(connection.receive(&data(1)), Received::Nothing);
    assert_eq!(connection.receive(&packet(Op::Request)), Received::Nothing);
    assert_eq!(connection.receive(&packet(Op::Rst)), Received::Gone);
}

#[test]
fn fault_b10_a_guest_that_took_what_was_not_sent_is_reset() {
    let mut connection = open();
    connection.send(10);
    assert_eq!(connection.receive(&Header { fwd_cnt: 10, ..packet(Op::CreditUpdate) }), Received::Nothing);
    assert_eq!(connection.receive(&Header { fwd_cnt: 11, ..packet(Op::CreditUpdate) }), Received::Broken);
    ensure_reset(&mut connection);
}

#[test]
fn a_guest_that_asks_for_credit_gets_one_answer_and_one_that_runs_out_is_told() {
    let mut connection = open();
    connection.receive(&packet(Op::CreditRequest));
    connection.receive(&packet(Op::CreditRequest));
    assert_eq!((connection.next(), connection.next()), (Some((Op::CreditUpdate, 0)), None));
    assert_eq!(connection.receive(&data(ROOM)), Received::Data);
    connection.forward(ROOM);
    assert_eq!((connection.next(), connection.tell_credit()), (Some((Op::CreditUpdate, 0)), (ROOM, ROOM)));
    assert_eq!(connection.next(), None);
}

#[test]
fn data_without_room_asks_the_guest_once() {
    let mut connection = open();
    connection.has_data();
    assert!(!connection.owes());
    connection.send(ROOM);
    connection.has_data();
    connection.has_data();
    assert_eq!((connection.next(), connection.next()), (Some((Op::CreditRequest, 0)), None));
    connection.has_data();
    assert!(!connection.owes());
    connection.receive(&Header { fwd_cnt: 1, ..packet(Op::CreditUpdate) });
    assert_eq!(connection.room(), 1);
}

#[test]
fn a_side_that_the_host_has_shut_is_told_once_and_stays_shut() {
    let mut connection = open();
    connection.shut(Sides::of(2));
    assert_eq!((connection.next(), connection.next()), (Some((Op::Shutdown, 2)), None));
    assert!(!connection.wants_data());
    // The other direction goes on.
    assert_eq!(connection.receive(&data(5)), Received::Data);
    connection.shut(Sides::of(2));
    assert!(!connection.owes());
    connection.shut(Sides::of(1));
    assert_eq!((connection.next(), connection.next()), (Some((Op::Shutdown, 3)), None));
    // What the guest sends before it knows is dropped, and its room comes back.
    assert_eq!(connection.receive(&data(ROOM)), Received::Nothing);
    assert_eq!(
        (connection.next(), connection.tell_credit()),
        (Some((Op::CreditUpdate, 0)), (ROOM, ROOM + 5))
    );
    assert_eq!(connection.receive(&packet(Op::Rst)), Received::Gone);
}

#[test]
fn fault_b10_sides_that_the_guest_has_shut_stay_shut_and_both_are_an_orderly_end() {
    let mut connection = open();
    assert_eq!(connection.receive(&shutdown(1)), Received::Shut(Sides::of(1)));
    assert_eq!((connection.room(), connection.wants_data()), (0, false));
    connection.has_data();
    assert!(!connection.owes());
    assert_eq!(connection.receive(&data(5)), Received::Data);
    // Hints are permanent (section 5.10.6.5).
    assert_eq!(connection.receive(&shutdown(0)), Received::Shut(Sides::of(1)));
    assert_eq!(connection.receive(&shutdown(2)), Received::Shut(Sides::BOTH));
    ensure_reset(&mut connection);

    let mut connection = open();
    assert_eq!(connection.receive(&shutdown(2)), Received::Shut(Sides::of(2)));
    assert_eq!(connection.room(), ROOM);
    assert_eq!(connection.receive(&data(1)), Received::Broken);
    ensure_reset(&mut connection);
}

/// What may happen to a connection.
#[derive(Clone, Debug)]
enum Step {
    /// The guest's application writes; its driver sends as much as it has credit for, in packets of at most so much.
    GuestWrites { bytes: u16, packet: u16 },
    /// The guest's application reads, and the driver says so, or not.
    GuestReads { bytes: u16, says: bool },
    /// The guest asks for room.
    GuestAsks,
    /// The guest shuts its sending side.
    GuestShuts,
    /// The host writes.
    HostWrites { bytes: u16 },
    /// The host reads.
    HostReads { bytes: u16 },
    /// The host shuts its sending side.
    HostShuts,
    /// The guest takes so many packets.
    Deliver { packets: u8, room: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u16>(), 1..3000_u16).prop_map(|(bytes, packet)| Step::GuestWrites { bytes, packet }),
        4 => (any::<u16>(), any::<bool>()).prop_map(|(bytes, says)| Step::GuestReads { bytes, says }),
        1 => Just(Step::GuestAsks),
        1 => Just(Step::GuestShuts),
        4 => any::<u16>().prop_map(|bytes| Step::HostWrites { bytes }),
        4 => any::<u16>().prop_map(|bytes| Step::HostReads { bytes }),
        1 => Just(Step::HostShuts),
        6 => (any::<u8>(), 1..3000_u16).prop_map(|(packets, room)| Step::Deliver { packets, room }),
    ]
}

/// Both ends of a connection, every byte numbered, with counters that do not wrap.
struct Model {
    connection: Connection,
    /// Room of the guest's socket and of this side.
    guest_room: u64,
    host_room: u64,
    /// Of the guest's bytes: written by its application, sent, passed on to the host's reader.
    written: u64,
    sent: u64,
    read: u64,
    /// What the guest was told last of `read`.
    told: u64,
    /// Of the host's bytes: those that wait in its socket, and those that came to the guest, and what was read of them.
    waiting: VecDeque<u64>,
    next: u64,
    arrived: u64,
    taken: u64,
    guest_shut: bool,
    guest_told_shut: bool,
    host_shut: bool,
    end_arrived: bool,
}

impl Model {
    fn new(guest_room: u32, host_room: u32) -> Self {
        let request = Header { buf_alloc: guest_room, ..packet(Op::Request) };
        let mut connection = Connection::asked_by_guest(&request, host_room);
        connection.accept();
        assert_eq!(connection.next(), Some((Op::Response, 0)));
        connection.tell_credit();
        Self {
            connection,
            guest_room: guest_room.into(),
            host_room: host_room.into(),
            written: 0,
            sent: 0,
            read: 0,
            told: 0,
            waiting: VecDeque::new(),
            next: 0,
            arrived: 0,
            taken: 0,
            guest_shut: false,
            guest_told_shut: false,
            host_shut: false,
            end_arrived: false,
        }
    }

    fn header(&self, op: Op) -> Header {
        Header {
            op: op.number(),
            buf_alloc: self.guest_room as u32,
            fwd_cnt: self.taken as u32,
            ..Header::default()
        }
    }

    /// The guest's driver sends what it may.
    fn transmit(&mut self, most: u64) {
        while self.sent < self.written {
            let free = self.host_room - (self.sent - self.told);
            let length = (self.written - self.sent).min(free).min(most);
            if length == 0 {
                return;
            }
            let header = Header { len: length as u32, ..self.header(Op::Rw) };
            assert_eq!(self.connection.receive(&header), Received::Data);
            self.sent += length;
            assert!(self.sent - self.read <= self.host_room, "more is held than was promised");
        }
        if self.guest_shut && !std::mem::replace(&mut self.guest_told_shut, true) {
            let header = Header { flags: 2, ..self.header(Op::Shutdown) };
            assert!(matches!(self.connection.receive(&header), Received::Shut(_)));
        }
    }

    /// The guest takes the next packet; whether there was one.
    fn deliver(&mut self, room: u64) -> bool {
        let packet = self.connection.next();
        if packet.is_none() {
            let length = u64::from(self.connection.room()).min(room).min(self.waiting.len() as u64);
            if length == 0 {
                if self.waiting.is_empty() && self.host_shut && !self.connection.shut_by_host().send {
                    // The socket is at its end.
                    self.connection.shut(Sides::of(2));
                    return true;
                }
                if !self.waiting.is_empty() {
                    self.connection.has_data();
                }
                return self.connection.owes();
            }
            self.connection.send(length as u32);
            for number in self.waiting.drain(..length as usize) {
                assert_eq!(number, self.arrived, "a byte is lost or comes twice");
                self.arrived += 1;
            }
            assert!(!self.end_arrived, "data after the end");
            assert!(self.arrived - self.taken <= self.guest_room, "more is sent than there is room for");
        }
        let (allocated, forwarded) = self.connection.tell_credit();
        assert_eq!((u64::from(allocated), forwarded), (self.host_room, self.read as u32));
        self.told = self.read;
        match packet {
            Some((Op::CreditRequest, _)) => {
                assert_eq!(self.connection.receive(&self.header(Op::CreditUpdate)), Received::Nothing);
            }
            Some((Op::Shutdown, flags)) => {
                assert_eq!(flags, 2);
                assert!(self.waiting.is_empty() && self.host_shut);
                self.end_arrived = true;
            }
            Some((op, _)) => assert_eq!(op, Op::CreditUpdate),
            None => {}
        }
        true
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::GuestWrites { bytes, packet } => {
                if !self.guest_shut {
                    self.written += u64::from(bytes);
                }
                self.transmit(packet.into());
            }
            Step::GuestReads { bytes, says } => {
                self.taken += u64::from(bytes).min(self.arrived - self.taken);
                if says {
                    assert_eq!(self.connection.receive(&self.header(Op::CreditUpdate)), Received::Nothing);
                }
            }
            Step::GuestAsks => {
                assert_eq!(self.connection.receive(&self.header(Op::CreditRequest)), Received::Nothing);
                assert!(self.connection.owes());
            }
            Step::GuestShuts => self.guest_shut = true,
            Step::HostWrites { bytes } => {
                if !self.host_shut {
                    self.waiting.extend(self.next..self.next + u64::from(bytes));
                    self.next += u64::from(bytes);
                    self.connection.has_data();
                }
            }
            Step::HostReads { bytes } => {
                let length = u64::from(bytes).min(self.sent - self.read);
                self.read += length;
                self.connection.forward(length as u32);
            }
            Step::HostShuts => self.host_shut = true,
            Step::Deliver { packets, room } => {
                for _ in 0..packets {
                    if !self.deliver(room.into()) {
                        break;
                    }
                }
            }
        }
        assert!(!self.connection.has_ended(), "no rule was broken");
    }

    /// Everybody reads from now on: all arrives.
    fn settle(&mut self) {
        self.guest_shut = true;
        self.host_shut = true;
        let state = |model: &Self| {
            (model.arrived, model.taken, model.read, model.told, model.guest_told_shut, model.end_arrived)
        };
        let mut idle = 0;
        // What one says in a turn the other one finds in the next.
        while idle < 3 {
            let before = state(self);
            self.transmit(1500);
            self.apply(&Step::HostReads { bytes: u16::MAX });
            self.apply(&Step::Deliver { packets: 8, room: 1500 });
            self.apply(&Step::GuestReads { bytes: u16::MAX, says: true });
            idle = if state(self) == before { idle + 1 } else { 0 };
        }
        assert_eq!((self.arrived, self.read), (self.next, self.written), "a byte is stuck");
        assert!(self.end_arrived && self.guest_told_shut, "an end has not arrived");
    }
}

proptest! {
    /// Whatever the order: no byte is lost, comes twice or is stuck, and nobody is sent more than it has room for.
    #[test]
    fn it_is_two_pipes_of_bounded_length(
        guest_room in 64..100_000_u32,
        host_room in 64..100_000_u32,
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut model = Model::new(guest_room, host_room);
        steps.iter().for_each(|step| model.apply(step));
        model.settle();
    }

    /// Any packet in any state: no panic, and what is owed ends.
    #[test]
    fn fault_b10_no_packet_confuses_it(
        asked_by_host in any::<bool>(),
        packets in prop::collection::vec((0..9_u16, any::<u32>(), 0..3000_u32, any::<u32>(), 0..3000_u32, 0..7_u8), 0..50),
    ) {
        let mut connection = if asked_by_host {
            Connection::asked_by_host(ROOM)
        } else {
            Connection::asked_by_guest(&packet(Op::Request), ROOM)
        };
        let mut held = 0;
        for (op, flags, len, buf_alloc, fwd_cnt, action) in packets {
            let header = Header { op, flags, len, buf_alloc, fwd_cnt, ..Header::default() };
            match connection.receive(&header) {
                Received::Data => held += len,
                Received::Gone => break,
                _ => {}
            }
            prop_assert!(held <= ROOM, "more is held than was promised");
            match action {
                0 => connection.accept(),
                1 => connection.fail(),
                2 => { connection.forward(held); held = 0; }
                3 => { connection.shut(Sides::of(flags)); if connection.shut_by_host().receive { held = 0; } }
                4 => { let room = connection.room().min(500); connection.send(room); connection.has_data(); }
                _ => {}
            }
            let mut owed = 0;
            while !connection.has_ended() && connection.next().is_some() {
                owed += 1;
                prop_assert!(owed <= 5);
            }
            connection.tell_credit();
        }
    }
}
