//! `PowerButton`: how the one who runs the machine asks its guest to shut down.

use std::sync::Arc;

use vmm_core::irq::IrqRouter;
use vmm_devices::acpi::{GenericEvents, POWER_BUTTON};

/// The power button of a machine.
pub struct PowerButton {
    events: Arc<GenericEvents>,
    router: IrqRouter,
    /// The I/O APIC pin of `events`.
    pin: u32,
}

impl PowerButton {
    pub(super) fn new(events: Arc<GenericEvents>, router: IrqRouter, pin: u32) -> Self {
        Self { events, router, pin }
    }

    /// Presses the button. Returns whether anybody listens: a guest without ACPI, or one that has not come that far,
    /// has the interrupt masked and will not answer.
    pub fn press(&self) -> bool {
        let masked = self.router.pin_masked(self.pin).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell whether the guest listens to its power button");
            false
        });
        self.events.raise(POWER_BUTTON);
        !masked
    }
}
