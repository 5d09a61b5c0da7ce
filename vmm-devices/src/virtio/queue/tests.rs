//! Queues with drivers that behave and drivers that do not.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_memory::AddressSpace;

use super::*;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::testing::{Driver, INDIRECT, NEXT, RAM, Used, WRITE, ram};

const SIZE: u16 = 8;
const BASE: u64 = 0x1_0000;

fn driver(memory: &Arc<AddressSpace>) -> Driver {
    Driver::new(memory, 0, SIZE, BASE)
}

fn pop(queue: &mut Queue, memory: &AddressSpace) -> Chain {
    queue.pop(&memory.memory()).unwrap().expect("a chain is available")
}

/// What is wrong with the chain of these descriptors, which begins at 0.
fn chain_error(descriptors: &[Descriptor], features: u64) -> ChainError {
    let memory = ram();
    let mut driver = driver(&memory);
    for (index, descriptor) in descriptors.iter().enumerate() {
        driver.set_descriptor(index as u16, *descriptor);
    }
    driver.make_available(0);
    match driver.queue(features).pop(&memory.memory()) {
        Err(QueueError::Chain { head: 0, source }) => source,
        other => panic!("{other:?}"),
    }
}

/// The end of the guest RAM that begins at 0.
fn ram_end() -> u64 {
    RAM[1].start + RAM[1].size
}

#[test]
fn a_request_is_read_and_answered_whatever_its_framing() {
    for features in [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX] {
        let memory = ram();
        let mut driver = driver(&memory);
        let mut queue = driver.queue(features);
        for round in 0..100_u16 {
            let parts: &[&[u8]] = &[b"he", b"", b"ad", b"er"];
            let request = if features & INDIRECT_DESC != 0 {
                driver.submit_indirect(parts, &[1, 0, 3])
            } else {
                driver.submit(parts, &[1, 0, 3])
            };
            let chain = pop(&mut queue, &memory);
            assert_eq!((chain.head(), chain.readable().len(), chain.writable().len()), (request.head, 6, 4));
            let mut header = [0; 6];
            chain.readable().read(&memory.memory(), &mut header).unwrap();
            assert_eq!(&header, b"header");
            let (head, last) = chain.writable().split_at(3);
            head.write(&memory.memory(), b"abc").unwrap();
            last.write(&memory.memory(), b"!").unwrap();
            queue.push(&memory.memory(), chain, 4).unwrap();
            assert_eq!(driver.take_used(), Some(Used { head: request.head.into(), written: 4 }));
            let [(first, 1), _, (third, 3)] = request.writable[..] else { panic!() };
            assert_eq!((driver.read(first, 1), driver.read(third, 3)), (b"a".to_vec(), b"bc!".to_vec()));
            assert!(queue.pop(&memory.memory()).unwrap().is_none(), "round {round}");
        }
    }
}

#[test]
fn indices_that_wrap_take_each_chain_once() {
    let memory = ram();
    let mut driver = driver(&memory).starting_at(u16::MAX - 2);
    let mut queue = driver.queue(0);
    for _ in 0..4 {
        let heads: Vec<_> = (0..SIZE).map(|_| driver.submit(&[b"x"], &[]).head).collect();
        for head in heads {
            let chain = pop(&mut queue, &memory);
            assert_eq!(chain.head(), head);
            queue.push(&memory.memory(), chain, 0).unwrap();
            assert_eq!(driver.take_used(), Some(Used { head: head.into(), written: 0 }));
        }
        assert!(queue.pop(&memory.memory()).unwrap().is_none());
    }
}

#[test]
fn fault_a1_a_loop_ends_after_as_many_descriptors_as_the_queue_has() {
    let ring: Vec<_> = (0..SIZE).map(|i| Descriptor::new(BASE, 1, NEXT, (i + 1) % SIZE)).collect();
    assert!(matches!(chain_error(&ring, 0), ChainError::TooLong { limit: SIZE }));
    let itself = [Descriptor::new(BASE, 1, NEXT, 0)];
    assert!(matches!(chain_error(&itself, 0), ChainError::TooLong { limit: SIZE }));
    let empty = [Descriptor::new(BASE, 0, NEXT, 0)];
    assert!(matches!(chain_error(&empty, 0), ChainError::TooLong { limit: SIZE }));
}

#[test]
fn fault_a1_a_chain_of_as_many_descriptors_as_the_queue_has_is_one() {
    let memory = ram();
    let mut driver = driver(&memory);
    driver.submit(&[b"x".as_slice(); SIZE as usize], &[]);
    let mut queue = driver.queue(INDIRECT_DESC);
    assert_eq!(pop(&mut queue, &memory).readable().len(), u32::from(SIZE));
    driver.submit_indirect(&[b"x".as_slice(); SIZE as usize], &[]);
    // Head 0 is in flight: the next descriptor that the driver takes is 0 again.
    assert!(matches!(queue.pop(&memory.memory()), Err(QueueError::Duplicate { head: 0 })));
}

#[test]
fn fault_a1_an_indirect_table_has_no_chain_longer_than_the_queue() {
    let memory = ram();
    let mut driver = driver(&memory);
    driver.submit_indirect(&[b"x".as_slice(); SIZE as usize], &[]);
    driver.submit_indirect(&[b"x".as_slice(); SIZE as usize + 1], &[]);
    let mut queue = driver.queue(INDIRECT_DESC);
    assert_eq!(pop(&mut queue, &memory).readable().len(), u32::from(SIZE));
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert!(matches!(error, QueueError::Chain { source: ChainError::TooLong { limit: SIZE }, .. }));
}

#[test]
fn fault_a1_more_bytes_than_a_length_can_say_are_refused() {
    // Both ranges of RAM at once, as often as it takes.
    let long = [Descriptor::new(0, 0x30_0000, NEXT, 1), Descriptor::new(0, u32::MAX - 0x10_0000, 0, 0)];
    assert!(matches!(chain_error(&long, 0), ChainError::TooManyBytes));
}

#[test]
fn fault_a2_indirect_tables_that_are_none_are_refused() {
    let table = |length, flags| [Descriptor::new(BASE + 0x2_0000, length, flags, 1)];
    assert!(matches!(chain_error(&table(16, INDIRECT), 0), ChainError::IndirectNotNegotiated));
    let both = chain_error(&table(16, INDIRECT | NEXT), INDIRECT_DESC);
    assert!(matches!(both, ChainError::IndirectAndNext));
    for length in [0, 1, 15, 17, 16 * 65536] {
        let error = chain_error(&table(length, INDIRECT), INDIRECT_DESC);
        assert!(matches!(error, ChainError::IndirectLength { length: bad } if bad == length), "{error}");
    }
    for address in [ram_end(), ram_end() - 8, u64::MAX - 7] {
        let error = chain_error(&[Descriptor::new(address, 16, INDIRECT, 0)], INDIRECT_DESC);
        assert!(matches!(error, ChainError::Table { index: 0, .. }), "{error}");
    }
}

#[test]
fn fault_a2_nested_tables_and_indices_beyond_a_table_are_refused() {
    let memory = ram();
    let driver = driver(&memory);
    let table = BASE + 0x2_0000;
    for (inner, is_expected) in [
        (
            Descriptor::new(table, 16, INDIRECT, 0),
            (|error| matches!(error, ChainError::NestedIndirect)) as fn(&ChainError) -> bool,
        ),
        (Descriptor::new(table, 1, NEXT, 1), |error| {
            matches!(error, ChainError::OutOfTable { index: 1, entries: 1 })
        }),
    ] {
        driver.write_obj(table, inner);
        driver.set_descriptor(0, Descriptor::new(table, 16, INDIRECT, 0));
        driver.set_available_entry(0, 0);
        driver.set_available_index(1);
        let error = driver.queue(INDIRECT_DESC).pop(&memory.memory()).unwrap_err();
        assert!(matches!(&error, QueueError::Chain { source, .. } if is_expected(source)), "{error:?}");
    }
}

#[test]
fn an_indirect_table_after_direct_descriptors_is_read_whether_it_is_writable_or_not() {
    let memory = ram();
    let mut driver = driver(&memory);
    let table = driver.allocate(16);
    driver.write_obj(table, Descriptor::new(BASE, 3, WRITE, 0));
    for (round, flags) in [INDIRECT, INDIRECT | WRITE].into_iter().enumerate() {
        let first = 2 * round as u16;
        driver.set_descriptor(first, Descriptor::new(BASE, 5, NEXT, first + 1));
        driver.set_descriptor(first + 1, Descriptor::new(table, 16, flags, 0));
        driver.make_available(first);
    }
    let mut queue = driver.queue(INDIRECT_DESC);
    for _ in 0..2 {
        let chain = pop(&mut queue, &memory);
        assert_eq!((chain.readable().len(), chain.writable().len()), (5, 3));
    }
}

#[test]
fn fault_a3_a_buffer_that_is_not_in_ram_is_refused() {
    for (address, length) in [
        (u64::MAX, 1),
        (u64::MAX - 15, 16),
        (u64::MAX - 15, 32),
        (ram_end(), 1),
        (ram_end() - 1, 2),
        // Over the hole into RAM.
        (ram_end() - 1, 0x10_0002),
        (RAM[2].start - 1, 2),
        (0xd000_0000, 4),
        (0, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            let error = chain_error(&[Descriptor::new(address, length, flags, 0)], 0);
            assert!(matches!(error, ChainError::NotRam { .. }), "{address:#x}, {length}: {error}");
        }
    }
}

#[test]
fn fault_a3_a_buffer_in_two_ranges_of_ram_is_copied_piecewise() {
    let memory = ram();
    let mut driver = driver(&memory);
    let start = RAM[1].start - 3;
    driver.write(start, b"abcdef");
    driver.set_descriptor(0, Descriptor::new(start, 6, NEXT, 1));
    driver.set_descriptor(1, Descriptor::new(start, 6, WRITE, 0));
    driver.make_available(0);
    let mut queue = driver.queue(0);
    let chain = pop(&mut queue, &memory);
    let mut data = [0; 6];
    chain.readable().read(&memory.memory(), &mut data).unwrap();
    chain.writable().write(&memory.memory(), b"ABCDEF").unwrap();
    assert_eq!((&data, driver.read(start, 6)), (b"abcdef", b"ABCDEF".to_vec()));
}

#[test]
fn fault_a3_a_buffer_that_is_the_ring_breaks_nothing_but_the_ring() {
    let memory = ram();
    let mut driver = driver(&memory);
    let setup = driver.setup();
    driver.set_descriptor(0, Descriptor::new(setup.descriptor_table, 0x200, WRITE, 0));
    driver.make_available(0);
    let mut queue = driver.queue(0);
    let chain = pop(&mut queue, &memory);
    let length = chain.writable().len();
    chain.writable().write(&memory.memory(), &vec![0xff; length as usize]).unwrap();
    queue.push(&memory.memory(), chain, length).unwrap();
    assert!(matches!(queue.pop(&memory.memory()), Err(QueueError::Index { from: 1, to: 0xffff, .. })));
}

#[test]
fn fault_a4_an_index_that_jumps_or_goes_back_is_refused() {
    for (start, to) in [(0, SIZE + 1), (0, u16::MAX), (5, 4), (u16::MAX, SIZE), (100, 100 + 0x8000)] {
        let memory = ram();
        let driver = driver(&memory).starting_at(start);
        driver.set_available_index(to);
        let error = driver.queue(0).pop(&memory.memory()).unwrap_err();
        assert!(
            matches!(error, QueueError::Index { from, to: index, size: SIZE } if from == start && index == to),
            "{error:?}"
        );
    }
}

#[test]
fn fault_a4_a_head_or_a_next_that_no_table_has_is_refused() {
    for bad in [SIZE, u16::MAX] {
        let memory = ram();
        let mut driver = driver(&memory);
        driver.make_available(bad);
        let error = driver.queue(0).pop(&memory.memory()).unwrap_err();
        assert!(
            matches!(error, QueueError::Chain { source: ChainError::OutOfTable { .. }, .. }),
            "{error:?}"
        );
        let next = chain_error(&[Descriptor::new(BASE, 1, NEXT, bad)], 0);
        assert!(matches!(next, ChainError::OutOfTable { index, entries: SIZE } if index == bad));
    }
}

#[test]
fn fault_a5_a_chain_in_flight_is_not_taken_again_until_it_is_used() {
    let memory = ram();
    let mut driver = driver(&memory);
    let head = driver.submit(&[b"x"], &[]).head;
    let mut queue = driver.queue(0);
    let chain = pop(&mut queue, &memory);
    queue.push(&memory.memory(), chain, 0).unwrap();
    driver.make_available(head);
    let chain = pop(&mut queue, &memory);
    driver.make_available(head);
    assert!(matches!(queue.pop(&memory.memory()), Err(QueueError::Duplicate { head: 0 })));
    assert_eq!((chain.head(), queue.in_flight()), (head, 1));
}

#[test]
fn a_chain_goes_back_only_to_a_queue_that_has_given_it_out() {
    let memory = ram();
    let mut driver = driver(&memory);
    driver.submit(&[b"x"], &[]);
    let chain = pop(&mut driver.queue(0), &memory);
    let error = driver.queue(0).push(&memory.memory(), chain, 0).unwrap_err();
    assert!(matches!(error, QueueError::NotInFlight { head: 0 }));
    assert_eq!(driver.take_used(), None);
}

#[test]
fn several_chains_come_back_at_once_or_not_at_all() {
    let memory = ram();
    let mut driver = driver(&memory).starting_at(u16::MAX - 1);
    let mut queue = driver.queue(0);
    for round in 1..=5_u32 {
        let heads: Vec<_> = (0..3).map(|_| driver.submit(&[], &[100]).head).collect();
        let before = driver.used_index();
        let chains: Vec<_> = (0..3).map(|_| pop(&mut queue, &memory)).collect();
        let seen = chains.into_iter().zip(1..).map(|(chain, part)| {
            assert_eq!(driver.used_index(), before, "the driver sees a part of them");
            (chain, round * part)
        });
        queue.push_all(&memory.memory(), seen).unwrap();
        assert_eq!((driver.used_index(), queue.in_flight()), (before.wrapping_add(3), 0));
        for (head, part) in heads.into_iter().zip(1..) {
            assert_eq!(driver.take_used(), Some(Used { head: head.into(), written: round * part }));
        }
        assert_eq!(queue.untold(), 3 * round as u16);
    }
    queue.push_all(&memory.memory(), []).unwrap();
    assert_eq!(driver.take_used(), None);
    let elsewhere = ram();
    let mut lender = self::driver(&elsewhere);
    lender.submit(&[], &[1]);
    let stranger = pop(&mut lender.queue(0), &elsewhere);
    let error = queue.push_all(&memory.memory(), [(stranger, 0)]).unwrap_err();
    assert!(matches!(error, QueueError::NotInFlight { .. }), "{error}");
}

#[test]
fn fault_a6_empty_buffers_and_missing_parts_are_lengths_not_errors() {
    let memory = ram();
    let mut driver = driver(&memory);
    // An empty buffer may be anywhere.
    driver.set_descriptor(0, Descriptor::new(u64::MAX, 0, 0, 0));
    driver.make_available(0);
    let mut queue = driver.queue(0);
    let chain = pop(&mut queue, &memory);
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
    let short = chain.readable().read(&memory.memory(), &mut [0; 16]);
    assert!(matches!(short, Err(AccessError::Short { wanted: 16, length: 0 })));
    assert!(matches!(chain.writable().write(&memory.memory(), b"!"), Err(AccessError::Short { .. })));
    queue.push(&memory.memory(), chain, 0).unwrap();
    assert_eq!(driver.take_used(), Some(Used { head: 0, written: 0 }));
}

#[test]
fn fault_a6_a_readable_buffer_after_a_writable_one_is_refused() {
    for length in [0, 1] {
        let wrong = [Descriptor::new(BASE, length, WRITE | NEXT, 1), Descriptor::new(BASE, 1, 0, 0)];
        assert!(matches!(chain_error(&wrong, 0), ChainError::ReadableAfterWritable));
    }
}

#[test]
fn fault_a7_what_the_driver_rewrites_after_it_was_taken_changes_nothing() {
    let memory = ram();
    let mut driver = driver(&memory);
    let request = driver.submit(&[b"header"], &[4]);
    let mut queue = driver.queue(0);
    let chain = pop(&mut queue, &memory);
    // Descriptors, the available ring and the used ring are all overwritten.
    for index in 0..SIZE {
        driver.set_descriptor(index, Descriptor::new(u64::MAX, u32::MAX, NEXT | INDIRECT, u16::MAX));
    }
    driver.set_available_entry(0, u16::MAX);
    driver.write(driver.setup().used_ring, &[0xff; 6 + 8 * SIZE as usize]);
    let mut header = [0; 6];
    chain.readable().read(&memory.memory(), &mut header).unwrap();
    chain.writable().write(&memory.memory(), b"done").unwrap();
    queue.push(&memory.memory(), chain, 4).unwrap();
    assert_eq!((&header, driver.used_index()), (b"header", 1));
    assert_eq!(driver.take_used(), Some(Used { head: request.head.into(), written: 4 }));
}

#[test]
fn fault_a8_a_queue_that_cannot_be_is_refused() {
    let memory = ram();
    let good = driver(&memory).setup();
    let new = |state| Queue::new(&state, 0, &memory.memory()).map(|_| ());
    assert_eq!(new(good), Ok(()));
    for size in [0, 3, 7, 100, 0x8001, u16::MAX] {
        assert_eq!(new(QueueState { size, ..good }), Err(SetupError::Size { size, limit: 32768 }));
    }
    for (state, area) in [
        (QueueState { descriptor_table: BASE + 8, ..good }, "descriptor table"),
        (QueueState { available_ring: BASE + 0x401, ..good }, "available ring"),
        (QueueState { used_ring: BASE + 0x402, ..good }, "used ring"),
    ] {
        assert!(matches!(new(state), Err(SetupError::Alignment { area: wrong, .. }) if wrong == area));
    }
    for outside in [ram_end(), ram_end() - 0x10, 0xd000_0000, u64::MAX - 0xf, !0xffff] {
        for state in [
            QueueState { descriptor_table: outside, ..good },
            QueueState { available_ring: outside, ..good },
            QueueState { used_ring: outside & !3, ..good },
        ] {
            assert!(matches!(new(state), Err(SetupError::NotRam { .. })), "{outside:#x}");
        }
    }
    for state in [
        QueueState::new(0, SIZE),
        QueueState { available_ring: good.descriptor_table, ..good },
        QueueState { used_ring: good.available_ring + 4, ..good },
        QueueState { descriptor_table: good.used_ring & !0xf, ..good },
    ] {
        assert!(matches!(new(state), Err(SetupError::Overlap { .. })), "{state:?}");
    }
}

#[test]
fn fault_a9_a_saved_queue_is_checked_like_a_new_one() {
    let memory = ram();
    let good = driver(&memory).setup();
    let new = |state| Queue::new(&state, 0, &memory.memory()).map(|_| ());
    let in_flight = |next_available, next_used| QueueState { next_available, next_used, ..good };
    assert_eq!(new(in_flight(3, u16::MAX - 4)), Ok(()));
    assert_eq!(new(in_flight(SIZE + 1, 0)), Err(SetupError::InFlight { in_flight: SIZE + 1, size: SIZE }));
    assert!(matches!(new(in_flight(0, 1)), Err(SetupError::InFlight { .. })));
    assert_eq!(new(QueueState { version: 2, ..good }), Err(SetupError::Version { version: 2 }));
}

#[test]
fn a_queue_goes_on_from_its_saved_state() {
    let memory = ram();
    let mut driver = driver(&memory);
    let mut queue = driver.queue(EVENT_IDX);
    for round in 0..20_u16 {
        driver.submit(&[b"x"], &[]);
        let chain = pop(&mut queue, &memory);
        queue.push(&memory.memory(), chain, 0).unwrap();
        assert_eq!(driver.take_used(), Some(Used { head: (round % SIZE).into(), written: 0 }));
        let saved = serde_json::to_string(&queue.state()).unwrap();
        let state: QueueState = serde_json::from_str(&saved).unwrap();
        assert_eq!((state.next_available, state.next_used), (round + 1, round + 1));
        queue = Queue::new(&state, EVENT_IDX, &memory.memory()).unwrap();
    }
}

#[test]
fn fault_a11_a_driver_that_takes_nothing_back_gets_no_more_than_it_has_lent() {
    let memory = ram();
    let mut driver = driver(&memory);
    (0..SIZE).for_each(|_| drop(driver.submit(&[b"x"], &[])));
    let mut queue = driver.queue(0);
    let mut chains: Vec<_> = (0..SIZE).map(|_| pop(&mut queue, &memory)).collect();
    assert!(queue.pop(&memory.memory()).unwrap().is_none());
    assert_eq!(queue.in_flight(), usize::from(SIZE));
    // The used ring cannot be overrun: what is given back at most is what was taken.
    queue.push(&memory.memory(), chains.remove(3), 0).unwrap();
    driver.make_available(3);
    assert_eq!(pop(&mut queue, &memory).head(), 3);
}

#[test]
fn interrupts_follow_the_flag_without_event_idx() {
    let memory = ram();
    let mut driver = driver(&memory);
    let mut queue = driver.queue(0);
    assert!(!queue.needs_interrupt(&memory.memory()).unwrap(), "nothing was used");
    for (flags, expected) in [(0, true), (1, false), (0, true), (0xfffe, true)] {
        driver.set_available_flags(flags);
        driver.submit(&[b"x"], &[]);
        let chain = pop(&mut queue, &memory);
        queue.push(&memory.memory(), chain, 0).unwrap();
        assert_eq!(queue.needs_interrupt(&memory.memory()).unwrap(), expected, "flags {flags}");
    }
}

#[test]
fn interrupts_follow_used_event_with_event_idx() {
    let memory = ram();
    let mut driver = driver(&memory).starting_at(u16::MAX - 1);
    let mut queue = driver.queue(EVENT_IDX);
    // The flag means nothing then.
    driver.set_available_flags(1);
    // An interrupt once the third chain is used; the index passes 0 meanwhile.
    driver.set_used_event(u16::MAX.wrapping_add(1));
    let mut told = Vec::new();
    for _ in 0..5 {
        driver.submit(&[b"x"], &[]);
        let chain = pop(&mut queue, &memory);
        queue.push(&memory.memory(), chain, 0).unwrap();
        told.push(queue.needs_interrupt(&memory.memory()).unwrap());
    }
    assert_eq!(told, [false, false, true, false, false]);
}

#[test]
fn a_busy_device_is_not_notified_and_one_that_rests_is() {
    for features in [0, EVENT_IDX] {
        let event_idx = features != 0;
        let memory = ram();
        let mut driver = driver(&memory);
        let mut queue = driver.queue(features);
        assert!(!queue.rest(&memory.memory()).unwrap());
        let before = driver.available_index();
        driver.submit(&[b"x"], &[]);
        assert!(driver.must_notify(before, event_idx));
        queue.busy(&memory.memory()).unwrap();
        assert!(pop(&mut queue, &memory).head() == 0);
        for _ in 0..3 {
            let before = driver.available_index();
            driver.submit(&[b"x"], &[]);
            assert!(!driver.must_notify(before, event_idx));
        }
        // Who wants to rest learns that there is more.
        assert!(queue.rest(&memory.memory()).unwrap());
        while queue.pop(&memory.memory()).unwrap().is_some() {}
        assert!(!queue.rest(&memory.memory()).unwrap());
        let before = driver.available_index();
        driver.submit(&[b"x"], &[]);
        assert!(driver.must_notify(before, event_idx));
    }
}

#[test]
fn fault_a3_rings_whose_ram_has_gone_are_an_error() {
    let memory = ram();
    let driver = Driver::new(&memory, 0, SIZE, RAM[2].start);
    let mut queue = driver.queue(0);
    memory.apply([vmm_memory::Change::Unmap(RAM[2])]).unwrap();
    let memory = memory.memory();
    assert!(matches!(queue.pop(&memory), Err(QueueError::Rings(_))));
    assert!(matches!(queue.busy(&memory), Err(QueueError::Rings(_))));
    assert!(matches!(queue.rest(&memory), Err(QueueError::Rings(_))));
}

/// Words that mean something more often than any word does.
fn word() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0..10_u16, 1 => any::<u16>()]
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => BASE..BASE + 0x400,
        2 => ram_end() - 32..ram_end() + 16,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0..64_u32, 2 => (0..10_u32).prop_map(|n| 16 * n), 1 => any::<u32>()];
    (address, length, prop_oneof![8 => 0..8_u16, 1 => any::<u16>()], word())
        .prop_map(|(address, length, flags, next)| Descriptor::new(address, length, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the rings, each step ends, and what comes out of it is within the bounds.
    #[test]
    fn fault_a7_arbitrary_rings_give_chains_within_bounds_or_errors(
        features in prop::sample::select(vec![0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX]),
        table in prop::collection::vec(any_descriptor(), 16),
        rounds in prop::collection::vec((prop::collection::vec(word(), 8), 0..12_u16, any::<bool>()), 1..6),
    ) {
        let memory = ram();
        let driver = driver(&memory);
        let mut queue = driver.queue(features);
        // The second half of the table is in the memory after it, where indirect tables may be.
        for (index, descriptor) in table.iter().enumerate() {
            driver.write_obj(BASE + 16 * index as u64, *descriptor);
        }
        let mut index = 0_u16;
        let mut held = Vec::new();
        for (entries, more, give_back) in rounds {
            for (slot, head) in entries.iter().enumerate() {
                driver.set_available_entry(slot as u16, *head);
            }
            index = index.wrapping_add(more);
            driver.set_available_index(index);
            let memory = memory.memory();
            for _ in 0..=SIZE {
                match queue.pop(&memory) {
                    Ok(Some(chain)) => {
                        prop_assert!(chain.head() < SIZE);
                        let parts = [chain.readable(), chain.writable()];
                        let total: u64 = parts.iter().map(|part| u64::from(part.len())).sum();
                        prop_assert!(u32::try_from(total).is_ok());
                        for part in parts {
                            let pieces: Vec<_> = part.iter().collect();
                            prop_assert!(pieces.len() <= SIZE.into());
                            let length: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
                            prop_assert_eq!(length, u64::from(part.len()));
                            for piece in pieces {
                                prop_assert!(piece.length != 0);
                                prop_assert!(memory.check_range(piece.address, piece.length as usize));
                            }
                        }
                        held.push(chain);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        // It has a cause to be told, and another look ends too.
                        prop_assert!(!error.to_string().is_empty());
                        break;
                    }
                }
            }
            prop_assert!(held.len() <= SIZE.into() && held.len() == queue.in_flight());
            if give_back {
                for chain in held.drain(..) {
                    let length = chain.writable().len();
                    queue.push(&memory, chain, length).unwrap();
                }
            }
            queue.needs_interrupt(&memory).unwrap();
            queue.rest(&memory).unwrap();
        }
    }

    /// A part of a chain is a run of bytes: splits and copies agree with those of a vector.
    #[test]
    fn buffers_are_a_run_of_bytes(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8),
        at in 0..100_u32,
    ) {
        let memory = ram();
        let mut driver = driver(&memory);
        let expected = parts.concat();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        driver.submit(&slices, &[]);
        prop_assume!(!parts.is_empty());
        let mut queue = driver.queue(0);
        let chain = pop(&mut queue, &memory);
        let memory = memory.memory();
        let (head, tail) = chain.readable().split_at(at);
        let cut = expected.len().min(at as usize);
        for (part, expected) in [(head, &expected[..cut]), (tail, &expected[cut..])] {
            let mut data = vec![0; expected.len()];
            part.read(&memory, &mut data).unwrap();
            prop_assert_eq!(&data, expected);
            prop_assert_eq!(part.len() as usize, expected.len());
            let mut again = Vec::new();
            for piece in part.iter() {
                let mut bytes = vec![0; piece.length as usize];
                memory.read_slice(&mut bytes, GuestAddress(piece.address.0)).unwrap();
                again.extend(bytes);
            }
            prop_assert_eq!(&again, expected);
        }
    }
}
