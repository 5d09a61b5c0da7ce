//! Functions on a bus: where BARs answer, and what becomes of places that they cannot have.

use proptest::prelude::*;

use super::*;
use crate::pci::testing::{Named, TestHost, WINDOW, WINDOW_SIZE, finish, named};

const COMMAND: usize = 4;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;

fn function(host: &TestHost, id: u8) -> (Arc<Named>, Arc<Function>) {
    let (device, function) = named(host, id);
    (device, Arc::new(function))
}

fn load(function: &Function, offset: usize) -> u32 {
    let mut data = [0xff; 4];
    function.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn store(function: &Arc<Function>, offset: usize, value: u32) {
    finish(function.write(offset, &value.to_le_bytes()));
}

fn memory_space(function: &Arc<Function>, on: bool) {
    finish(function.write(COMMAND, &[if on { 6 } else { 0 }]));
}

#[test]
fn a_bar_answers_where_it_was_allocated_while_memory_space_is_on() {
    let host = TestHost::new();
    let (device, function) = function(&host, 7);
    let (bar0, bar2) = (u64::from(load(&function, BAR0)), u64::from(load(&function, BAR2) & !0xf));
    assert_eq!(host.who(bar0), 0xff);
    memory_space(&function, true);
    assert_eq!((host.who(bar0), host.who(bar0 + 0xfff), host.who(bar2)), (7, 7, 7));
    finish(host.bus.write(bar2 + 8, 2, &[1, 2]));
    assert_eq!(*device.writes.lock().unwrap(), [(2, 8, vec![1, 2])]);
    memory_space(&function, false);
    assert_eq!((host.who(bar0), host.who(bar2)), (0xff, 0xff));
    let expected = [(0, Some(bar0)), (2, Some(bar2)), (0, None), (2, None)];
    assert_eq!(*device.moves.lock().unwrap(), expected);
}

#[test]
fn a_bar_moves_with_memory_space_off_and_live() {
    let host = TestHost::new();
    let (_, function) = function(&host, 7);
    memory_space(&function, true);
    let first = u64::from(load(&function, BAR0));
    memory_space(&function, false);
    store(&function, BAR0, 0xc008_0000);
    assert_eq!((host.who(first), host.who(0xc008_0000)), (0xff, 0xff));
    memory_space(&function, true);
    assert_eq!((host.who(first), host.who(0xc008_0000)), (0xff, 7));
    store(&function, BAR0, 0xc009_0000);
    assert_eq!((host.who(0xc008_0000), host.who(0xc009_0000)), (0xff, 7));
    // By halves: for a moment it is beyond the window.
    let second = u64::from(load(&function, BAR2) & !0xf);
    store(&function, BAR2 + 4, 1);
    store(&function, BAR2, 0xc00a_0000);
    assert_eq!((host.who(second), host.who(0xc00a_0000)), (0xff, 0xff));
    store(&function, BAR2 + 4, 0);
    assert_eq!(host.who(0xc00a_0000), 7);
}

#[test]
fn a_bar_that_is_sized_live_is_back_when_its_address_is() {
    let host = TestHost::new();
    let (_, function) = function(&host, 7);
    memory_space(&function, true);
    let (low, high) = (load(&function, BAR2), load(&function, BAR2 + 4));
    store(&function, BAR2, u32::MAX);
    store(&function, BAR2 + 4, u32::MAX);
    assert_eq!((load(&function, BAR2), load(&function, BAR2 + 4)), (0xffff_000c, u32::MAX));
    assert_eq!(host.who(u64::from(low & !0xf)), 0xff);
    store(&function, BAR2, low);
    store(&function, BAR2 + 4, high);
    assert_eq!(host.who(u64::from(low & !0xf)), 7);
}

#[test]
fn fault_b5_a_bar_that_is_moved_onto_another_goes_back_and_the_other_stays() {
    let host = TestHost::new();
    let ((device, mover), (other_device, other)) = (function(&host, 7), function(&host, 9));
    memory_space(&mover, true);
    memory_space(&other, true);
    let (home, taken) = (load(&mover, BAR0), load(&other, BAR0));
    let before = device.moves.lock().unwrap().len();
    store(&mover, BAR0, taken);
    assert_eq!(load(&mover, BAR0), home);
    assert_eq!((host.who(home.into()), host.who(taken.into())), (7, 9));
    assert_eq!(device.moves.lock().unwrap().len(), before);
    // The same with memory space off in between: it is where it was last.
    memory_space(&mover, false);
    store(&mover, BAR0, taken);
    memory_space(&mover, true);
    assert_eq!((load(&mover, BAR0), host.who(home.into()), host.who(taken.into())), (home, 7, 9));
    assert_eq!(other_device.moves.lock().unwrap().len(), 2);
}

#[test]
fn fault_b5_a_bar_outside_the_window_is_decoded_by_nobody() {
    let host = TestHost::new();
    let (_, function) = function(&host, 7);
    memory_space(&function, true);
    let home = load(&function, BAR0);
    for bad in [0, 0x1000, WINDOW as u32 - 0x1000, (WINDOW + WINDOW_SIZE) as u32, 0xfee0_0000, 0xffff_f000] {
        store(&function, BAR0, bad);
        assert_eq!((load(&function, BAR0), host.who(home.into()), host.who(bad.into())), (bad, 0xff, 0xff));
    }
    store(&function, BAR0, home);
    assert_eq!(host.who(home.into()), 7);
}

#[test]
fn a_function_that_is_withdrawn_answers_nowhere_and_does_not_come_back() {
    let host = TestHost::new();
    let (device, function) = function(&host, 7);
    memory_space(&function, true);
    let home = u64::from(load(&function, BAR0));
    function.withdraw().unwrap();
    assert_eq!(host.who(home), 0xff);
    memory_space(&function, false);
    memory_space(&function, true);
    assert_eq!(host.who(home), 0xff);
    drop(function);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn a_device_hears_that_its_bar_goes_while_it_still_answers_there() {
    let host = TestHost::new();
    let (device, function) = function(&host, 7);
    memory_space(&function, true);
    let home = u64::from(load(&function, BAR0));
    *device.watch.lock().unwrap() = Some((Arc::clone(&host.bus), home));
    memory_space(&function, false);
    // Of BAR 0, of which it is the address; and of BAR 2, after it.
    assert_eq!(*device.seen.lock().unwrap(), [7, 0xff]);
    memory_space(&function, true);
    assert_eq!(*device.seen.lock().unwrap(), [7, 0xff, 7, 7]);
    function.withdraw().unwrap();
    assert_eq!(*device.seen.lock().unwrap(), [7, 0xff, 7, 7, 7, 0xff]);
    *device.watch.lock().unwrap() = None;
}

#[test]
fn every_change_of_a_place_leaves_an_old_table_to_wait_for() {
    let host = TestHost::new();
    let (_, function) = function(&host, 7);
    let (home, other) = (WINDOW + 0x8_0000, WINDOW + 0x9_0000);
    for places in [(None, Some(home)), (Some(home), Some(other)), (Some(other), None)] {
        let retired = function.change_bus(&host.bus, 0, 0x1000, places).unwrap();
        retired.unwrap().wait().unwrap();
    }
    assert!(function.change_bus(&host.bus, 0, 0x1000, (None, None)).unwrap().is_none());
}

#[test]
fn the_places_of_a_function_that_is_dropped_are_free_again() {
    let host = TestHost::new();
    let addresses: Vec<_> = (0..3).map(|_| load(&function(&host, 7).1, BAR0)).collect();
    assert_eq!(addresses, [addresses[0]; 3]);
}

#[test]
fn without_the_thread_for_changes_registers_change_and_bars_stay() {
    let TestHost { bus, reconfigure, window } = TestHost::new();
    let host =
        TestHost { bus, window, reconfigure: crate::Reconfigure::new(vmm_core::VmEvents::new().unwrap()) };
    let (_, function) = function(&host, 7);
    drop(reconfigure);
    memory_space(&function, true);
    let home = u64::from(load(&function, BAR0));
    assert_eq!(host.who(home), 7);
    drop(host.reconfigure);
    finish(function.write(COMMAND, &[0]));
    let mut data = [0];
    host.bus.read(home, 1, &mut data);
    assert_eq!(data, [7]);
}

/// A write to the command register or a BAR of one of three functions.
#[derive(Clone, Copy, Debug)]
enum Step {
    Memory(usize, bool),
    /// Number of the page in the window, or beyond it.
    Move(usize, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..3, any::<bool>()).prop_map(|(who, on)| Step::Memory(who, on)),
        (0usize..3, 0u32..6).prop_map(|(who, page)| Step::Move(who, page)),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Three BARs of a page in a window of four pages.
    #[test]
    fn each_bar_is_where_its_register_says_and_where_nobody_else_is(steps in steps()) {
        let mut host = TestHost::new();
        host.window = Arc::new(BarWindow::new(WINDOW, 0x4000).unwrap());
        let functions = [1, 2, 3].map(|id| {
            let mut configuration = Configuration::new(crate::pci::testing::IDENTITY);
            let bar = crate::pci::Bar::registers(0x1000, crate::pci::BarWidth::Bits32).unwrap();
            configuration.add_bar(0, bar).unwrap();
            let device = Arc::new(Named { id, ..Named::default() });
            Arc::new(Function::new("page", configuration, device, None, host.host()).unwrap())
        });
        // Register, whether on, where it is, where it was last.
        let mut model = [0u32, 1, 2].map(|page| (Some(page), false, None, page));
        for step in steps {
            let who = match step {
                Step::Memory(who, on) => {
                    memory_space(&functions[who], on);
                    model[who].1 = on;
                    who
                }
                Step::Move(who, page) => {
                    store(&functions[who], BAR0, WINDOW as u32 + page * 0x1000);
                    model[who].0 = Some(page);
                    who
                }
            };
            let others = model.map(|other| other.2);
            let is_free = |page: u32| (0..3).all(|other| other == who || others[other] != Some(page));
            let (register, on, now, last) = &mut model[who];
            match (*on, *register) {
                (false, _) | (true, None | Some(4..)) => *now = None,
                (true, Some(page)) if is_free(page) => (*now, *last) = (Some(page), page),
                // Back to where it is, or was if that is free.
                (true, Some(_)) => {
                    *now = now.or(is_free(*last).then_some(*last));
                    *register = *now;
                }
            }
            for page in 0..6 {
                let there = model.iter().position(|one| one.2 == Some(page));
                let expected = there.map_or(0xff, |index| index as u8 + 1);
                prop_assert_eq!(host.who(WINDOW + u64::from(page) * 0x1000), expected);
            }
            for (function, one) in functions.iter().zip(model) {
                let expected = one.0.map_or(0, |page| WINDOW as u32 + page * 0x1000);
                prop_assert_eq!(load(function, BAR0), expected);
            }
        }
    }
}
