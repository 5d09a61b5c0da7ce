//! The fixed hardware of a hardware-reduced ACPI platform: sleep and reset registers, the generic event device, and the slots
//! of the PCI bus whose devices come and go.
//!
//! ACPI 6.5, sections 4.8.3.7 "Sleep Control and Status Registers", 4.8.3.6 "Reset Register" and 5.6.9
//! "Interrupt-signaled ACPI events". Where the registers are, the tables that describe them say.

mod events;
mod hotplug;
mod power;

pub use events::{GenericEvents, PCI_HOTPLUG, POWER_BUTTON};
pub use hotplug::HotplugSlots;
pub use power::{PowerControl, RESET_VALUE, SOFT_OFF};
