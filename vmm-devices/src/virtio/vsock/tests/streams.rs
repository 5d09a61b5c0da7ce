//! Streams from their beginning to their end.

use std::io::ErrorKind;
use std::thread;

use super::*;
use crate::virtio::features;

#[test]
fn a_guest_finds_its_address_and_stream_sockets() {
    let machine = Machine::new();
    let mut config = [0xff; 12];
    config.fill(0);
    machine.device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    machine.device.write_config(0, &[7; 8]);
    machine.device.read_config(0, &mut config);
    assert_eq!((config[0], machine.device.device_type()), (3, 19));
    // Streams, and none of them without that bit.
    assert_eq!(machine.device.features(), 0b101 | features::RING_RESET);
}

#[test]
fn a_program_of_the_host_reaches_a_port_of_the_guest() {
    let machine = Machine::new();
    let mut guest = machine.start();
    // What it says beyond the line is for the guest, when that has accepted.
    let mut client = machine.client();
    client.write_all(b"CONNECT 1234\nearly").unwrap();
    let (request, _) = guest.packet();
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: CID,
        src_port: request.src_port,
        dst_port: 1234,
        kind: STREAM,
        op: 1,
        buf_alloc: 256 << 10,
        ..Header::default()
    };
    assert_eq!(request, expected);
    guest.ensure_quiet();
    let mut stream = Stream::new(1234, request.src_port);
    stream.credit = request.buf_alloc;
    guest.send(&stream.header(Op::Response), &[]);
    assert_eq!(guest.read(&mut stream, 5), b"early");
    guest.write(&mut stream, b"answer");
    let mut text = vec![0; format!("OK {}\nanswer", request.src_port).len()];
    client.read_exact(&mut text).unwrap();
    assert_eq!(text, format!("OK {}\nanswer", request.src_port).as_bytes());
    assert_eq!((guest.counts().opened_by_host, guest.counts().connections), (1, 1));
}

#[test]
fn a_program_of_the_guest_reaches_what_listens_at_its_port() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let listener = machine.listen(80);
    let (mut stream, mut socket) = guest.connect(5000, 80, &listener);
    socket.write_all(b"hello").unwrap();
    assert_eq!(guest.read(&mut stream, 5), b"hello");
    guest.write(&mut stream, b"there");
    let mut text = [0; 5];
    socket.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"there");
    // The same ports the other way round are another stream; nobody listens at 81.
    guest.send(&Stream::new(5000, 81).header(Op::Request), &[]);
    let reset = guest.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port, reset.dst_cid), (81, 5000, CID));
    assert_eq!((guest.counts().opened_by_guest, guest.counts().refused_by_host), (1, 1));
}

#[test]
fn a_guest_that_does_not_listen_refuses_and_the_program_finds_an_end() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let mut client = machine.ask(7);
    let request = guest.expect(Op::Request);
    guest.send(&Stream::new(7, request.src_port).header(Op::Rst), &[]);
    assert_eq!(rest(&mut client), b"");
    guest.ensure_quiet();
    assert_eq!((guest.counts().refused_by_guest, guest.counts().connections), (1, 0));
}

#[test]
fn much_data_passes_whole_each_way_at_the_same_time() {
    const LENGTH: usize = 3 << 20;
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, socket) = guest.accept(9);
    let (up, down) = (bytes(LENGTH, 1), bytes(LENGTH, 2));
    let (mut reader, mut writer) = (socket.try_clone().unwrap(), socket);
    let expected = up.clone();
    let sent = down.clone();
    let hosts = [
        thread::spawn(move || {
            let mut all = vec![0; LENGTH];
            reader.read_exact(&mut all).unwrap();
            assert!(all == expected);
        }),
        thread::spawn(move || writer.write_all(&sent).unwrap()),
    ];
    let (mut up, mut got) = (up.as_slice(), Vec::new());
    while !up.is_empty() || got.len() < LENGTH {
        let length = up.len().min(MOST).min(stream.free() as usize);
        let (now, rest) = up.split_at(length);
        if length != 0 {
            guest.send(&Header { len: length as u32, ..stream.header(Op::Rw) }, now);
            stream.sent = stream.sent.wrapping_add(length as u32);
        }
        up = rest;
        // One packet for each, as long as some are still to come.
        if got.len() < LENGTH || stream.free() == 0 {
            let (header, data) = guest.packet();
            stream.learn(&header);
            stream.taken = stream.taken.wrapping_add(data.len() as u32);
            got.extend(data);
            if header.op == Op::CreditRequest.number() || got.len() % 7 == 0 || up.is_empty() {
                guest.send(&stream.header(Op::CreditUpdate), &[]);
            }
        }
    }
    assert!(got == down);
    hosts.into_iter().for_each(|host| host.join().unwrap());
    let counts = guest.counts();
    assert_eq!((counts.bytes_to_guest, counts.bytes_to_host), (LENGTH as u64, LENGTH as u64));
}

#[test]
fn a_host_that_has_said_all_is_still_listened_to() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    socket.write_all(b"last words").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.read(&mut stream, 10), b"last words");
    // It sends no more.
    assert_eq!(guest.expect(Op::Shutdown).flags, 2);
    guest.write(&mut stream, b"and an answer");
    guest.send(&stream.shutdown(3), &[]);
    guest.expect(Op::Rst);
    assert_eq!(rest(&mut socket), b"and an answer");
    assert_eq!(guest.counts().connections, 0);
}

#[test]
fn a_guest_that_has_said_all_still_gets_data() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    guest.write(&mut stream, b"all");
    guest.send(&stream.shutdown(2), &[]);
    assert_eq!(rest(&mut socket), b"all");
    socket.write_all(b"more").unwrap();
    assert_eq!(guest.read(&mut stream, 4), b"more");
    drop(socket);
    guest.expect_gone();
    guest.send(&stream.header(Op::Rst), &[]);
    guest.ensure_quiet();
    assert_eq!(guest.counts().connections, 0);
}

#[test]
fn a_guest_that_receives_no_more_costs_the_host_an_error() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    guest.send(&stream.shutdown(1), &[]);
    assert_eq!(socket.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.write(&mut stream, b"but it sends");
    guest.send(&stream.shutdown(2), &[]);
    guest.expect(Op::Rst);
    assert_eq!(rest(&mut socket), b"but it sends");
}

#[test]
fn what_a_guest_sent_before_its_end_arrives_though_the_host_is_late() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    let data = bytes(stream.credit as usize, 3);
    guest.write(&mut stream, &data);
    guest.send(&stream.shutdown(3), &[]);
    // The guest is done with it, and may use the ports again.
    while guest.packet().0.op != Op::Rst.number() {}
    assert_eq!(guest.counts().connections, 1);
    assert!(rest(&mut socket) == data);
    while guest.counts().connections != 0 {
        guest.ensure_quiet();
    }
}

#[test]
fn hundreds_of_streams_pass_beside_each_other() {
    const COUNT: u32 = 200;
    let machine = Machine::new();
    let mut guest = machine.start();
    let listener = machine.listen(80);
    let mut ends: Vec<_> = (0..COUNT)
        .map(|port| if port % 2 == 0 { guest.connect(port, 80, &listener) } else { guest.accept(port) })
        .collect();
    assert_eq!(guest.counts().connections, u64::from(COUNT));
    for (stream, socket) in &mut ends {
        guest.write(stream, &stream.guest.to_le_bytes());
        let mut text = [0; 4];
        socket.read_exact(&mut text).unwrap();
        assert_eq!(u32::from_le_bytes(text), stream.guest);
    }
    // All at once.
    for (stream, socket) in &mut ends {
        socket.write_all(&stream.guest.to_le_bytes()).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < COUNT as usize {
        let (header, data) = guest.packet();
        assert_eq!((header.op, data), (Op::Rw.number(), header.dst_port.to_le_bytes().to_vec()));
        seen.push(header.dst_port);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
    // Killed, all together.
    drop(ends);
    let mut gone = 0;
    while gone < COUNT {
        let header = guest.expect(Op::Shutdown);
        if header.flags == 3 {
            guest.send(&Stream::new(header.dst_port, header.src_port).header(Op::Rst), &[]);
            gone += 1;
        }
    }
    guest.ensure_quiet();
    assert_eq!(guest.counts().connections, 0);
}

#[test]
fn fault_b6_a_reset_ends_all_streams_and_the_next_driver_has_none() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (_, mut socket) = guest.accept(9);
    assert_eq!(guest.started.stop().len(), 3);
    assert_eq!(rest(&mut socket), b"");
    // Who knocks while there is no driver waits for the next one.
    let mut early = machine.ask(10);
    let mut guest = machine.start();
    let request = guest.expect(Op::Request);
    guest.send(&Stream::new(10, request.src_port).header(Op::Rst), &[]);
    assert_eq!(rest(&mut early), b"");
    let (mut stream, mut socket) = guest.accept(11);
    guest.write(&mut stream, b"new");
    let mut text = [0; 3];
    socket.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"new");
}

#[test]
fn a_queue_that_is_reset_alone_costs_no_stream() {
    let machine = Machine::new();
    let mut guest = machine.start();
    let (mut stream, mut socket) = guest.accept(9);
    let (sender, stopped) = std::sync::mpsc::channel();
    let queues = guest.started.running.queue_reset().unwrap();
    assert!(queues.stop_queue(0, Box::new(move |state| sender.send(state).unwrap())));
    stopped.recv().unwrap();
    socket.write_all(b"meanwhile").unwrap();

    let driver = Driver::new(&machine.memory, 0, SIZE, 0x1_0000);
    driver.write(driver.setup().available_ring, &[0; 4]);
    driver.write(driver.setup().used_ring, &[0; 4]);
    let interrupts = Arc::clone(&guest.started.interrupts) as _;
    let queue = crate::virtio::ActiveQueue {
        index: 0,
        queue: driver.queue(EVENT_IDX),
        doorbell: guest.started.doorbells[0].eventfd(),
        interrupt: crate::virtio::QueueInterrupt::new(interrupts, 0),
    };
    guest.receive = driver;
    guest.started.running.queue_reset().unwrap().start_queue(queue).unwrap();
    guest.lend_all();
    assert_eq!(guest.read(&mut stream, 9), b"meanwhile");
}

#[test]
fn a_driver_without_stream_sockets_gets_none() {
    const STREAM_BIT: u64 = 1;
    const NO_IMPLIED: u64 = 4;
    for (features, served) in
        [(0, true), (STREAM_BIT, true), (STREAM_BIT | NO_IMPLIED, true), (NO_IMPLIED, false)]
    {
        let machine = Machine::new();
        let mut guest = machine.start_without_buffers(features);
        guest.lend_all();
        let _listener = machine.listen(80);
        guest.send(&Stream::new(1, 80).header(Op::Request), &[]);
        guest.expect(if served { Op::Response } else { Op::Rst });
        if !served {
            assert_eq!(rest(&mut machine.ask(1)), b"");
        }
    }
}
