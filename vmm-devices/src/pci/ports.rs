//! `ConfigurationPorts`: configuration space through the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, section 3.2.2.3.2).
//!
//! The two registers are two devices on the bus, so that it takes an access apart which touches both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_core::Deferred;

use super::root::{PciAddress, PciRoot};
use crate::BusDevice;
use crate::legacy::ResetControl;

/// In the address register: configuration space is what the data register leads to.
const ENABLE: u32 = 1 << 31;
const BUS: u32 = 0xff << 16;
const REGISTER: u32 = 0xfc;
/// The bits that keep what is written.
const WRITABLE: u32 = ENABLE | BUS | 0xff00 | REGISTER;

/// What the two registers share.
pub struct ConfigurationPorts {
    root: Arc<PciRoot>,
    /// The vCPUs take turns by a lock of their own, as on hardware.
    address: AtomicU32,
}

impl ConfigurationPorts {
    /// The ports that lead to the functions of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Arc<Self> {
        Arc::new(Self { root, address: AtomicU32::new(0) })
    }

    /// The function and the register that the address register names; `None`: it names none of this bus.
    fn selected(&self, offset: u64) -> Option<(PciAddress, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        let register = (address & REGISTER) as usize | (offset & 3) as usize;
        let function = PciAddress::from_bits((address >> 8 & 0xff) as u8);
        (address & (ENABLE | BUS) == ENABLE).then_some((function, register))
    }
}

/// `CONFIG_ADDRESS`. Only accesses to all of its four bytes are for it; others pass, and the second byte is the reset
/// control register then.
pub struct ConfigurationAddress {
    ports: Arc<ConfigurationPorts>,
    reset: ResetControl,
}

impl ConfigurationAddress {
    /// First port and number of ports.
    pub const PORTS: (u64, u64) = ResetControl::PORTS;

    /// The register, and `reset` beneath it.
    #[must_use]
    pub fn new(ports: Arc<ConfigurationPorts>, reset: ResetControl) -> Self {
        Self { ports, reset }
    }
}

impl BusDevice for ConfigurationAddress {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            (0, Ok(register)) => *register = self.ports.address.load(Ordering::Relaxed).to_le_bytes(),
            _ => self.reset.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.try_into()) {
            (0, Ok(register)) => {
                self.ports.address.store(u32::from_le_bytes(register) & WRITABLE, Ordering::Relaxed);
            }
            _ => self.reset.write(offset, data),
        }
    }
}

/// `CONFIG_DATA`: the register that the other one names, or any part of it.
pub struct ConfigurationData(Arc<ConfigurationPorts>);

impl ConfigurationData {
    /// First port and number of ports.
    pub const PORTS: (u64, u64) = (0xcfc, 4);

    /// The register.
    #[must_use]
    pub fn new(ports: Arc<ConfigurationPorts>) -> Self {
        Self(ports)
    }
}

impl BusDevice for ConfigurationData {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, register)) = self.0.selected(offset) {
            self.0.root.read(function, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Nobody can wait for it here; buses call the other one.
        drop(self.write_deferred(offset, data));
    }

    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        let (function, register) = self.0.selected(offset)?;
        self.0.root.write(function, register, data)
    }
}
