//! Drivers that name what is not theirs, or too much, or nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vmm_memory::Change;

use super::*;
use crate::virtio::balloon::pages::MOST_PAGES;
use crate::virtio::testing::{NEXT, WRITE};

#[test]
fn fault_b9_pages_that_are_not_in_ram_are_refused_and_the_others_go() {
    let mut machine = Machine::new();
    machine.fill();
    let started = machine.start(ALL);
    let named =
        [u32::MAX, SECOND + 255, SECOND + 256, THIRD - 1, THIRD, THIRD + 255, THIRD + 256, u32::MAX - 1];
    machine.name(&started, INFLATE, &named);
    machine.name(&started, DEFLATE, &named);
    let counts = machine.device.counts();
    assert_eq!((counts.inflated_pages, counts.deflated_pages, counts.refused_pages), (3, 3, 10));
    assert_eq!((counts.returned_bytes, counts.failed_bytes), (3 * PAGE, 0));
    let gone = [SECOND + 255, THIRD, THIRD + 255].map(|page| machine.is_filled(address(page)));
    assert_eq!((gone, machine.is_filled(address(THIRD + 1))), ([false; 3], true));
    assert!(!started.needs_reset());
}

#[test]
fn fault_b9_a_chain_names_a_bounded_number_of_pages_and_others_go_on_beside_it() {
    let mut machine = Machine::new();
    let started = machine.start(ALL);
    // All of the third range again and again.
    let numbers: Vec<u8> =
        (0..MOST_PAGES + 10).flat_map(|index| (THIRD + index % 256).to_le_bytes()).collect();
    machine.drivers[INFLATE].write(0x10_0000, &numbers);
    let half = numbers.len() as u32 / 2;
    machine.drivers[INFLATE].set_descriptor(0, Descriptor::new(0x10_0000, half - 2, NEXT, 1));
    let rest = Descriptor::new(0x10_0000 + u64::from(half - 2), numbers.len() as u32 - half + 2, 0, 0);
    machine.drivers[INFLATE].set_descriptor(1, rest);
    machine.drivers[INFLATE].make_available(0);
    started.doorbells[INFLATE].ring();
    machine.name(&started, DEFLATE, &[THIRD]);
    started.wait_used(&mut machine.drivers[INFLATE], 1);
    let counts = machine.device.counts();
    assert_eq!((counts.inflated_pages, counts.refused_pages), (MOST_PAGES.into(), 10));
    assert!(!started.needs_reset());
}

#[test]
fn fault_a6_requests_without_their_parts_come_back_and_are_counted() {
    let mut machine = Machine::new();
    let started = machine.start(ALL);
    for (queue, readable, writable) in [
        (INFLATE, &[][..], &[][..]),
        (INFLATE, &[&[1_u8, 2, 3][..]][..], &[]),
        (INFLATE, &[], &[64]),
        (DEFLATE, &[&[0; 5]], &[]),
        (DEFLATE, &[&[0; 4]], &[4]),
        (HINTS, &[&[0; 3]], &[]),
        (HINTS, &[&[0; 5]], &[]),
        (REPORTS, &[&[0; 4]], &[]),
    ] {
        let before = machine.device.counts().broken;
        if readable.is_empty() && writable.is_empty() {
            // A chain of one empty buffer.
            machine.drivers[queue].submit(&[&[]], &[]);
            started.doorbells[queue].ring();
            started.wait_used(&mut machine.drivers[queue], 1);
        } else {
            assert_eq!(machine.ask(&started, queue, readable, writable), 0);
        }
        assert_eq!(machine.device.counts().broken, before + 1, "{queue} {readable:?} {writable:?}");
    }
    assert!(!started.needs_reset());
    // The number that was whole is taken.
    assert_eq!(machine.device.counts().deflated_pages, 2);
}

#[test]
fn fault_a7_memory_that_goes_while_it_is_named_is_refused() {
    let mut machine = Machine::new();
    let started = machine.start(ALL);
    machine.memory.apply([Change::Unmap(RAM[2])]).unwrap();
    machine.name(&started, INFLATE, &[SECOND, THIRD]);
    let counts = machine.device.counts();
    assert_eq!((counts.inflated_pages, counts.refused_pages), (1, 1));
    // A buffer there is none that can be lent.
    machine.drivers[REPORTS].set_descriptor(0, Descriptor::new(RAM[2].start, 4096, WRITE, 0));
    machine.drivers[REPORTS].make_available(0);
    started.doorbells[REPORTS].ring();
    started.interrupts.wait_for_config();
    assert!(started.needs_reset());
}

#[test]
fn a_queue_that_belongs_to_no_feature_is_left_alone() {
    let mut machine = Machine::new();
    machine.fill();
    let started = machine.start(0);
    for queue in [STATISTICS, HINTS, REPORTS] {
        machine.drivers[queue].set_descriptor(0, Descriptor::new(address(THIRD), 4096, WRITE, 0));
        machine.drivers[queue].make_available(0);
        started.doorbells[queue].ring();
    }
    machine.name(&started, INFLATE, &[SECOND]);
    assert!([STATISTICS, HINTS, REPORTS].iter().all(|queue| machine.drivers[*queue].used_index() == 0));
    assert!(machine.is_filled(address(THIRD)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_pages_are_named_those_in_ram_go_and_no_other(
        named in prop::collection::vec(
            prop::collection::vec(prop_oneof![4 => SECOND..THIRD + 0x110, 1 => any::<u32>()], 0..300), 1..6,
        ),
    ) {
        let mut machine = Machine::new();
        machine.fill();
        let started = machine.start(ALL);
        let mut gone = BTreeSet::new();
        for named in named {
            // The rings are in the first range: what becomes of them is the driver's own affair.
            let named: Vec<u32> = named.into_iter().filter(|page| *page >= SECOND).collect();
            machine.name(&started, INFLATE, &named);
            gone.extend(named);
        }
        let in_ram = |page: &u32| RAM[1..].iter().any(|range| {
            (range.start..range.start + range.size).contains(&address(*page))
        });
        let pages = (SECOND..SECOND + 256).chain(THIRD..THIRD + 256);
        for page in pages {
            prop_assert_eq!(machine.is_filled(address(page)), !gone.contains(&page), "{:#x}", page);
        }
        let counts = machine.device.counts();
        prop_assert!(counts.returned_bytes >= gone.iter().filter(|page| in_ram(page)).count() as u64 * PAGE);
        prop_assert_eq!((counts.kept_bytes, counts.failed_bytes), (0, 0));
        prop_assert!(!started.needs_reset());
    }
}
