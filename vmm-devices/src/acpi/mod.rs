//! The fixed hardware of a hardware-reduced ACPI platform: sleep and reset registers, and the generic event device.
//!
//! ACPI 6.5, sections 4.8.3.7 "Sleep Control and Status Registers", 4.8.3.6 "Reset Register" and 5.6.9
//! "Interrupt-signaled ACPI events". Where the registers are, the tables that describe them say.

mod events;
mod power;

pub use events::{GenericEvents, POWER_BUTTON};
pub use power::{PowerControl, RESET_VALUE, SOFT_OFF};
