//! PCI: a root bus, the functions on it, and what their drivers see of them (PCI Local Bus 3.0; PCI Express 5.0 for the
//! memory-mapped way in).
//!
//! * [`Configuration`], [`Bar`]: configuration space and base address registers as plain values;
//! * [`Function`]: one function: carries out what its registers say;
//! * [`PciDevice`]: what is behind a function;
//! * [`Msix`]: the capability for interrupts, with table and pending bits;
//! * [`PciRoot`]: which functions there are; [`Ecam`] and [`ConfigurationPorts`]: the two ways to them;
//! * [`BarWindow`]: the addresses that BARs may have.
//!
//! Functions are conventional: 256 bytes of configuration space, no I/O BARs, no interrupt pins. All have memory BARs
//! and MSI-X, which is what drivers of virtio and of VFIO devices use.

mod access;
mod bar;
mod configuration;
mod ecam;
mod function;
mod msix;
mod ports;
mod root;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod testing;
mod window;

pub use access::AccessWindow;
pub use bar::{BARS, Bar, BarError, BarWidth};
pub use configuration::{CapabilityError, Configuration, Identity};
pub use ecam::Ecam;
pub use function::{Function, Host, PciDevice};
pub use msix::Msix;
pub use ports::{ConfigurationAddress, ConfigurationData, ConfigurationPorts};
pub use root::{PciAddress, PciRoot, RootError};
pub use window::{BarWindow, WindowError};

/// The identity of the bridge between the processors and the bus: a generic one, which no driver takes for another.
pub const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem_vendor: 0,
    subsystem: 0,
    class: 0x06_0000,
    revision: 0,
};
