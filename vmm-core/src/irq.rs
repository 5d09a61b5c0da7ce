//! Interrupts: which GSI belongs to whom, and the values that raise them.

mod line;
mod router;
mod table;

pub use line::{IrqLine, IrqTrigger};
pub use router::{IrqError, IrqRouter};
pub use table::{GsiError, GsiTable};
