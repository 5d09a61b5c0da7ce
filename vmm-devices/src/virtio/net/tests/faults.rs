//! Drivers that do not behave, and hosts that do not.

use virtio_queue::desc::split::Descriptor;

use super::*;
use crate::virtio::testing::{NEXT, RAM, WRITE};

#[test]
fn fault_b11_a_frame_that_is_longer_than_its_buffer_is_dropped_and_the_next_one_comes() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    let request = bench.lend(&started, &[100]);
    bench.host.write_all(&frame(&text(75))).unwrap();
    // This one fits exactly.
    let fitting = frame(&text(74));
    bench.host.write_all(&fitting).unwrap();
    assert_eq!(started.wait_used(&mut bench.receive, 1)[0].written, 100);
    assert_eq!(bench.received(&request, 100), in_buffers(fitting, 1));
    assert_eq!(bench.net.counts().received_too_long, 1);
}

#[test]
fn fault_b11_a_frame_that_is_longer_than_all_that_can_be_lent_is_dropped() {
    let mut bench = Bench::new();
    let started = bench.start(MERGEABLE);
    let requests: Vec<_> = (0..SIZE).map(|_| bench.receive.submit(&[], &[100])).collect();
    started.doorbells[0].ring();
    bench.host.write_all(&frame(&text(1600))).unwrap();
    bench.host.write_all(&frame(b"short")).unwrap();
    let written = started.wait_used(&mut bench.receive, 1)[0].written;
    assert_eq!(bench.received(&requests[0], written), in_buffers(frame(b"short"), 1));
    assert_eq!(bench.net.counts().received_too_long, 1);
}

#[test]
fn fault_b11_more_than_the_longest_frame_is_dropped_whatever_there_is_room_for() {
    let mut bench = Bench::new();
    let started = bench.start(MERGEABLE);
    bench.lend(&started, &[LONGEST + 100]);
    bench.lend(&started, &[100]);
    bench.turn(&started);
    bench.host.write_all(&vec![0; LONGEST as usize + 101]).unwrap();
    bench.host.write_all(&[0; 11]).unwrap();
    bench.host.write_all(&vec![0; LONGEST as usize]).unwrap();
    assert_eq!(started.wait_used(&mut bench.receive, 1)[0].written, LONGEST);
    let counts = bench.net.counts();
    assert_eq!((counts.received_too_long, counts.received_malformed, counts.received_frames), (1, 1, 1));
}

#[test]
fn fault_a11_a_guest_without_buffers_wakes_nobody_again_and_again() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    let before = bench.net.counts().received_no_buffers;
    for _ in 0..3 {
        bench.host.write_all(&frame(b"waits")).unwrap();
    }
    // Each is a turn of the worker, and would be one of the receive queue if it were called for what is left.
    (0..100).for_each(|_| bench.send(&started, b"x"));
    let looked = bench.net.counts().received_no_buffers - before;
    assert!(looked <= 3, "it has looked {looked} times");
    for _ in 0..3 {
        bench.lend(&started, &[2000]);
    }
    assert_eq!(started.wait_used(&mut bench.receive, 3).len(), 3);
}

#[test]
fn fault_a6_what_is_no_frame_is_given_back_and_not_sent() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    let sent = bench.net.counts().transmitted_frames;
    let long = vec![0; LONGEST as usize + 1];
    let header = [0; HEADER as usize];
    let bad: [&[&[u8]]; 5] = [&[], &[&header[..11]], &[&header], &[&header, &[0; 13]], &[&long]];
    for readable in bad {
        let head = bench.transmit.submit(readable, &[7]).head.into();
        started.doorbells[1].ring();
        assert_eq!(started.wait_used(&mut bench.transmit, 1), [Used { head, written: 0 }]);
    }
    assert_eq!(bench.net.counts().refused_frames, 5);
    assert_eq!(bench.net.counts().transmitted_frames, sent);
    bench.send(&started, b"well");
    assert!(!started.needs_reset());
}

#[test]
fn fault_a6_buffers_without_room_for_a_header_come_back_empty() {
    for features in [0, MERGEABLE] {
        let mut bench = Bench::new();
        let started = bench.start(features);
        for lengths in [&[][..], &[0], &[11], &[5, 6]] {
            bench.receive.submit(&[b"readable"], lengths);
        }
        let request = bench.lend(&started, &[100]);
        bench.host.write_all(&frame(b"text")).unwrap();
        let used = started.wait_used(&mut bench.receive, 5);
        assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [0, 0, 0, 0, 30]);
        assert_eq!(bench.received(&request, 30), in_buffers(frame(b"text"), 1));
        assert_eq!(bench.net.counts().refused_buffers, 4);
    }
}

#[test]
fn fault_b9_a_buffer_of_a_mebibyte_is_no_frame() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    let long = RAM[2].size as u32;
    bench.transmit.set_descriptor(0, Descriptor::new(RAM[2].start, long, NEXT, 1));
    bench.transmit.set_descriptor(1, Descriptor::new(RAM[2].start, long, 0, 0));
    for _ in 0..10 {
        bench.transmit.make_available(0);
        started.doorbells[1].ring();
        started.wait_used(&mut bench.transmit, 1);
    }
    // And as a buffer for frames it is one like any other.
    bench.receive.set_descriptor(0, Descriptor::new(RAM[2].start, long, WRITE, 0));
    bench.receive.make_available(0);
    started.doorbells[0].ring();
    bench.host.write_all(&frame(b"text")).unwrap();
    assert_eq!(started.wait_used(&mut bench.receive, 1), [Used { head: 0, written: 30 }]);
    assert_eq!(bench.net.counts().refused_frames, 10);
}

#[test]
fn fault_b11_a_host_that_takes_nothing_keeps_frames_waiting_in_their_order() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    // Together more than a socket holds.
    let long = |round: usize| frame(&text(60_000 + round));
    for round in 0..SIZE.into() {
        bench.transmit.submit(&[&long(round)], &[]);
    }
    started.doorbells[1].ring();
    for round in 0..SIZE.into() {
        assert!(bench.next() == long(round), "frame {round}");
    }
    started.wait_used(&mut bench.transmit, SIZE.into());
    assert_eq!(bench.net.counts().transmitted_failed, 0);
}

#[test]
fn fault_b11_an_interface_that_is_gone_is_counted_once_and_the_guest_is_told() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    let status = |bench: &Bench| {
        let mut status = [0; 2];
        bench.net.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&bench), 1);
    bench.lend(&started, &[2000]);
    bench.turn(&started);
    // Closes the host's end.
    bench.host = File::open("/dev/null").unwrap();
    started.interrupts.wait_for_config();
    assert_eq!(status(&bench), 0);
    for _ in 0..50 {
        bench.transmit.submit(&[&frame(b"lost")], &[]);
        started.doorbells.iter().for_each(crate::Doorbell::ring);
        started.wait_used(&mut bench.transmit, 1);
    }
    let counts = bench.net.counts();
    assert_eq!((counts.link_losses, counts.host_errors), (1, 1));
    assert_eq!(counts.transmitted_failed, 50);
    assert_eq!(started.stop().len(), 2);
}

#[test]
fn fault_b6_a_reset_in_the_middle_of_frames_begins_anew() {
    for _ in 0..50 {
        let mut bench = Bench::new();
        let started = bench.start(MERGEABLE);
        for _ in 0..8 {
            bench.transmit.submit(&[&frame(&text(500))], &[]);
            bench.lend(&started, &[300]);
            bench.host.write_all(&frame(&text(500))).unwrap();
        }
        started.doorbells[1].ring();
        let states = started.stop();
        let used = [bench.receive.used_index(), bench.transmit.used_index()];
        for state in states {
            // What was not given back is taken again.
            assert_eq!(state.next_available, state.next_used);
            assert_eq!(state.next_used, used[state.index]);
        }
    }
}

#[test]
fn a_link_that_is_taken_away_is_down_for_good_and_nothing_waits_for_it() {
    let mut bench = Bench::new();
    let started = bench.start(0);
    bench.options.transmit.change(|_| operations(1));
    for text in [b"one", b"two"] {
        bench.transmit.submit(&[&frame(text)], &[]);
    }
    started.doorbells[1].ring();
    started.wait_used(&mut bench.transmit, 1);
    assert_eq!(bench.next(), frame(b"one"));
    while bench.net.counts().transmitted_throttled == 0 {
        std::thread::yield_now();
    }
    bench.net.lose_link();
    started.interrupts.wait_for_config();
    let mut status = [0; 2];
    bench.net.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    // The host's end is the only one that is left, and what waited has come back.
    assert_eq!(bench.host.read(&mut [0; 100]).unwrap(), 0);
    started.wait_used(&mut bench.transmit, 1);
    bench.transmit.submit(&[&frame(b"three")], &[]);
    started.doorbells[1].ring();
    started.wait_used(&mut bench.transmit, 1);
    let counts = bench.net.counts();
    assert_eq!((counts.transmitted_failed, counts.host_errors, counts.link_losses), (2, 0, 0));
    assert!(!started.needs_reset());
    assert_eq!(started.stop().len(), 2);
    // Another driver finds the same.
    let drivers = [&bench.receive, &bench.transmit];
    let started = Started::new(&bench.net, &bench.memory, &drivers, 0).unwrap();
    assert!(!started.needs_reset());
}
