//! Rounds of free page hinting.

use virtio_queue::desc::split::Descriptor;
use vmm_memory::RamRange;

use super::*;
use crate::virtio::testing::WRITE;

/// Lends the pages from `page` on to the queue of hints.
fn hint(machine: &mut Machine, started: &Started, page: u32, count: u32) {
    machine.drivers[HINTS].set_descriptor(15, Descriptor::new(address(page), count * 4096, WRITE, 0));
    machine.drivers[HINTS].make_available(15);
    started.doorbells[HINTS].ring();
    assert_eq!(started.wait_used(&mut machine.drivers[HINTS], 1), [Used { head: 15, written: 0 }]);
}

fn say(machine: &mut Machine, started: &Started, id: u32) {
    assert_eq!(machine.ask(started, HINTS, &[&id.to_le_bytes()], &[]), 0);
}

#[test]
fn a_round_is_asked_for_held_and_ended() {
    let mut machine = Machine::new();
    machine.fill();
    assert_eq!(machine.device.start_hinting(), Err(BalloonError::NoDriver));
    let started = machine.start(ALL);
    machine.device.start_hinting().unwrap();
    started.interrupts.wait_for_config();
    let id = machine.config()[2];
    assert!(id > 1);
    // Before the driver has said which round it is for.
    hint(&mut machine, &started, THIRD, 1);
    assert_eq!(machine.device.status().hints, HintStatus { state: HintState::Asked, bytes: 0 });
    say(&mut machine, &started, id);
    hint(&mut machine, &started, THIRD, 2);
    hint(&mut machine, &started, SECOND, 4);
    hint(&mut machine, &started, THIRD + 1, 2);
    assert_eq!(machine.device.status().hints, HintStatus { state: HintState::Hinting, bytes: 7 * PAGE });
    say(&mut machine, &started, 0);
    assert_eq!(machine.device.status().hints.state, HintState::Complete);
    let range = |page, pages| RamRange { start: address(page), size: pages * PAGE };
    assert_eq!(machine.device.hinted(), [range(SECOND, 4), range(THIRD, 3)]);
    // The driver may have written to them since: nothing is taken from it.
    assert!([SECOND, SECOND + 3, THIRD, THIRD + 2].iter().all(|page| machine.is_filled(address(*page))));
    assert_eq!(machine.device.counts().hinted_bytes, 8 * PAGE);
    machine.device.stop_hinting();
    started.interrupts.wait_for_config();
    assert_eq!((machine.config()[2], machine.device.status().hints), (1, HintStatus::default()));
    assert!(machine.device.hinted().is_empty());
    machine.device.start_hinting().unwrap();
    assert_eq!(machine.config()[2], id + 1);
}

#[test]
fn a_driver_without_hints_is_not_asked() {
    let machine = Machine::new();
    let started = machine.start(STATS_VQ | PAGE_REPORTING);
    assert_eq!(machine.device.start_hinting(), Err(BalloonError::NoHints));
    machine.device.stop_hinting();
    assert_eq!(machine.config()[2], 1);
    drop(started);
}
