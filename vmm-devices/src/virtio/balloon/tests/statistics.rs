//! Statistics that are asked for, and those that are not.

use super::*;
use crate::Doorbell;
use crate::virtio::{ActiveQueue, QueueInterrupt};

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

/// Lends a buffer that says how much is free.
fn lend(machine: &mut Machine, started: &Started, free: u64) -> u32 {
    let head = machine.drivers[STATISTICS].submit(&[&entry(4, free)], &[]).head;
    started.doorbells[STATISTICS].ring();
    head.into()
}

/// Waits until so many statistics have come.
fn wait_for(machine: &Machine, count: u64) -> GuestStatistics {
    while machine.device.counts().statistics < count || machine.device.status().sample.is_none() {
        std::thread::yield_now();
    }
    machine.device.status().sample.unwrap().statistics
}

#[test]
fn statistics_come_as_often_as_they_are_asked_for_and_the_freshest_are_kept() {
    let mut machine = Machine::new();
    machine.device.set_statistics_interval(Duration::from_millis(1));
    let started = machine.start(ALL);
    let mut head = lend(&mut machine, &started, 1);
    for round in 2..6 {
        let used = started.wait_used(&mut machine.drivers[STATISTICS], 1);
        assert_eq!(used, [Used { head, written: 0 }]);
        head = lend(&mut machine, &started, round);
        assert_eq!(wait_for(&machine, round).free_bytes, Some(round));
    }
}

#[test]
fn a_buffer_is_held_until_somebody_asks() {
    let mut machine = Machine::new();
    let started = machine.start(ALL);
    let head = lend(&mut machine, &started, 1);
    assert_eq!(wait_for(&machine, 1).free_bytes, Some(1));
    // Another one waits where it is.
    let other = lend(&mut machine, &started, 2);
    machine.name(&started, INFLATE, &[SECOND]);
    assert_eq!((machine.drivers[STATISTICS].used_index(), machine.device.counts().statistics), (0, 1));
    machine.device.set_statistics_interval(Duration::from_millis(1));
    let used = started.wait_used(&mut machine.drivers[STATISTICS], 2);
    assert_eq!(used.iter().map(|used| used.head).collect::<Vec<_>>(), [head, other]);
    assert_eq!(wait_for(&machine, 2).free_bytes, Some(2));
}

#[test]
fn fault_b15_an_interval_of_any_length_is_none_that_ends_at_once() {
    for interval in [Duration::MAX, Duration::from_secs(1 << 40)] {
        let mut machine = Machine::new();
        machine.device.set_statistics_interval(interval);
        let started = machine.start(ALL);
        lend(&mut machine, &started, 1);
        wait_for(&machine, 1);
        machine.name(&started, INFLATE, &[SECOND]);
        assert_eq!(machine.drivers[STATISTICS].used_index(), 0);
        machine.device.set_statistics_interval(Duration::from_millis(1));
        started.wait_used(&mut machine.drivers[STATISTICS], 1);
    }
}

#[test]
fn fault_b9_of_a_long_buffer_what_comes_first_is_read_and_an_empty_one_is_counted() {
    let mut machine = Machine::new();
    machine.device.set_statistics_interval(Duration::from_millis(1));
    let started = machine.start(ALL);
    let mut long = vec![0xff; 65536];
    long[..10].copy_from_slice(&entry(5, 77));
    long[65526..].copy_from_slice(&entry(5, 78));
    machine.ask(&started, STATISTICS, &[&long], &[]);
    assert_eq!(
        wait_for(&machine, 1),
        GuestStatistics { total_bytes: Some(77), ..GuestStatistics::default() }
    );
    machine.ask(&started, STATISTICS, &[], &[64]);
    let counts = machine.device.counts();
    assert_eq!((counts.statistics, counts.broken), (1, 1));
    assert!(!started.needs_reset());
}

#[test]
fn a_buffer_that_is_held_is_taken_again_after_a_reset_of_its_queue() {
    let mut machine = Machine::new();
    let mut started = machine.start(ALL);
    let head = lend(&mut machine, &started, 1);
    wait_for(&machine, 1);
    let (sender, stopped) = std::sync::mpsc::channel();
    let queues = started.running.queue_reset().unwrap();
    assert!(queues.stop_queue(STATISTICS, Box::new(move |state| sender.send(state).unwrap())));
    let state = stopped.recv().unwrap();
    assert_eq!((state.next_available, state.next_used), (0, 0));
    let doorbell = Doorbell::new(None, 0).unwrap();
    doorbell.ring();
    let queue = ActiveQueue {
        index: STATISTICS,
        queue: machine.drivers[STATISTICS].queue(ALL),
        doorbell: doorbell.eventfd(),
        interrupt: QueueInterrupt::new(Arc::clone(&started.interrupts) as _, STATISTICS),
    };
    queues.start_queue(queue).unwrap();
    wait_for(&machine, 2);
    machine.device.set_statistics_interval(Duration::from_millis(1));
    // The doorbell of before is not this queue's any more.
    doorbell.ring();
    assert_eq!(started.wait_used(&mut machine.drivers[STATISTICS], 1), [Used { head, written: 0 }]);
}
