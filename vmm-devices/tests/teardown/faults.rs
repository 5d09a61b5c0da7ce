//! Whichever ioctl fails and whichever descriptor is missing: what was asked for is not there, and nothing else has changed.

use std::error::Error;
use std::sync::Arc;

use vmm_core::VmEvents;
use vmm_core::fake::{FakeCall, FakeVm};
use vmm_core::irq::{
    IrqError, IrqLine, IrqOptions, IrqRouter, Irqchip, LevelInput, LevelLine, MsiMessage, MsiVector,
    MsixTable, TriggeredBy,
};
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_devices::{Doorbell, DoorbellError, Handler, Progress, Worker};

use crate::held::{Held, WORKER, alone, descriptors, with_descriptors};

const EDGE_PIN: u32 = 4;
const LEVEL_PIN: u32 = 10;

type Outcome = Result<(), Box<dyn Error>>;

/// What a device is given.
struct Machine {
    vm: Arc<FakeVm>,
    router: IrqRouter,
    worker: Worker,
}

impl Machine {
    fn new(options: IrqOptions, events: &VmEvents) -> Result<Self, Box<dyn Error>> {
        let vm = Arc::new(FakeVm::default());
        let router = IrqRouter::new(vm.clone(), options);
        Ok(Self { vm, router, worker: Worker::spawn(&WORKER, events.clone())? })
    }

    /// What the kernel has of it, with the descriptors for that.
    fn tables(&self) -> impl PartialEq + std::fmt::Debug {
        (self.vm.doorbells(), self.vm.irqfds(), self.vm.routes(), descriptors())
    }
}

/// A device, and what a driver has made of it so far.
#[derive(Default)]
struct Device {
    doorbells: [Option<Doorbell>; 2],
    handler: Option<Handler>,
    edge: Option<IrqLine>,
    level: Option<LevelLine>,
    input: Option<LevelInput>,
    user: Option<MsixTable>,
    kernel: Option<MsixTable>,
    vector: Option<MsiVector>,
}

impl Device {
    fn ring(&self, index: usize) -> &Doorbell {
        self.doorbells[index].as_ref().unwrap()
    }

    fn user(&self) -> &MsixTable {
        self.user.as_ref().unwrap()
    }

    /// `None` on a host without irqfd.
    fn kernel(&self, act: impl FnOnce(&MsixTable) -> Result<(), IrqError>) -> Outcome {
        Ok(self.kernel.as_ref().map_or(Ok(()), act)?)
    }
}

/// A doorbell that is attached nowhere.
fn doorbell(machine: &Machine) -> Result<Doorbell, DoorbellError> {
    let host: Arc<dyn DoorbellFds> = Arc::clone(&machine.vm) as _;
    Doorbell::new(Some(host), 0x1000)
}

/// A write of `queue`.
fn at(address: u64, queue: u64) -> DoorbellAddress {
    DoorbellAddress { space: DoorbellSpace::Mmio, address, width: 4, datamatch: Some(queue) }
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data }
}

/// Keeps what has been made.
fn keep<T, E: Error + 'static>(place: &mut Option<T>, made: Result<T, E>) -> Outcome {
    *place = Some(made?);
    Ok(())
}

/// The guest programs a pin of an I/O APIC in user space.
fn program_pin(machine: &Machine, options: IrqOptions, masked: bool) -> Outcome {
    if options.irqchip == Irqchip::Split {
        machine.router.ioapic_pins().program(EDGE_PIN, message(4), masked)?;
    }
    Ok(())
}

/// One thing that is asked for: done, or not.
type Step = fn(&mut Device, &Machine, IrqOptions) -> Outcome;

const MAKE: [Step; 10] = [
    |device, machine, _| keep(&mut device.doorbells[0], doorbell(machine)),
    |device, _, _| Ok(device.ring(0).rebind(at(0x1000, 0))?),
    |device, machine, _| keep(&mut device.doorbells[1], doorbell(machine)),
    |device, _, _| Ok(device.ring(1).rebind(at(0x1000, 1))?),
    |device, machine, _| {
        let fd = device.ring(0).eventfd();
        keep(&mut device.handler, machine.worker.add("device", fd, |_| Progress::Done, || ()))
    },
    |device, machine, _| keep(&mut device.edge, machine.router.edge_line(EDGE_PIN, "device")),
    |device, machine, _| {
        keep(&mut device.level, machine.router.level_line(LEVEL_PIN, "device"))?;
        device.input = device.level.as_ref().map(LevelLine::input);
        Ok(())
    },
    |device, machine, _| keep(&mut device.user, machine.router.msix_table("user", 3, TriggeredBy::UserSpace)),
    |device, machine, options| {
        if options.irqfd {
            keep(&mut device.kernel, machine.router.msix_table("kernel", 3, TriggeredBy::Kernel))?;
        }
        Ok(())
    },
    |device, machine, options| {
        let by = if options.irqfd { TriggeredBy::Kernel } else { TriggeredBy::UserSpace };
        keep(&mut device.vector, machine.router.msi_vector("vector", by))
    },
];

const PROGRAM: [Step; 13] = [
    |device, _, _| Ok(device.user().set_message(0, message(0))?),
    |device, _, _| Ok(device.user().set_mask(0, false)?),
    |device, _, _| Ok(device.user().set_function_mask(false)?),
    |device, _, _| Ok(device.user().set_message(0, message(1))?),
    |device, _, _| device.kernel(|table| table.set_mask(0, false)),
    |device, _, _| device.kernel(|table| table.set_mask(1, false)),
    |device, _, _| device.kernel(|table| table.set_function_mask(false)),
    |device, _, _| device.kernel(|table| table.set_mask(1, true)),
    |device, _, _| device.kernel(|table| table.set_function_mask(true)),
    |device, _, _| Ok(device.vector.as_ref().unwrap().set_message(message(2))?),
    |device, _, _| Ok(device.vector.as_ref().unwrap().unmask()?),
    |device, machine, _| {
        let vectors = [device.user().vector(1), device.user().vector(2), device.vector.as_ref()];
        Ok(machine.router.batch(|changes| {
            vectors.into_iter().flatten().for_each(|vector| changes.set(vector, message(3)));
        })?)
    },
    |_, machine, options| program_pin(machine, options, false),
];

const USE: [Step; 4] = [
    |device, _, _| {
        // What fails of these is an interrupt.
        device.edge.as_ref().unwrap().trigger().trigger();
        device.user().trigger(0).unwrap().trigger();
        let input = device.input.as_ref().unwrap();
        input.set(true);
        input.set(false);
        Ok(())
    },
    |device, _, _| Ok(device.ring(0).rebind(at(0x2000, 0))?),
    |device, _, _| {
        device.ring(1).unbind();
        Ok(())
    },
    |_, machine, options| program_pin(machine, options, true),
];

/// Every way in which a host's interrupts differ.
fn hosts() -> [IrqOptions; 4] {
    let all = IrqOptions::all();
    [
        all,
        IrqOptions { irqchip: Irqchip::Split, wide_destinations: true, ..all },
        IrqOptions { resample: false, ..all },
        IrqOptions { irqfd: false, resample: false, ..all },
    ]
}

/// A device's life, with the ioctl `nth` failing; what is refused is asked for again. Returns how many ioctls there were.
fn live(options: IrqOptions, nth: usize, events: &VmEvents) -> usize {
    let before = Held::now();
    let machine = Machine::new(options, events).unwrap();
    machine.vm.fail_call(nth, libc::ENOMEM);
    let mut device = Device::default();
    let mut refusals = 0;
    for (number, step) in MAKE.into_iter().chain(PROGRAM).chain(USE).enumerate() {
        let tables = machine.tables();
        if let Err(error) = step(&mut device, &machine, options) {
            assert_eq!(machine.tables(), tables, "step {number}, ioctl {nth}: {error}");
            refusals += 1;
            step(&mut device, &machine, options).unwrap();
        }
    }
    assert!(refusals <= 1);
    drop(device);
    let Machine { vm, router, worker } = machine;
    // A route that could not be taken back goes with the next change.
    router.batch(|_| {}).unwrap();
    let (mut doorbells, mut irqfds) = (vm.doorbells(), vm.irqfds());
    match vm.calls().get(nth) {
        // Refused by a drop, which can only say so. The kernel lets go of an interrupt when its descriptor is closed, and of
        // a doorbell with the VM.
        Some(FakeCall::DetachIrqfd(left)) => irqfds.retain(|line| line != left),
        Some(FakeCall::DetachDoorbell(left)) => doorbells.retain(|doorbell| doorbell != left),
        _ => {}
    }
    assert_eq!((doorbells, irqfds, vm.routes()), (vec![], vec![], vec![]), "ioctl {nth}");
    let calls = vm.calls().len();
    drop((router, worker));
    assert_eq!(Arc::strong_count(&vm), 1, "ioctl {nth}");
    drop(vm);
    before.ensure_again(format_args!("ioctl {nth}"));
    calls
}

#[test]
fn whichever_ioctl_fails_all_is_as_before_and_asking_again_helps() {
    let _alone = alone();
    let events = VmEvents::new().unwrap();
    for options in hosts() {
        let calls = live(options, usize::MAX, &events);
        assert!(calls > 10, "{calls}");
        for nth in 0..calls {
            live(options, nth, &events);
        }
    }
}

/// A device's life, up to what cannot be had.
fn live_while_it_can(options: IrqOptions, events: &VmEvents) -> Outcome {
    let machine = Machine::new(options, events)?;
    let mut device = Device::default();
    MAKE.into_iter().chain(PROGRAM).chain(USE).try_for_each(|step| step(&mut device, &machine, options))
}

#[test]
fn fault_c1_whichever_descriptor_is_missing_all_is_as_before() {
    let _alone = alone();
    let events = VmEvents::new().unwrap();
    for options in hosts() {
        let missing = (0..100).take_while(|more| {
            let before = Held::now();
            let outcome = with_descriptors(*more, || live_while_it_can(options, &events));
            before.ensure_again(format_args!("{more} descriptors"));
            outcome.is_err()
        });
        let missing = missing.count();
        // The worker has two, each doorbell one, and most hosts one or two for each interrupt.
        assert!((4..100).contains(&missing), "{missing}");
    }
}
