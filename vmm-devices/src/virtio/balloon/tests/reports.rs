//! Free pages that are reported.

use std::io::Write;

use virtio_queue::desc::split::Descriptor;
use vmm_core::fake::FakeVm;
use vmm_memory::{Backing, BackingKind, RamRange};

use super::*;
use crate::virtio::testing::{NEXT, WRITE};

/// Reports ranges, of addresses and lengths, in one chain.
fn report(machine: &mut Machine, started: &Started, ranges: &[(u64, u32)]) {
    let driver = &mut machine.drivers[REPORTS];
    for (&(start, length), index) in ranges.iter().zip(0..) {
        let next = if usize::from(index) + 1 < ranges.len() { NEXT } else { 0 };
        driver.set_descriptor(index, Descriptor::new(start, length, WRITE | next, index + 1));
    }
    driver.make_available(0);
    started.doorbells[REPORTS].ring();
    assert_eq!(started.wait_used(driver, 1), [Used { head: 0, written: 0 }]);
}

#[test]
fn what_is_reported_is_given_back_before_the_driver_has_it_again() {
    let mut machine = Machine::new();
    machine.fill();
    let started = machine.start(ALL);
    let ranges = [(address(THIRD + 4), 8 * 4096), (address(SECOND), 4096), (address(THIRD + 40), 4096)];
    report(&mut machine, &started, &ranges);
    for page in (SECOND..SECOND + 256).chain(THIRD..THIRD + 256) {
        let free = page == SECOND || (THIRD + 4..THIRD + 12).contains(&page) || page == THIRD + 40;
        assert_eq!(machine.is_filled(address(page)), !free, "{page:#x}");
    }
    let counts = machine.device.counts();
    assert_eq!((counts.reported_bytes, counts.returned_bytes), (10 * PAGE, 10 * PAGE));
}

#[test]
fn parts_of_pages_stay_and_are_counted() {
    let mut machine = Machine::new();
    machine.fill();
    let started = machine.start(ALL);
    report(&mut machine, &started, &[(address(THIRD) + 1, 3 * 4096), (address(THIRD + 8), 4095)]);
    let filled = [0, 1, 2, 3, 8].map(|page| machine.is_filled(address(THIRD + page)));
    assert_eq!(filled, [true, false, false, true, true]);
    let counts = machine.device.counts();
    assert_eq!((counts.returned_bytes, counts.kept_bytes), (2 * PAGE, 2 * PAGE - 1));
}

#[test]
fn fault_b9_a_report_of_all_of_the_ram_is_worked_off_in_steps() {
    let mut machine = Machine::new();
    machine.fill();
    let started = machine.start(ALL);
    // Both ranges, many times, with everything else between.
    let all = [(RAM[1].start, 0x10_0000), (RAM[2].start, 0x10_0000)];
    let ranges: Vec<_> = all.into_iter().cycle().take(SIZE.into()).collect();
    report(&mut machine, &started, &ranges);
    machine.name(&started, DEFLATE, &[SECOND]);
    assert!((THIRD..THIRD + 256).all(|page| !machine.is_filled(address(page))));
    assert_eq!(machine.device.counts().returned_bytes, 16 << 20);
    assert!(!started.needs_reset());
}

#[test]
fn pages_that_are_to_keep_a_pattern_stay_unless_it_is_zero() {
    for (poison, stays) in [(0_u32, false), (0xaaaa_aaaa, true)] {
        let mut machine = Machine::new();
        machine.fill();
        let started = machine.start(ALL | PAGE_POISON);
        machine.device.write_config(12, &poison.to_le_bytes());
        report(&mut machine, &started, &[(address(THIRD), 4096)]);
        assert_eq!(machine.is_filled(address(THIRD)), stays);
        assert_eq!(machine.device.counts().kept_bytes, if stays { PAGE } else { 0 });
    }
}

#[test]
fn of_a_private_file_copies_go_but_not_if_they_are_to_read_as_zero() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![b'f'; RAM[2].size as usize]).unwrap();
    let file = Arc::new(file);
    for (features, read) in [(ALL, b'f'), (ALL | PAGE_POISON, b'g')] {
        let memory = AddressSpace::new(Arc::new(FakeVm::default()));
        memory.map(&[RamRange { start: 0, size: 2 << 20 }], &Backing::default()).unwrap();
        let kind = BackingKind::File { file: Arc::clone(&file), shared: false, offset: 0 };
        memory.map(&[RAM[2]], &Backing::new(kind)).unwrap();
        let mut machine = Machine::on(Arc::new(memory));
        let started = machine.start(features);
        machine.drivers[0].write(address(THIRD), b"g");
        report(&mut machine, &started, &[(address(THIRD), 4096)]);
        assert_eq!(machine.drivers[0].read(address(THIRD), 1), [read]);
    }
}
