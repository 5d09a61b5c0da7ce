//! Drivers and programs of the host that break rules: none of them costs anybody else anything.

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::hub::MOST_REFUSALS;
use crate::virtio::vsock::line::LONGEST;
use crate::virtio::vsock::table::{MOST_CONNECTIONS, MOST_GREETINGS};

/// A stream that still works.
fn ensure_works(guest: &mut Guest<'_>, stream: &mut Stream, socket: &mut UnixStream) {
    guest.write(stream, b"ping");
    let mut text = [0; 4];
    socket.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ping");
    socket.write_all(b"pong").unwrap();
    assert_eq!(guest.read(stream, 4), b"pong");
}

#[test]
fn fault_b10_packets_of_nobody_are_refused_to_where_they_say_they_come_from() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let _listener = machine.listen(80);
    let (mut stream, mut socket) = guest.accept(9);
    let request = Stream::new(1, 80).header(Op::Request);
    let data = Stream::new(1, 80).header(Op::Rw);
    let same_ports = Header { src_cid: 77, ..stream.header(Op::Rst) };
    for header in [
        Header { src_cid: 4, ..request },
        Header { src_cid: 2, ..request },
        Header { src_cid: u64::MAX, ..request },
        Header { src_cid: 3 | 1 << 32, ..request },
        Header { dst_cid: 1, ..request },
        Header { dst_cid: 3, ..request },
        Header { dst_cid: 2 | 1 << 32, ..request },
        Header { kind: 2, ..request },
        Header { kind: 0, ..request },
        Header { kind: u16::MAX, ..request },
        Header { op: 0, ..request },
        Header { op: 8, ..request },
        Header { op: u16::MAX, ..request },
        Stream::new(1, 80).header(Op::Response),
        Stream::new(1, 80).shutdown(3),
        Stream::new(1, 80).header(Op::CreditUpdate),
        Stream::new(1, 80).header(Op::CreditRequest),
        data,
        Header { len: 100, ..data },
        Header { len: u32::MAX, ..data },
        Header { kind: 2, ..stream.header(Op::Rw) },
        Header { src_cid: 77, ..stream.header(Op::Rw) },
    ] {
        guest.send(&header, &[0; 10]);
        let (reset, _) = guest.packet();
        assert_eq!(Some(reset), header.refusal(), "{header:?}");
        // An RST is not answered, or two would answer each other for ever.
        if header.src_cid != CID || header.kind != STREAM {
            guest.send(&Header { op: 3, ..header }, &[]);
        }
    }
    guest.send(&same_ports, &[]);
    guest.ensure_quiet();
    ensure_works(&mut guest, &mut stream, &mut socket);
    assert_eq!(guest.counts().connections, 1);
}

#[test]
fn fault_b10_a_length_beyond_the_buffers_is_a_reset() {
    for len in [11, 4096, u32::MAX] {
        let machine = Machine::new();
        let mut guest = machine.start();
        let (stream, mut socket) = guest.accept(9);
        guest.send(&Header { len, ..stream.header(Op::Rw) }, &[0; 10]);
        guest.expect(Op::Rst);
        assert_eq!(rest(&mut socket), b"");
        assert_eq!(guest.counts().bytes_to_host, 0);
    }
}

#[test]
fn a_buffer_beyond_the_length_is_not_looked_at() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    guest.send(&Header { len: 3, ..stream.header(Op::Rw) }, b"abcdef");
    stream.sent += 3;
    // Of other packets there is no data.
    guest.send(&Header { len: 3, ..stream.header(Op::CreditUpdate) }, b"ghi");
    guest.send(&Header { len: 0, ..stream.header(Op::Rw) }, b"jkl");
    ensure_works_after(&mut guest, &mut stream, &mut socket, b"abc");
}

fn ensure_works_after(guest: &mut Guest<'_>, stream: &mut Stream, socket: &mut UnixStream, before: &[u8]) {
    let mut text = vec![0; before.len()];
    socket.read_exact(&mut text).unwrap();
    assert_eq!(text, before);
    ensure_works(guest, stream, socket);
}

#[test]
fn fault_a6_buffers_that_are_no_packets_come_back() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    let header = stream.header(Op::Rw).bytes();
    for (readable, writable) in [
        (&[][..], &[100][..]),
        (&[&header[..43]], &[]),
        (&[&header[..0]], &[]),
        (&[&header[..1], &header[1..43]], &[44]),
    ] {
        guest.transmit.submit(readable, writable);
        guest.started.doorbells[1].ring();
        assert_eq!(guest.started.wait_used(&mut guest.transmit, 1)[0].written, 0);
    }
    assert_eq!(guest.counts().broken, 4);
    // A header in pieces is one.
    let whole = Header { len: 4, ..stream.header(Op::Rw) }.bytes();
    guest.transmit.submit(&[&whole[..1], &whole[1..30], &whole[30..], b"da", b"ta"], &[]);
    guest.started.doorbells[1].ring();
    guest.started.wait_used(&mut guest.transmit, 1);
    stream.sent += 4;
    guest.next = 15;
    ensure_works_after(&mut guest, &mut stream, &mut socket, b"data");
    assert!(!guest.started.needs_reset());
}

#[test]
fn fault_b10_a_flood_of_what_is_refused_is_held_until_its_answers_are_taken() {
    const FLOOD: usize = MOST_REFUSALS + 100;
    let machine = Machine::new();
    let mut guest = machine.start_without_buffers(EVENT_IDX);
    let header = Stream::new(1, 2).header(Op::Rw);
    for _ in 0..MOST_REFUSALS {
        guest.send(&header, &[]);
    }
    // No more than these are taken.
    for _ in 0..SIZE {
        guest.post(&header, &[]);
    }
    let client = machine.ask(5);
    assert_eq!(guest.counts().packets_to_host, MOST_REFUSALS as u64);
    guest.lend_all();
    let (mut posted, mut resets, mut requests) = (MOST_REFUSALS + usize::from(SIZE), 0, 0);
    while resets < FLOOD {
        let (packet, _) = guest.packet();
        match Op::of(packet.op).unwrap() {
            Op::Rst => resets += 1,
            Op::Request => requests += 1,
            other => panic!("{other:?}"),
        }
        while guest.transmit.take_used().is_some() {
            if posted < FLOOD {
                guest.post(&header, &[]);
                posted += 1;
            }
        }
    }
    while requests == 0 {
        requests += u32::from(guest.packet().0.op == Op::Request.number());
    }
    drop(client);
}

#[test]
fn fault_b10_a_flood_of_requests_is_bounded_and_answered() {
    let machine = Machine::new();
    let mut guest = machine.start_without_buffers(EVENT_IDX);
    // Each is one more that ends, as long as the guest does not know it.
    let most = MOST_CONNECTIONS + MOST_REFUSALS;
    for port in 0..most as u32 {
        guest.send(&Stream::new(port, 80).header(Op::Request), &[]);
    }
    guest.post(&Stream::new(0xffff_ffff, 80).header(Op::Request), &[]);
    assert_eq!(guest.counts().connections, MOST_CONNECTIONS as u64);
    guest.lend_all();
    let mut seen: Vec<_> = (0..=most).map(|_| guest.expect(Op::Rst).dst_port).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), most + 1);
    guest.started.wait_used(&mut guest.transmit, 1);
    guest.ensure_quiet();
    assert_eq!(guest.counts().connections, 0);
    let (mut stream, mut socket) = guest.accept(9);
    ensure_works(&mut guest, &mut stream, &mut socket);
}

#[test]
fn fault_b10_without_a_place_either_side_is_refused_and_a_place_that_is_free_is_used_again() {
    let machine = Machine::with_places(2);
    let mut guest = machine.start();
    let listener = machine.listen(80);
    let (_, first) = guest.connect(1, 80, &listener);
    let (mut stream, mut socket) = guest.accept(2);
    guest.send(&Stream::new(3, 80).header(Op::Request), &[]);
    assert_eq!(guest.expect(Op::Rst).dst_port, 3);
    assert_eq!(rest(&mut machine.ask(4)), b"");
    guest.ensure_quiet();
    drop(first);
    let gone = guest.expect_gone();
    guest.send(&Stream::new(gone.dst_port, gone.src_port).header(Op::Rst), &[]);
    let _third = guest.connect(3, 80, &listener);
    ensure_works(&mut guest, &mut stream, &mut socket);
    assert_eq!((guest.counts().refused_by_host, guest.counts().dismissed), (1, 1));
}

#[test]
fn fault_b10_requests_that_are_taken_back_leave_nothing() {
    let machine = Machine::new();
    let mut guest = machine.start_without_buffers(EVENT_IDX);
    for _ in 0..2 * MOST_CONNECTIONS {
        guest.send(&Stream::new(1, 80).header(Op::Request), &[]);
        guest.send(&Stream::new(1, 80).header(Op::Rst), &[]);
    }
    assert_eq!(guest.counts().connections, 0);
    guest.lend_all();
    guest.ensure_quiet();
}

#[test]
fn fault_b10_a_second_request_for_the_same_ports_ends_the_first() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let listener = machine.listen(80);
    let (stream, mut socket) = guest.connect(1, 80, &listener);
    guest.send(&stream.header(Op::Request), &[]);
    guest.expect(Op::Rst);
    assert_eq!(rest(&mut socket), b"");
    let (mut stream, mut socket) = guest.connect(1, 80, &listener);
    ensure_works(&mut guest, &mut stream, &mut socket);
}

#[test]
fn fault_b10_a_program_that_is_killed_in_the_middle_costs_a_reset_of_its_stream() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut other, mut other_socket) = guest.accept(8);
    let (stream, socket) = guest.accept(9);
    // It has not read this, so what it leaves behind is an error.
    guest.send(&Header { len: 4, ..stream.header(Op::Rw) }, b"lost");
    drop(socket);
    guest.expect(Op::Rst);
    // Its packets that were on their way are refused.
    guest.send(&Header { len: 4, ..stream.header(Op::Rw) }, b"late");
    guest.expect(Op::Rst);
    ensure_works(&mut guest, &mut other, &mut other_socket);
    assert_eq!(guest.counts().connections, 1);
}

#[test]
fn fault_b10_data_for_a_program_that_has_gone_is_dropped() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (stream, socket) = guest.accept(9);
    drop(socket);
    // The guest sends before it knows, more than there was credit for if nothing was given back.
    guest.expect_gone();
    for _ in 0..3 {
        guest.send(&Header { len: MOST as u32, ..stream.header(Op::Rw) }, &[0; MOST]);
    }
    guest.send(&stream.header(Op::Rst), &[]);
    while guest.counts().connections != 0 {
        guest.packet();
    }
    assert_eq!(guest.counts().bytes_to_host, 0);
}

#[test]
fn fault_b10_programs_that_say_something_else_are_sent_away() {
    let machine = Machine::new();
    let guest = machine.start();
    let long = "C".repeat(LONGEST);
    let texts = ["CONNECT\n", "GET / HTTP/1.1\r\n", "CONNECT 99999999999\n", "\n", long.as_str()];
    for text in texts {
        let mut client = machine.client();
        client.write_all(text.as_bytes()).unwrap();
        let mut byte = [0];
        // What it has sent and nobody has read makes it an error rather than an end.
        assert!(!client.read(&mut byte).is_ok_and(|count| count != 0), "{text:?}");
    }
    drop(machine.client());
    let mut half = machine.client();
    half.write_all(b"CONNECT 1").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut half), b"");
    while guest.counts().dismissed < texts.len() as u64 + 2 {
        std::thread::yield_now();
    }
    assert_eq!(guest.counts().connections, 0);
}

#[test]
fn fault_b13_silent_programs_keep_others_out_only_as_long_as_they_are_there() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let mut silent: Vec<_> = (0..MOST_GREETINGS).map(|_| machine.client()).collect();
    let client = machine.ask(9);
    guest.ensure_quiet();
    silent.pop();
    let request = guest.expect(Op::Request);
    assert_eq!(request.dst_port, 9);
    drop(client);
    guest.expect(Op::Rst);
}

#[test]
fn fault_a1_a_driver_that_breaks_a_ring_loses_its_streams_with_the_reset() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (_, mut socket) = guest.accept(9);
    guest.transmit.set_available_index(1000);
    guest.started.doorbells[1].ring();
    guest.started.interrupts.wait_for_config();
    assert!(guest.started.needs_reset());
    assert_eq!(guest.started.stop().len(), 3);
    assert_eq!(rest(&mut socket), b"");
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![8 => Just(CID), 1 => Just(HOST_CID), 1 => any::<u64>()];
    let host = prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()];
    let port = prop_oneof![8 => 0..4_u32, 2 => (1 << 30)..(1 << 30) + 4_u32, 1 => any::<u32>()];
    let length = prop_oneof![4 => 0..200_u32, 1 => any::<u32>()];
    let kind = prop_oneof![8 => Just(STREAM), 1 => any::<u16>()];
    let credit = prop_oneof![2 => Just(ROOM), 1 => 0..500_u32, 1 => any::<u32>()];
    let taken = prop_oneof![4 => 0..500_u32, 1 => any::<u32>()];
    ((cid, host), (port.clone(), port), length, kind, 0..9_u16, 0..4_u32, credit, taken).prop_map(
        |((src_cid, dst_cid), (src_port, dst_port), len, kind, op, flags, buf_alloc, fwd_cnt)| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a guest sends, beside programs that come and go: it is answered, and the next driver finds a device that works.
    #[test]
    fn fault_b10_no_packets_confuse_the_device(packets in prop::collection::vec((any_header(), 0..3_u8), 1..100)) {
        let machine = Machine::new();
        let mut guest = machine.start();
        let listeners = [machine.listen(0), machine.listen(1)];
        listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        let mut programs = Vec::new();
        for (header, action) in packets {
            guest.send(&header, &[0x11; 100]);
            while let Some(used) = guest.receive.take_used() {
                guest.open(used.head as u16, used.written);
            }
            match action {
                0 => programs.push(machine.ask(header.src_port)),
                1 => programs.extend(listeners.iter().filter_map(|listener| listener.accept().ok()).map(|(s, _)| s)),
                _ => drop(programs.pop()),
            }
        }
        prop_assert!(!guest.started.needs_reset());
        prop_assert!(guest.counts().connections <= 101);
        prop_assert_eq!(guest.started.stop().len(), 3);
        drop(programs);
        let mut guest = machine.start();
        let mut client = machine.ask(77);
        let request = loop {
            let (header, _) = guest.packet();
            if header.dst_port == 77 { break header }
        };
        let mut stream = Stream::new(77, request.src_port);
        stream.credit = request.buf_alloc;
        guest.send(&stream.header(Op::Response), &[]);
        let mut line = String::new();
        BufReader::with_capacity(1, &client).read_line(&mut line).unwrap();
        guest.send(&Header { len: 4, ..stream.header(Op::Rw) }, b"ping");
        let mut text = [0; 4];
        client.read_exact(&mut text).unwrap();
        prop_assert_eq!(&text, b"ping");
    }
}
