//! Interrupts: which GSI belongs to whom and leads where, and the values that raise them.
//!
//! * [`IrqRouter`]: gives out lines and vectors and changes routes, the only thing here that takes a lock;
//! * [`IrqTrigger`]: what a device has of an edge-triggered line or of a vector;
//! * [`LevelLine`], [`LevelInput`]: a level-triggered line and a device's share in it;
//! * [`MsiVector`], [`MsixTable`]: message-signalled interrupts with mask and pending bits;
//! * [`IoapicPins`]: the pins of an I/O APIC in user space;
//! * [`GsiTable`]: the bookkeeping, without system calls.

mod asserted;
mod level;
mod line;
mod mask;
mod message;
mod msi;
mod msix;
mod pins;
mod router;
mod table;

pub use level::{LevelInput, LevelLine, Resample};
pub use line::{IrqLine, IrqTrigger};
pub use message::MsiMessage;
pub use msi::{MsiVector, TriggeredBy};
pub use msix::MsixTable;
pub use pins::IoapicPins;
pub use router::{IrqError, IrqOptions, IrqRouter, RouteChanges};
pub use table::{GsiError, GsiTable, IOAPIC_PINS, Irqchip};
