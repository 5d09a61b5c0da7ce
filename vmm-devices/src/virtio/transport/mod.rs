//! Transports: how a driver finds a device and talks to it.
//!
//! * [`Registers`]: status, features and the set-up of queues, without a device behind them;
//! * [`Control`]: the same with a device: it starts, is reset, and loses single queues;
//! * [`VirtioMmio`]: the registers in MMIO space (virtio 1.3, section 4.2).

mod control;
mod mmio;
mod state;
pub mod status;

pub use control::Control;
pub use mmio::{MmioError, MmioSetup, VirtioMmio};
pub use state::{QueueArea, QueueRegisters, Registers, StatusChange};
