//! Nobody holds more than was promised: who does not read, stops the other side, and nothing else.

use super::*;

#[test]
fn a_host_that_does_not_read_stops_the_guest_at_its_credit_and_loses_nothing() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    // As much as the host's socket takes, and the promised room.
    let mut sent = Vec::new();
    while stream.free() != 0 {
        let data = bytes((stream.free() as usize).min(MOST), sent.len() as u32);
        guest.send(&Header { len: data.len() as u32, ..stream.header(Op::Rw) }, &data);
        stream.sent = stream.sent.wrapping_add(data.len() as u32);
        sent.extend(data);
        if stream.free() == 0 {
            // The host may have taken more than it said.
            guest.send(&stream.header(Op::CreditRequest), &[]);
            let mut update = guest.expect(Op::CreditUpdate);
            while update.fwd_cnt == stream.forwarded && stream.free() != 0 {
                update = guest.expect(Op::CreditUpdate);
            }
            stream.learn(&update);
        }
    }
    let taken = guest.counts().bytes_to_host;
    assert!(sent.len() as u64 - taken <= u64::from(stream.credit));
    let mut all = vec![0; sent.len()];
    socket.read_exact(&mut all).unwrap();
    assert!(all == sent);
    // It is told that there is room again, without asking.
    while stream.free() == 0 {
        stream.learn(&guest.expect(Op::CreditUpdate));
    }
    guest.write(&mut stream, b"on");
    let mut text = [0; 2];
    socket.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"on");
}

#[test]
fn fault_b10_a_guest_that_sends_beyond_its_credit_is_reset() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    let piece = [0; MOST];
    let mut sent = 0_u64;
    // The host's socket takes some, and then nothing more.
    let reset = loop {
        guest.send(&Header { len: MOST as u32, ..stream.header(Op::Rw) }, &piece);
        sent += MOST as u64;
        stream.sent = stream.sent.wrapping_add(MOST as u32);
        guest.post(&Stream::new(0xdead, 0xbeef).header(Op::CreditRequest), &[]);
        guest.started.wait_used(&mut guest.transmit, 1);
        let mut reset = None;
        loop {
            let (header, _) = guest.packet();
            if header.op == Op::Rst.number() {
                if header.src_port == 0xbeef {
                    break;
                }
                reset = Some(header);
            }
        }
        if let Some(reset) = reset {
            break reset;
        }
    };
    assert_eq!((reset.src_port, reset.dst_port), (stream.host, stream.guest));
    assert!(sent - guest.counts().bytes_to_host <= u64::from(stream.credit) + MOST as u64);
    // What had been taken is there; the program finds an end.
    rest(&mut socket);
    assert_eq!((guest.counts().connections, guest.counts().broken > 0), (0, true));
}

#[test]
fn a_guest_that_does_not_read_stops_the_host_at_its_credit() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let listener = machine.listen(80);
    let stream = Stream { room: 1000, ..Stream::new(1, 80) };
    guest.send(&stream.header(Op::Request), &[]);
    let mut socket = listener.accept().unwrap().0;
    guest.expect(Op::Response);
    socket.write_all(&bytes(5000, 1)).unwrap();
    let mut got = Vec::new();
    let mut stream = stream;
    while got.len() < 1000 {
        let (header, data) = guest.packet();
        assert_eq!(header.op, Op::Rw.number());
        got.extend(data);
    }
    assert_eq!(got.len(), 1000);
    // It is asked once, and says that there is none.
    guest.expect(Op::CreditRequest);
    guest.send(&stream.header(Op::CreditUpdate), &[]);
    guest.ensure_quiet();
    stream.taken = 300;
    guest.send(&stream.header(Op::CreditUpdate), &[]);
    let (header, data) = guest.packet();
    assert_eq!((header.op, data.len()), (Op::Rw.number(), 300));
    got.extend(data);
    guest.expect(Op::CreditRequest);
    stream.taken = 1300;
    stream.room = 10_000;
    guest.send(&stream.header(Op::CreditUpdate), &[]);
    while got.len() < 5000 {
        got.extend(guest.packet().1);
    }
    assert!(got == bytes(5000, 1));
    guest.ensure_quiet();
}

#[test]
fn fault_a11_a_guest_without_buffers_gets_all_when_it_has_some() {
    let machine = Machine::new();
    let mut guest = machine.start_without_buffers(0);
    let mut clients: Vec<_> = (0..20).map(|port| machine.ask(port)).collect();
    // The device goes on taking packets.
    for port in 0..40 {
        guest.send(&Stream::new(port, 1).header(Op::Request), &[]);
    }
    assert_eq!(guest.counts().packets_to_guest, 0);
    guest.lend_all();
    let (mut requests, mut resets) = (Vec::new(), Vec::new());
    while requests.len() < 20 || resets.len() < 40 {
        let (header, _) = guest.packet();
        match Op::of(header.op).unwrap() {
            Op::Request => requests.push(header.dst_port),
            Op::Rst => resets.push(header.dst_port),
            other => panic!("{other:?}"),
        }
    }
    requests.sort_unstable();
    resets.sort_unstable();
    assert_eq!(requests, (0..20).collect::<Vec<_>>());
    assert_eq!(resets, (0..40).collect::<Vec<_>>());
    clients.clear();
}

#[test]
fn buffers_of_any_shape_take_packets() {
    let machine = Machine::new();
    let mut guest = machine.start_without_buffers(0);
    let (mut client, request) = {
        let client = machine.ask(5);
        guest.lend(0);
        (client, guest.started.wait_used(&mut guest.receive, 1)[0])
    };
    let bytes = guest.receive.read(RECEIVE_BUFFERS, request.written as usize);
    let request = Header::read(bytes[..HEADER].try_into().unwrap());
    guest.send(&Stream::new(5, request.src_port).header(Op::Response), &[]);
    client.write_all(&[0x5a; 100]).unwrap();
    // One without room for a header, one without room for data, and one in three pieces: they come back as they came.
    let at = |index: u64| RECEIVE_BUFFERS + RECEIVE_BUFFER * index;
    guest.receive.set_descriptor(1, Descriptor::new(at(1), 43, WRITE, 0));
    guest.receive.set_descriptor(2, Descriptor::new(at(2), 44, WRITE, 0));
    guest.receive.set_descriptor(3, Descriptor::new(at(3), 10, WRITE | NEXT, 4));
    guest.receive.set_descriptor(4, Descriptor::new(at(4), 40, WRITE | NEXT, 5));
    guest.receive.set_descriptor(5, Descriptor::new(at(5), 60, WRITE, 0));
    [1, 2, 3].into_iter().for_each(|head| guest.receive.make_available(head));
    guest.started.doorbells[0].ring();
    let used = guest.started.wait_used(&mut guest.receive, 3);
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [0, 0, 110]);
    let data = [guest.receive.read(at(4) + 34, 6), guest.receive.read(at(5), 60)].concat();
    assert_eq!(data, [0x5a; 66]);
    assert!(!guest.started.needs_reset());
}
