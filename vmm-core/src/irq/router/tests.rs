//! The router against a VM that records what it is told and fails where a test wants it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::fake::{FakeCall, FakeVm};
use crate::irq::{IrqTrigger, LevelInput};

/// Lets this process have the descriptors of 1000 vectors, and as many for the fake kernel.
fn allow_many_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard).unwrap();
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_1000, data }
}

fn all() -> (Arc<FakeVm>, IrqRouter) {
    with(IrqOptions::all())
}

fn with(options: IrqOptions) -> (Arc<FakeVm>, IrqRouter) {
    let vm = Arc::new(FakeVm::default());
    (vm.clone(), IrqRouter::new(vm, options))
}

/// How many calls `act` makes.
fn calls(vm: &FakeVm, act: impl FnOnce()) -> usize {
    let before = vm.calls().len();
    act();
    vm.calls().len() - before
}

#[test]
fn a_line_is_connected_and_disconnected_by_its_lifetime() {
    let (vm, router) = all();
    drop(router.edge_line(4, "serial").unwrap());
    assert_eq!(vm.calls(), [FakeCall::AttachIrqfd(4), FakeCall::DetachIrqfd(4)]);
    drop(router.edge_line(4, "serial again").unwrap());
}

#[test]
fn a_refused_irqfd_leaves_the_gsi_free() {
    let (vm, router) = all();
    vm.fail_call(0, libc::EBUSY);
    assert!(matches!(router.edge_line(4, "serial"), Err(IrqError::Attach { gsi: 4, .. })));
    router.edge_line(4, "serial").unwrap();
}

#[test]
fn a_line_cannot_be_given_twice_whatever_its_kind() {
    let (_vm, router) = all();
    let _line = router.edge_line(4, "serial").unwrap();
    let error = router.level_line(4, "pci").unwrap_err();
    assert_eq!(error.to_string(), "GSI 4 cannot be given to pci: it belongs to serial");
}

#[test]
fn a_trigger_signals_the_connected_eventfd_and_outlives_the_line() {
    let (vm, router) = all();
    let line = router.edge_line(4, "serial").unwrap();
    let trigger = line.trigger();
    trigger.trigger();
    trigger.trigger();
    assert_eq!(vm.signals(4), 2);
    drop(line);
    trigger.trigger();
    assert_eq!(vm.signals(4), 0);
}

#[test]
fn a_level_line_stays_high_while_any_device_asserts_it() {
    let (vm, router) = all();
    let line = router.level_line(10, "pci").unwrap();
    let (one, other) = (line.input(), line.input());
    let resample = line.resample().unwrap();
    let ended = |count| {
        vm.acknowledge(10);
        // As a worker does.
        assert_eq!(resample.eventfd().read().unwrap(), 1);
        resample.handle();
        assert_eq!(vm.signals(10), count);
    };
    one.set(true);
    one.set(true);
    other.set(true);
    assert_eq!(vm.signals(10), 1, "high already");
    ended(1);
    one.set(false);
    ended(1);
    drop(other);
    ended(0);
    one.set(true);
    assert_eq!(vm.signals(10), 1);
    let attached = FakeCall::AttachResampledIrqfd(10);
    drop((line, one, resample));
    assert_eq!(vm.calls(), [attached, FakeCall::DetachIrqfd(10)]);
}

#[test]
fn a_level_line_without_resample_is_set_to_both_levels() {
    let (vm, router) = with(IrqOptions { resample: false, ..IrqOptions::all() });
    let line = router.level_line(10, "pci").unwrap();
    let (one, other) = (line.input(), line.input());
    assert!(line.resample().is_none());
    one.set(true);
    other.set(true);
    one.set(false);
    other.set(false);
    drop((line, one, other));
    assert_eq!(vm.calls(), [FakeCall::SetLine(10, true), FakeCall::SetLine(10, false)]);
}

#[test]
fn a_batch_is_one_ioctl_and_leaves_irqfds_attached() {
    allow_many_descriptors();
    let (vm, router) = all();
    let vectors: Vec<_> =
        (0..1000).map(|_| router.msi_vector("net", TriggeredBy::UserSpace).unwrap()).collect();
    let count = calls(&vm, || {
        let each = || (0..).zip(&vectors);
        router.batch(|changes| each().for_each(|(data, vector)| changes.set(vector, message(data)))).unwrap();
    });
    assert_eq!((count, vm.routes().len(), vm.irqfds().len()), (1, 1000, 1000));
    assert_eq!(vm.message(24 + 999), Some(message(999)));
    let cleared = calls(&vm, || router.batch(|changes| changes.clear(&vectors[7])).unwrap());
    assert_eq!((cleared, vm.message(24 + 7)), (1, None));
    assert_eq!(calls(&vm, || router.batch(|_| {}).unwrap()), 0, "nothing to change");
}

#[test]
fn a_refused_batch_changes_nothing() {
    let (vm, router) = all();
    let vectors = [(); 3].map(|()| router.msi_vector("net", TriggeredBy::UserSpace).unwrap());
    vectors[0].set_message(message(1)).unwrap();
    let before = vm.routes();
    vm.fail_call(vm.calls().len(), libc::ENOMEM);
    let refused = router.batch(|changes| {
        changes.set(&vectors[0], message(2));
        changes.set(&vectors[0], message(3));
        changes.set(&vectors[2], message(4));
    });
    assert!(matches!(refused, Err(IrqError::Routes(_))));
    assert_eq!(vm.routes(), before);
    // Neither does the next one bring what was refused.
    vectors[1].set_message(message(5)).unwrap();
    assert_eq!(vm.routes(), [(24, message(1)), (25, message(5))]);
}

#[test]
fn a_route_of_wide_destination_is_translated_for_kvm() {
    let (vm, router) = with(IrqOptions { wide_destinations: true, ..IrqOptions::all() });
    let vector = router.msi_vector("net", TriggeredBy::UserSpace).unwrap();
    vector.set_message(MsiMessage { address: 0xfee2_c020, data: 1 }).unwrap();
    assert_eq!(vm.message(24), Some(MsiMessage { address: 0x100_fee2_c000, data: 1 }));
}

#[test]
fn vectors_of_user_space_are_masked_and_unmasked_without_ioctls() {
    let (vm, router) = all();
    let vector = router.msi_vector("net", TriggeredBy::UserSpace).unwrap();
    vector.set_message(message(1)).unwrap();
    let trigger = vector.trigger();
    let count = calls(&vm, || {
        trigger.trigger();
        trigger.trigger();
        assert_eq!((vm.signals(24), vector.is_pending()), (0, true));
        vector.unmask().unwrap();
        assert_eq!((vm.signals(24), vector.is_pending()), (1, false));
        trigger.trigger();
        assert_eq!(vm.signals(24), 1);
        vector.mask().unwrap();
        trigger.trigger();
        vector.clear_pending();
        vector.unmask().unwrap();
        assert_eq!(vm.signals(24), 0, "the cause was gone");
    });
    assert_eq!(count, 0);
}

#[test]
fn a_vector_of_the_kernel_keeps_its_signals_while_it_is_masked() {
    let (vm, router) = all();
    let vector = router.msi_vector("vhost", TriggeredBy::Kernel).unwrap();
    vector.set_message(message(1)).unwrap();
    let kernel = || vector.eventfd().unwrap().write(1).unwrap();
    assert_eq!(vm.irqfds(), []);
    kernel();
    assert!(vector.is_pending() && vector.is_pending(), "the counter is emptied, the bit is not");
    kernel();
    assert_eq!(calls(&vm, || vector.unmask().unwrap()), 1);
    assert_eq!((vm.signals(24), vector.is_pending()), (2, false));
    kernel();
    assert_eq!((vm.signals(24), vector.is_pending()), (1, false));
    assert_eq!(calls(&vm, || vector.mask().unwrap()), 1);
    kernel();
    vector.clear_pending();
    vector.unmask().unwrap();
    assert_eq!(vm.signals(24), 0, "the cause was gone");
}

#[test]
fn a_vector_of_the_kernel_that_cannot_be_attached_stays_pending() {
    let (vm, router) = all();
    let vector = router.msi_vector("vhost", TriggeredBy::Kernel).unwrap();
    vector.eventfd().unwrap().write(1).unwrap();
    vm.fail_call(0, libc::ENOMEM);
    assert!(matches!(vector.unmask(), Err(IrqError::Attach { gsi: 24, .. })));
    assert!(vector.is_pending());
    vector.unmask().unwrap();
    assert_eq!(vm.signals(24), 1);
}

#[test]
fn without_irqfd_every_interrupt_is_an_ioctl() {
    let (vm, router) = with(IrqOptions { irqfd: false, ..IrqOptions::all() });
    let line = router.edge_line(4, "serial").unwrap();
    let vector = router.msi_vector("net", TriggeredBy::UserSpace).unwrap();
    router.batch(|changes| changes.set(&vector, message(7))).unwrap();
    let triggers = [line.trigger(), vector.trigger()];
    let fire = || triggers.iter().for_each(IrqTrigger::trigger);
    fire();
    vector.unmask().unwrap();
    let pulse = [FakeCall::SetLine(4, true), FakeCall::SetLine(4, false)];
    assert_eq!(vm.calls(), [pulse[0], pulse[1], FakeCall::SignalMessage(message(7))]);
    drop((line, vector));
    assert_eq!(calls(&vm, fire), 0, "gone");
    assert!(matches!(router.msi_vector("vhost", TriggeredBy::Kernel), Err(IrqError::NoIrqfd)));
    assert_eq!(owned(&router), []);
}

#[test]
fn masked_vectors_cost_no_ioctl_and_an_unmask_at_most_one() {
    let (vm, router) = all();
    let table = router.msix_table("nvme", 8, TriggeredBy::UserSpace).unwrap();
    let programming = calls(&vm, || {
        for data in 0..100 {
            table.set_message(3, message(data)).unwrap();
        }
        table.set_function_mask(false).unwrap();
        table.trigger(3).unwrap().trigger();
    });
    assert_eq!((programming, table.pending(0)), (0, 1 << 3));
    assert_eq!(calls(&vm, || table.set_mask(3, false).unwrap()), 1);
    assert_eq!((vm.message(24 + 3), vm.signals(24 + 3)), (Some(message(99)), 1));
    let again = calls(&vm, || {
        table.set_mask(3, true).unwrap();
        table.set_message(3, message(99)).unwrap();
        table.set_mask(3, false).unwrap();
    });
    assert_eq!(again, 0, "the message is the same");
    assert_eq!(table.entry(3), Some((message(99), false)));
}

#[test]
fn a_function_mask_over_1000_ready_vectors_is_released_with_one_ioctl() {
    allow_many_descriptors();
    let (vm, router) = all();
    let table = router.msix_table("nvme", 1000, TriggeredBy::UserSpace).unwrap();
    let prepared = calls(&vm, || {
        for (index, data) in (0..1000).zip(0..) {
            table.set_message(index, message(data)).unwrap();
            table.set_mask(index, false).unwrap();
            table.trigger(index).unwrap().trigger();
        }
    });
    assert_eq!((prepared, table.pending(15)), (0, (1 << 40) - 1), "1000 = 15 * 64 + 40");
    assert_eq!(calls(&vm, || table.set_function_mask(false).unwrap()), 1);
    assert!((24..1024).all(|gsi| vm.signals(gsi) == 1) && table.pending(0) == 0);
    table.trigger(999).unwrap().trigger();
    assert_eq!(vm.signals(24 + 999), 1);
    assert_eq!(calls(&vm, || table.set_function_mask(true).unwrap()), 0);
    table.trigger(999).unwrap().trigger();
    assert_eq!((vm.signals(24 + 999), table.pending(15)), (0, 1 << 39));
    // One ioctl for each irqfd, and one for all routes.
    assert_eq!(calls(&vm, || drop(table)), 1001);
}

#[test]
fn a_vector_that_is_masked_itself_stays_so_when_the_function_is_released() {
    let (vm, router) = all();
    let table = router.msix_table("nvme", 2, TriggeredBy::Kernel).unwrap();
    table.set_mask(1, false).unwrap();
    table.set_function_mask(false).unwrap();
    assert_eq!(vm.irqfds(), [25]);
    table.set_mask(1, true).unwrap();
    assert_eq!(vm.irqfds(), []);
    table.set_function_mask(true).unwrap();
    table.set_mask(0, false).unwrap();
    assert_eq!(vm.irqfds(), []);
}

#[test]
fn fault_b5_a_vector_that_does_not_exist_is_refused() {
    let (vm, router) = all();
    let table = router.msix_table("nvme", 2, TriggeredBy::UserSpace).unwrap();
    let error = table.set_mask(2, false).unwrap_err();
    assert_eq!(error.to_string(), "there is no vector 2: the table has 2");
    assert!(matches!(table.set_message(usize::MAX, message(0)), Err(IrqError::NoVector { .. })));
    assert!(table.trigger(2).is_none() && table.entry(2).is_none());
    assert_eq!(table.pending(usize::MAX), 0);
    assert!(vm.routes().is_empty());
}

/// Who owns what.
fn owned(router: &IrqRouter) -> Vec<(u32, &'static str)> {
    let routes = lock(&router.0.routes);
    (0..4096).filter_map(|gsi| Some((gsi, routes.table.owner(gsi)?))).collect()
}

/// What a driver and its devices do, one ioctl or more a step.
#[derive(Default)]
struct Scene {
    edge: Option<IrqLine>,
    level: Option<LevelLine>,
    input: Option<LevelInput>,
    user: Option<MsixTable>,
    kernel: Option<MsixTable>,
}

type Step = fn(&mut Scene, &IrqRouter) -> Result<(), IrqError>;

const STEPS: [Step; 13] = [
    |scene, router| {
        scene.edge = Some(router.edge_line(4, "edge")?);
        Ok(())
    },
    |scene, router| {
        let line = router.level_line(10, "level")?;
        scene.input = Some(line.input());
        scene.level = Some(line);
        Ok(())
    },
    |scene, router| {
        scene.user = Some(router.msix_table("user", 3, TriggeredBy::UserSpace)?);
        Ok(())
    },
    |scene, router| {
        scene.kernel = Some(router.msix_table("kernel", 3, TriggeredBy::Kernel)?);
        Ok(())
    },
    |scene, _| program(&scene.user, 1),
    |scene, _| program(&scene.kernel, 1),
    |scene, _| function_mask(&scene.user, false),
    |scene, _| function_mask(&scene.kernel, false),
    |scene, _| program(&scene.user, 2),
    |scene, _| scene.kernel.as_ref().map_or(Ok(()), |table| table.set_mask(1, true)),
    |scene, _| scene.kernel.as_ref().map_or(Ok(()), |table| table.set_mask(1, false)),
    |scene, _| function_mask(&scene.kernel, true),
    |scene, router| {
        router.batch(|changes| {
            for table in [&scene.user, &scene.kernel].into_iter().flatten() {
                table.vector(2).into_iter().for_each(|vector| changes.set(vector, message(9)));
            }
        })
    },
];

fn program(table: &Option<MsixTable>, data: u32) -> Result<(), IrqError> {
    let Some(table) = table else { return Ok(()) };
    table.set_message(0, message(data))?;
    table.set_message(1, message(data))?;
    table.set_mask(0, false)?;
    table.set_mask(1, false)
}

fn function_mask(table: &Option<MsixTable>, masked: bool) -> Result<(), IrqError> {
    table.as_ref().map_or(Ok(()), |table| table.set_function_mask(masked))
}

/// Plays the scene with the call `nth` failing. Returns how many calls were made.
fn play(options: IrqOptions, nth: usize) -> usize {
    let (vm, router) = with(options);
    vm.fail_call(nth, libc::ENOMEM);
    let tables = |vm: &FakeVm| (vm.irqfds(), vm.routes());
    let mut scene = Scene::default();
    for (number, step) in STEPS.into_iter().enumerate() {
        let before = (tables(&vm), owned(&router), vm.calls().len());
        let failed = step(&mut scene, &router).is_err();
        let failing = (before.2..vm.calls().len()).contains(&nth);
        // Programming is several accesses of a driver: those before the failed one stay.
        let taken_back = !matches!(number, 4 | 5 | 8) || vm.calls().len() == before.2 + 1;
        if failed {
            assert!(failing, "step {number} has failed by itself");
            if taken_back {
                assert_eq!((tables(&vm), owned(&router)), (before.0, before.1), "step {number}, call {nth}");
            }
        }
    }
    drop(scene);
    let failed = vm.calls().get(nth).copied();
    // The kernel detaches an irqfd that it has refused to detach when the descriptor is closed.
    let left: Vec<_> = match failed {
        Some(FakeCall::DetachIrqfd(gsi)) => vm.irqfds().into_iter().filter(|left| *left != gsi).collect(),
        _ => vm.irqfds(),
    };
    assert_eq!((left, owned(&router), Arc::strong_count(&router.0)), (vec![], vec![], 1), "call {nth}");
    router.batch(|_| {}).unwrap();
    assert_eq!(vm.routes(), [], "call {nth}");
    vm.calls().len()
}

#[test]
fn whichever_ioctl_fails_everything_is_as_before() {
    let irqchips = [Irqchip::Kernel, Irqchip::Split];
    for options in irqchips.map(|irqchip| IrqOptions { irqchip, ..IrqOptions::all() }) {
        let calls = play(options, usize::MAX);
        assert!(calls > 20, "{calls}");
        for nth in 0..calls {
            play(options, nth);
        }
    }
}

#[test]
fn triggers_and_drops_at_the_same_time_leave_nothing_behind() {
    let (vm, router) = all();
    for _ in 0..200 {
        let line = router.edge_line(4, "edge").unwrap();
        let table = router.msix_table("user", 2, TriggeredBy::UserSpace).unwrap();
        table.set_mask(0, false).unwrap();
        table.set_function_mask(false).unwrap();
        let triggers = [line.trigger(), table.trigger(0).unwrap(), table.trigger(1).unwrap()];
        std::thread::scope(|scope| {
            for trigger in &triggers {
                scope.spawn(|| (0..50).for_each(|_| trigger.trigger()));
            }
            scope.spawn(|| drop(line));
            scope.spawn(|| drop(table));
        });
    }
    assert_eq!((vm.irqfds(), vm.routes(), owned(&router)), (vec![], vec![], vec![]));
}
