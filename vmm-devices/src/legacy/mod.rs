//! The few devices of a PC that every guest expects.

mod cmos;
mod debug;
mod flash;
mod ioapic;
mod reset;
mod serial;

pub use cmos::Cmos;
pub use debug::{DebugConsole, DebugExit};
pub use flash::Flash;
pub use ioapic::Ioapic;
pub use reset::{I8042, I8042Data, ResetControl};
pub use serial::Serial;
