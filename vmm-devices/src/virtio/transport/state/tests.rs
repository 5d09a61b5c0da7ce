//! Registers with drivers that behave and drivers that do not.

use proptest::prelude::*;

use super::*;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC, RING_RESET, VERSION_1};
use crate::virtio::transport::status;

/// A feature of the device.
const OWN: u64 = 1 << 5;
const MAX: u16 = 256;

fn registers() -> Registers {
    Registers::new(OWN | RING_RESET, &[MAX, 64])
}

fn accept(registers: &mut Registers, features: u64) {
    for page in 0..2 {
        registers.select_accepted(page);
        registers.accept((features >> (32 * page)) as u32);
    }
}

/// As a driver goes that accepts `features`, up to FEATURES_OK.
fn negotiated(features: u64) -> Registers {
    let mut registers = registers();
    for step in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        assert_eq!(registers.set_status(step), StatusChange::None);
    }
    accept(&mut registers, features);
    assert_eq!(registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK), StatusChange::None);
    registers
}

fn set_up_queue(registers: &mut Registers, index: u32) {
    registers.select_queue(index);
    registers.set_queue_size(16);
    registers.set_queue_address(QueueArea::Descriptors, false, 0x1000);
    registers.set_queue_address(QueueArea::Descriptors, true, 0x1);
    registers.set_queue_address(QueueArea::Available, false, 0x2000);
    registers.set_queue_address(QueueArea::Used, false, 0x3000);
}

/// A driver that has queue 0 and is ready.
fn live(features: u64) -> Registers {
    let mut registers = negotiated(features);
    set_up_queue(&mut registers, 0);
    assert_eq!(registers.enable_queue(), None);
    assert_eq!(registers.set_status(registers.status() | DRIVER_OK), StatusChange::Start);
    registers
}

#[test]
fn a_driver_that_follows_the_steps_gets_its_features_and_its_queues() {
    let registers = live(VERSION_1 | OWN | EVENT_IDX);
    assert_eq!(registers.accepted(), VERSION_1 | OWN | EVENT_IDX);
    let expected = QueueState {
        descriptor_table: 0x1_0000_1000,
        available_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueState::new(0, 16)
    };
    assert_eq!(registers.enabled().collect::<Vec<_>>(), [expected]);
    assert_eq!((registers.ignored(), registers.is_live()), (0, true));
}

#[test]
fn the_pages_of_features_are_those_of_the_device_and_the_transport() {
    let mut registers = registers();
    let offered = OWN | RING_RESET | VERSION_1 | EVENT_IDX | INDIRECT_DESC;
    for (page, expected) in [(0, offered as u32), (1, (offered >> 32) as u32), (2, 0), (u32::MAX, 0)] {
        registers.select_offered(page);
        assert_eq!((registers.offered(), registers.offered_page()), (expected, page));
    }
}

#[test]
fn fault_b3_a_status_that_may_not_follow_changes_nothing() {
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    for (from, to) in [
        (0, DRIVER),
        (0, FEATURES_OK),
        (0, DRIVER_OK),
        (0, all),
        (0, 0xff),
        (0, 0x10),
        (ACKNOWLEDGE, DRIVER),
        (ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE),
        (ACKNOWLEDGE | DRIVER, all),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK),
        (ACKNOWLEDGE | FAILED, ACKNOWLEDGE | FAILED | DRIVER),
        (ACKNOWLEDGE | FAILED, ACKNOWLEDGE),
    ] {
        let mut registers = registers();
        if from != 0 {
            registers.set_status(ACKNOWLEDGE);
            registers.set_status(from);
        }
        assert_eq!(registers.status(), from);
        assert_eq!(registers.set_status(to), StatusChange::None);
        assert_eq!((registers.status(), registers.ignored()), (from, 1), "{from:#x} to {to:#x}");
    }
}

#[test]
fn fault_b3_driver_ok_twice_starts_once_and_needs_reset_is_the_devices() {
    let mut registers = live(VERSION_1);
    let status = registers.status();
    assert_eq!(registers.set_status(status), StatusChange::None);
    assert_eq!(registers.set_status(status | NEEDS_RESET), StatusChange::None);
    assert_eq!(registers.status(), status);
    assert_eq!(registers.set_status(status | FAILED), StatusChange::None);
    assert_eq!(registers.status(), status | FAILED);
}

#[test]
fn fault_b3_zero_resets_from_everywhere_and_nothing_is_taken_before_its_end() {
    for mut registers in [registers(), negotiated(VERSION_1), live(VERSION_1)] {
        assert_eq!(registers.set_status(0), StatusChange::Reset);
        let before = registers.status();
        assert_eq!(registers.set_status(ACKNOWLEDGE), StatusChange::None);
        accept(&mut registers, OWN);
        set_up_queue(&mut registers, 1);
        assert_eq!((registers.status(), registers.is_resetting()), (before, true));
        // Who writes 0 again waits for the same reset.
        assert_eq!(registers.set_status(0), StatusChange::Reset);
        registers.reset();
        assert_eq!((registers.status(), registers.accepted(), registers.is_resetting()), (0, 0, false));
        assert_eq!(registers.enabled().count(), 0);
        assert_eq!(registers.set_status(ACKNOWLEDGE), StatusChange::None);
        assert_eq!(registers.status(), ACKNOWLEDGE);
    }
}

#[test]
fn fault_b4_features_that_are_not_offered_or_come_late_stay_out() {
    let mut registers = registers();
    accept(&mut registers, VERSION_1);
    assert_eq!(registers.accepted(), 0, "before DRIVER");
    registers.set_status(ACKNOWLEDGE);
    registers.set_status(ACKNOWLEDGE | DRIVER);
    accept(&mut registers, u64::MAX);
    assert_eq!(registers.accepted(), OWN | RING_RESET | VERSION_1 | EVENT_IDX | INDIRECT_DESC);
    for page in [2, 3, u32::MAX] {
        registers.select_accepted(page);
        registers.accept(u32::MAX);
    }
    accept(&mut registers, VERSION_1 | OWN);
    registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    accept(&mut registers, u64::MAX);
    accept(&mut registers, 0);
    assert_eq!(registers.accepted(), VERSION_1 | OWN);
}

#[test]
fn fault_b4_a_driver_without_version_1_does_not_get_features_ok() {
    let mut registers = negotiated(OWN | EVENT_IDX);
    assert_eq!(registers.status(), ACKNOWLEDGE | DRIVER);
    assert_eq!(registers.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK), StatusChange::None);
    assert_eq!(registers.status(), ACKNOWLEDGE | DRIVER);
    // It may think again.
    accept(&mut registers, VERSION_1);
    registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(registers.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn fault_b5_a_queue_that_is_not_there_reads_as_nothing_and_takes_nothing() {
    let mut registers = negotiated(VERSION_1);
    for index in [2, 3, 0x1_0000, u32::MAX] {
        let before = registers.ignored();
        set_up_queue(&mut registers, index);
        assert_eq!((registers.enable_queue(), registers.reset_queue()), (None, None));
        registers.disable_queue();
        assert!(registers.queue().is_none());
        assert_eq!(registers.ignored(), before + 8);
    }
    assert_eq!((registers.enabled().count(), registers.queue_count()), (0, 2));
}

#[test]
fn fault_a8_a_size_that_the_queue_cannot_have_is_none() {
    let mut registers = negotiated(VERSION_1);
    registers.select_queue(0);
    assert_eq!(registers.queue().map(QueueRegisters::size), Some(MAX));
    for (size, expected) in [(1, 1), (256, 256), (0, 0), (3, 0), (512, 0), (0x1_0010, 0), (u32::MAX, 0)] {
        registers.set_queue_size(size);
        assert_eq!(registers.queue().map(QueueRegisters::size), Some(expected), "size {size}");
    }
}

#[test]
fn fault_a9_a_queue_cannot_be_changed_once_it_is_enabled() {
    let enabled = |mut registers: Registers| {
        registers.select_queue(0);
        let before = registers.queue().cloned();
        for change in [
            (|registers| registers.set_queue_size(8)) as fn(&mut Registers),
            |registers| registers.set_queue_address(QueueArea::Descriptors, false, 0),
            |registers| registers.set_queue_address(QueueArea::Available, true, 1),
            |registers| registers.set_queue_address(QueueArea::Used, false, 0),
        ] {
            let ignored = registers.ignored();
            change(&mut registers);
            assert_eq!((registers.queue().cloned(), registers.ignored()), (before.clone(), ignored + 1));
        }
        registers
    };
    let mut registers = negotiated(VERSION_1);
    set_up_queue(&mut registers, 0);
    registers.enable_queue();
    let mut registers = enabled(registers);
    registers.disable_queue();
    registers.set_queue_size(8);
    assert_eq!(registers.queue().map(|queue| (queue.size(), queue.is_enabled())), Some((8, false)));

    let mut registers = enabled(live(VERSION_1));
    registers.disable_queue();
    assert!(registers.queue().is_some_and(QueueRegisters::is_enabled));
    // Nor does another queue come to a device that runs.
    set_up_queue(&mut registers, 1);
    assert_eq!(registers.enable_queue(), None);
    assert_eq!(registers.enabled().count(), 1);
}

#[test]
fn fault_a9_a_queue_is_not_set_up_before_the_features_are() {
    let mut registers = registers();
    registers.set_status(ACKNOWLEDGE);
    registers.set_status(ACKNOWLEDGE | DRIVER);
    set_up_queue(&mut registers, 0);
    registers.enable_queue();
    assert_eq!((registers.enabled().count(), registers.ignored()), (0, 6));
}

#[test]
fn a_queue_that_was_reset_can_be_set_up_and_enabled_again() {
    let mut registers = live(VERSION_1 | RING_RESET);
    registers.select_queue(0);
    assert_eq!(registers.reset_queue(), Some(0));
    assert_eq!(registers.reset_queue(), None, "it is under way");
    registers.set_queue_size(8);
    assert!(registers.queue().is_some_and(|queue| queue.is_resetting() && queue.size() == 16));
    registers.queue_was_reset(0);
    assert!(registers.queue().is_some_and(|queue| !queue.is_resetting() && !queue.is_enabled()));
    set_up_queue(&mut registers, 0);
    registers.set_queue_size(8);
    assert_eq!(registers.enable_queue().map(|setup| (setup.index, setup.size)), Some((0, 8)));
}

#[test]
fn a_queue_is_not_reset_if_that_was_not_negotiated_or_it_does_not_run() {
    let mut registers = live(VERSION_1);
    registers.select_queue(0);
    assert_eq!(registers.reset_queue(), None);
    let mut registers = live(VERSION_1 | RING_RESET);
    registers.select_queue(1);
    assert_eq!(registers.reset_queue(), None);
    // The answer of a queue that a reset of the device has overtaken.
    registers.select_queue(0);
    assert_eq!(registers.reset_queue(), Some(0));
    registers.set_status(0);
    registers.reset();
    registers.queue_was_reset(0);
    assert_eq!(registers.enabled().count(), 0);
}

/// What a driver may do, in any order.
#[derive(Clone, Debug)]
enum Step {
    Status(u8),
    Accept(u32, u32),
    Select(u32),
    Size(u32),
    Address(u32),
    Enable,
    Disable,
    ResetQueue,
    QueueWasReset(usize),
    ResetEnds,
}

fn step() -> impl Strategy<Value = Step> {
    const STEPS: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
    let good = (0..=4_usize).prop_map(|steps| STEPS[..steps].iter().sum());
    let good_features = prop::sample::select(vec![
        (1, (VERSION_1 >> 32) as u32),
        (1, ((VERSION_1 | RING_RESET) >> 32) as u32),
    ]);
    prop_oneof![
        8 => good.prop_map(Step::Status),
        1 => any::<u8>().prop_map(Step::Status),
        4 => good_features.prop_map(|(page, bits)| Step::Accept(page, bits)),
        1 => (0..3_u32, any::<u32>()).prop_map(|(page, bits)| Step::Accept(page, bits)),
        2 => (0..3_u32).prop_map(Step::Select),
        1 => prop_oneof![Just(16), any::<u32>()].prop_map(Step::Size),
        1 => any::<u32>().prop_map(Step::Address),
        3 => Just(Step::Enable),
        1 => Just(Step::Disable),
        1 => Just(Step::ResetQueue),
        1 => (0..3_usize).prop_map(Step::QueueWasReset),
        2 => Just(Step::ResetEnds),
    ]
}

proptest! {
    #[test]
    fn fault_b3_no_order_of_accesses_leads_out_of_the_state_machine(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut registers = registers();
        let mut started = false;
        for step in steps {
            let before = (registers.status(), registers.accepted(), registers.enabled().collect::<Vec<_>>());
            let was_live = registers.is_live();
            let was_resetting = registers.is_resetting();
            let mut reset = false;
            match step.clone() {
                Step::Status(value) => match registers.set_status(value) {
                    StatusChange::None => {}
                    StatusChange::Start => {
                        prop_assert!(!started && !was_resetting, "a device starts once between two resets");
                        started = true;
                    }
                    StatusChange::Reset => prop_assert_eq!(value, 0),
                },
                Step::Accept(page, bits) => {
                    registers.select_accepted(page);
                    registers.accept(bits);
                }
                Step::Select(index) => registers.select_queue(index),
                Step::Size(size) => registers.set_queue_size(size),
                Step::Address(half) => registers.set_queue_address(QueueArea::Used, half & 1 != 0, half),
                Step::Enable => {
                    let setup = registers.enable_queue();
                    prop_assert!(setup.is_none() || was_live && registers.accepted() & RING_RESET != 0);
                }
                Step::Disable => registers.disable_queue(),
                Step::ResetQueue => drop(registers.reset_queue()),
                Step::QueueWasReset(index) => registers.queue_was_reset(index),
                Step::ResetEnds if was_resetting => {
                    registers.reset();
                    (reset, started) = (true, false);
                }
                Step::ResetEnds => {}
            }
            let (status, accepted) = (registers.status(), registers.accepted());
            prop_assert_eq!(status & status::NEEDS_RESET, 0);
            prop_assert_eq!(started, status & DRIVER_OK != 0);
            prop_assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0);
            prop_assert!(status & FEATURES_OK == 0 || status & DRIVER != 0 && accepted & VERSION_1 != 0);
            prop_assert!(reset || before.0 & !status == 0, "{step:?} took a bit back");
            prop_assert!(reset || before.0 & FEATURES_OK == 0 || accepted == before.1, "{step:?} changed features");
            let frozen = was_live && accepted & RING_RESET == 0 && !reset;
            prop_assert!(!frozen || registers.enabled().collect::<Vec<_>>() == before.2, "{step:?} changed queues");
        }
    }
}
