//! `IoapicPins`: the pins of the user-space I/O APIC that goes with the split irqchip.
//!
//! A pin is GSI 0–23. What the guest programs into its redirection entry becomes the route of the GSI, so that an
//! edge-triggered line is an irqfd like any other and reaches the guest without this program. A level-triggered line counts
//! in its pin who asserts it; the pin sends when it is asserted, unmasked and not in service, and again at the end of
//! interrupt, which KVM reports for vectors that a pin's route names. One atomic word holds all of that: no lock on
//! assertion nor on the end of interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use super::line::signal;
use super::router::{IrqError, Shared};
use super::table::IOAPIC_PINS;
use super::{IrqRouter, MsiMessage};

/// Bits of a pin's word. The upper half counts who asserts the line, signed as in [`Asserted`](super::asserted::Asserted).
const VECTOR: u32 = 0xff;
const MASKED: u32 = 1 << 8;
const LEVEL: u32 = 1 << 9;
const REMOTE_IRR: u32 = 1 << 10;
const ONE_DEVICE: u32 = 1 << 16;

/// Bit 15 of a message's data: level-triggered (Intel SDM, volume 3, 11.11.2).
const MESSAGE_IS_LEVEL: u32 = 1 << 15;

/// One pin. Masked and edge-triggered after reset.
struct Pin {
    word: AtomicU32,
    /// Sends the message of a level-triggered line.
    line: ArcSwapOption<EventFd>,
}

fn is_asserted(word: u32) -> bool {
    word.cast_signed() >= ONE_DEVICE.cast_signed()
}

/// The word after all that follows by itself: a line that is asserted, unmasked and not in service is sent.
fn settle(word: u32) -> u32 {
    let ready = word & (MASKED | LEVEL | REMOTE_IRR) == LEVEL && is_asserted(word);
    if ready { word | REMOTE_IRR } else { word }
}

impl Pin {
    /// Changes the word, and sends if the change makes the line ready.
    fn update(&self, change: impl Fn(u32) -> u32) {
        let mut old = self.word.load(Ordering::Acquire);
        loop {
            let changed = change(old);
            let new = settle(changed);
            match self.word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if new != changed => {
                    if let Some(line) = &*self.line.load() {
                        signal(line);
                    }
                    return;
                }
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }
}

/// All pins; without effect in a VM whose I/O APIC is the kernel's.
pub(super) struct Pins([Pin; IOAPIC_PINS as usize]);

impl Pins {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Pin { word: AtomicU32::new(MASKED), line: ArcSwapOption::empty() }))
    }

    pub(super) fn connect(&self, pin: u32, line: Arc<EventFd>) {
        self.with(pin, |pin| pin.line.store(Some(line)));
    }

    pub(super) fn disconnect(&self, pin: u32) {
        self.with(pin, |pin| pin.line.store(None));
    }

    pub(super) fn assert(&self, pin: u32) {
        self.with(pin, |pin| pin.update(|word| word.wrapping_add(ONE_DEVICE)));
    }

    pub(super) fn take_back(&self, pin: u32) {
        self.with(pin, |pin| pin.update(|word| word.wrapping_sub(ONE_DEVICE)));
    }

    fn with(&self, pin: u32, act: impl FnOnce(&Pin)) {
        if let Some(pin) = self.get(pin) {
            act(pin);
        }
    }

    fn get(&self, pin: u32) -> Option<&Pin> {
        self.0.get(usize::try_from(pin).ok()?)
    }
}

/// What the I/O APIC in user space does with its pins. Pins that do not exist are masked and stay so.
#[derive(Clone)]
pub struct IoapicPins(Arc<Shared>);

impl IoapicPins {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Programs `pin` to send `message`, unless it is `masked`. At most one ioctl, and none for a pin that was masked and
    /// stays so.
    ///
    /// # Errors
    /// KVM does not take the route; the pin is as it was.
    pub fn program(&self, pin: u32, message: MsiMessage, masked: bool) -> Result<(), IrqError> {
        let Some(state) = self.0.pins.get(pin) else { return Ok(()) };
        if !masked {
            // Before the pin sends along it.
            self.0.change(&[(pin, Some(message))])?;
        } else if state.line.load().is_none() {
            // Pulses of an edge-triggered line are lost while it is masked. A level-triggered line sends nothing then, and
            // needs its route for the end of an interrupt that is in service.
            self.0.change(&[(pin, None)])?;
        }
        let mut bits = message.data & VECTOR;
        bits |= if masked { MASKED } else { 0 };
        bits |= if message.data & MESSAGE_IS_LEVEL != 0 { LEVEL } else { 0 };
        state.update(|word| {
            // An entry that is made edge-triggered forgets what is in service: guests use that in place of an end of
            // interrupt.
            let kept = if bits & LEVEL != 0 { REMOTE_IRR } else { 0 };
            word & (!(VECTOR | MASKED | LEVEL | REMOTE_IRR) | kept) | bits
        });
        Ok(())
    }

    /// Whether the guest has yet to end the interrupt that `pin` has sent ("remote IRR").
    #[must_use]
    pub fn in_service(&self, pin: u32) -> bool {
        self.0.pins.get(pin).is_some_and(|pin| pin.word.load(Ordering::Acquire) & REMOTE_IRR != 0)
    }

    /// Whether the guest has masked `pin`, as it is after a reset.
    #[must_use]
    pub fn is_masked(&self, pin: u32) -> bool {
        self.0.pins.get(pin).is_none_or(|pin| pin.word.load(Ordering::Acquire) & MASKED != 0)
    }

    /// The guest has ended the interrupt with `vector`: every level-triggered pin that has sent it and is still asserted
    /// sends it again.
    pub fn end_of_interrupt(&self, vector: u8) {
        for pin in &self.0.pins.0 {
            let ends = |word: u32| word & (VECTOR | LEVEL) == u32::from(vector) | LEVEL;
            pin.update(|word| if ends(word) { word & !REMOTE_IRR } else { word });
        }
    }
}

impl IrqRouter {
    /// The pins, for the I/O APIC of a VM with the split irqchip.
    #[must_use]
    pub fn ioapic_pins(&self) -> IoapicPins {
        IoapicPins::new(Arc::clone(self.shared()))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fake::{FakeCall, FakeVm};
    use crate::irq::{IrqOptions, Irqchip};

    const VECTOR_OF_TEST: u8 = 0x51;

    fn level(vector: u8) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data: u32::from(vector) | MESSAGE_IS_LEVEL }
    }

    fn edge(vector: u8) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data: u32::from(vector) }
    }

    fn router(vm: &Arc<FakeVm>) -> IrqRouter {
        IrqRouter::new(vm.clone(), IrqOptions { irqchip: Irqchip::Split, ..IrqOptions::all() })
    }

    #[test]
    fn an_edge_line_follows_what_the_guest_programs() {
        let vm = Arc::new(FakeVm::default());
        let router = router(&vm);
        let (line, pins) = (router.edge_line(4, "serial").unwrap(), router.ioapic_pins());
        assert!(pins.is_masked(4) && vm.routes().is_empty());
        pins.program(4, edge(0x31), false).unwrap();
        assert_eq!(vm.message(4), Some(edge(0x31)));
        assert!(!pins.is_masked(4));
        pins.program(4, edge(0x31), true).unwrap();
        assert_eq!(vm.message(4), None);
        let routed = FakeCall::SetRoutes;
        assert_eq!(vm.calls(), [FakeCall::AttachIrqfd(4), routed(1), routed(0)]);
        drop(line);
    }

    #[test]
    fn a_masked_pin_that_stays_masked_costs_no_ioctl() {
        let vm = Arc::new(FakeVm::default());
        let pins = router(&vm).ioapic_pins();
        for vector in 0..100 {
            pins.program(3, edge(vector), true).unwrap();
        }
        assert_eq!(vm.calls(), []);
    }

    #[test]
    fn a_level_line_is_sent_once_until_the_guest_ends_it_and_again_while_it_is_asserted() {
        let vm = Arc::new(FakeVm::default());
        let router = router(&vm);
        let (line, pins) = (router.level_line(10, "pci").unwrap(), router.ioapic_pins());
        let (one, other) = (line.input(), line.input());
        one.set(true);
        assert_eq!(vm.signals(10), 0, "masked");
        pins.program(10, level(VECTOR_OF_TEST), false).unwrap();
        assert_eq!((vm.signals(10), pins.in_service(10)), (1, true));
        other.set(true);
        one.set(false);
        pins.end_of_interrupt(VECTOR_OF_TEST + 1);
        assert_eq!(vm.signals(10), 0, "in service");
        pins.end_of_interrupt(VECTOR_OF_TEST);
        assert_eq!(vm.signals(10), 1, "one still asserts it");
        other.set(false);
        pins.end_of_interrupt(VECTOR_OF_TEST);
        assert_eq!((vm.signals(10), pins.in_service(10)), (0, false));
    }

    #[test]
    fn a_level_line_keeps_its_route_while_it_is_masked_in_service() {
        let vm = Arc::new(FakeVm::default());
        let router = router(&vm);
        let (line, pins) = (router.level_line(10, "pci").unwrap(), router.ioapic_pins());
        let input = line.input();
        input.set(true);
        pins.program(10, level(VECTOR_OF_TEST), false).unwrap();
        pins.program(10, level(VECTOR_OF_TEST), true).unwrap();
        assert!(vm.message(10).is_some() && pins.in_service(10));
        assert_eq!(vm.signals(10), 1);
        pins.end_of_interrupt(VECTOR_OF_TEST);
        assert_eq!((vm.signals(10), pins.in_service(10)), (0, false), "masked");
        pins.program(10, level(VECTOR_OF_TEST), false).unwrap();
        assert_eq!(vm.signals(10), 1);
        pins.program(10, edge(VECTOR_OF_TEST), true).unwrap();
        assert!(!pins.in_service(10), "made edge-triggered");
    }

    #[test]
    fn a_line_that_has_gone_leaves_its_pin_low() {
        let vm = Arc::new(FakeVm::default());
        let router = router(&vm);
        let pins = router.ioapic_pins();
        let line = router.level_line(10, "pci").unwrap();
        let input = line.input();
        input.set(true);
        drop((line, input));
        let line = router.level_line(10, "pci again").unwrap();
        pins.program(10, level(VECTOR_OF_TEST), false).unwrap();
        assert_eq!(vm.signals(10), 0);
        drop(line);
    }

    #[test]
    fn a_route_that_kvm_refuses_leaves_the_pin_as_it_was() {
        let vm = Arc::new(FakeVm::default());
        let pins = router(&vm).ioapic_pins();
        vm.fail_call(0, libc::ENOMEM);
        assert!(matches!(pins.program(5, edge(0x40), false), Err(IrqError::Routes(_))));
        assert!(pins.is_masked(5) && vm.routes().is_empty());
        pins.program(24, edge(0x40), false).unwrap();
        assert!(pins.is_masked(24));
    }

    #[test]
    fn a_renewed_router_has_no_route_and_no_pin_of_the_one_before() {
        let vm = Arc::new(FakeVm::default());
        router(&vm).ioapic_pins().program(5, edge(0x40), false).unwrap();
        assert!(vm.message(5).is_some());
        let options = IrqOptions { irqchip: Irqchip::Split, ..IrqOptions::all() };
        let router = IrqRouter::renewed(vm.clone(), options).unwrap();
        assert!(vm.routes().is_empty() && router.ioapic_pins().is_masked(5));
        vm.fail_call(vm.calls().len(), libc::ENOMEM);
        assert!(matches!(IrqRouter::renewed(vm.clone(), options), Err(IrqError::Routes(_))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Program { vector: u8, level: bool, masked: bool },
        Assert(bool),
        End(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0x30..0x33_u8, any::<bool>(), any::<bool>()).prop_map(|(vector, level, masked)| Step::Program {
                vector,
                level,
                masked
            }),
            any::<bool>().prop_map(Step::Assert),
            (0x30..0x33_u8).prop_map(Step::End),
        ]
    }

    proptest! {
        /// The register model of the 82093AA datasheet for one level-triggered line.
        #[test]
        fn a_pin_does_what_a_redirection_entry_does(steps in prop::collection::vec(step(), 0..60)) {
            let vm = Arc::new(FakeVm::default());
            let router = router(&vm);
            let (line, pins) = (router.level_line(10, "pci").unwrap(), router.ioapic_pins());
            let input = line.input();
            let (mut vector, mut is_level, mut masked) = (0, false, true);
            let (mut asserted, mut in_service) = (false, false);
            for step in steps {
                match step {
                    Step::Program { vector: new, level: triggered, masked: closed } => {
                        let message = if triggered { level(new) } else { edge(new) };
                        pins.program(10, message, closed).unwrap();
                        (vector, is_level, masked) = (new, triggered, closed);
                        in_service &= is_level;
                    }
                    Step::Assert(new) => {
                        input.set(new);
                        asserted = new;
                    }
                    Step::End(ended) => {
                        pins.end_of_interrupt(ended);
                        in_service &= !(is_level && ended == vector);
                    }
                }
                let sent = asserted && is_level && !masked && !in_service;
                in_service |= sent;
                prop_assert_eq!(vm.signals(10), u64::from(sent));
                prop_assert_eq!((pins.in_service(10), pins.is_masked(10)), (in_service, masked));
            }
        }
    }
}
