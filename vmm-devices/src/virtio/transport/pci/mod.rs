//! `VirtioPci`: a device that is a PCI function (virtio 1.3, section 4.1), modern only.
//!
//! Everything is in BAR 0, whose parts are those of [`layout`]. A notification address for each queue is an ioeventfd, of any
//! width if KVM has those, while the BAR is decoded, and moves with it. Interrupts are MSI-X: a vector for the configuration and one for each
//! queue, as the driver assigns them; there is no interrupt pin, and who turns MSI-X off reads the ISR status.
//!
//! A reset takes as long as the device needs to stop; the status stays what it was until then (section 4.1.4.3.1), so no
//! access waits for it.
//!
//! While the function is no bus master no device runs behind it and no message is sent. A driver that takes that away from a
//! device that runs has to reset it.

mod capabilities;
mod common;
mod interrupts;
pub mod layout;

use std::sync::Arc;

use vmm_core::irq::MsixTable;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Deferred, LogLimit};
use vmm_memory::MemoryReader;

use self::common::Common;
use self::interrupts::PciInterrupts;
use super::control::Control;
use crate::pci::{
    AccessWindow, Bar, BarError, BarWidth, CapabilityError, Configuration, Function, Host, Identity, Msix,
    PciDevice, WindowError,
};
use crate::virtio::VirtioDevice;
use crate::{Doorbell, DoorbellError};

/// Of all virtio devices, and of the subsystem.
const VENDOR: u16 = 0x1af4;
/// The device id of device type 0 (section 4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
/// A device that is not transitional has at least 1 (section 4.1.2.1).
const REVISION: u8 = 1;

/// What a device gets of its machine.
pub struct PciSetup {
    /// Its name, for messages.
    pub name: &'static str,
    /// The bus that it is for.
    pub host: Host,
    /// Guest RAM.
    pub memory: MemoryReader,
    /// As many vectors as [`vectors`] says, or fewer: drivers then share them.
    pub vectors: MsixTable,
    /// KVM's ioeventfds, where there are some.
    pub doorbells: Option<Arc<dyn DoorbellFds>>,
}

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VirtioPciError {
    /// Its type has no PCI device id.
    #[error("virtio device type {0} has no PCI device id")]
    Type(u32),
    /// More queues or vectors than there is room for.
    #[error(
        "{queues} queues with {vectors} vectors: there is room for {} and {}",
        layout::MAX_QUEUES,
        layout::MAX_VECTORS
    )]
    TooMany {
        /// Its queues.
        queues: usize,
        /// Its vectors.
        vectors: usize,
    },
    /// A doorbell cannot be made.
    #[error(transparent)]
    Doorbell(#[from] DoorbellError),
    /// There is no place for its BAR.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// Its BAR is none.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// Its capabilities do not fit.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
}

/// How many vectors `device` can make use of: one for each queue, and one for the configuration.
#[must_use]
pub fn vectors(device: &dyn VirtioDevice) -> usize {
    device.queue_sizes().len().saturating_add(1).min(layout::MAX_VECTORS)
}

/// What is behind the function.
struct VirtioPci {
    name: &'static str,
    control: Control,
    interrupts: Arc<PciInterrupts>,
    refusals: LogLimit,
}

/// Makes the function behind which `device` is. Dropped, the device stops, and its doorbells are gone.
///
/// # Errors
/// See [`VirtioPciError`].
pub fn function(device: Arc<dyn VirtioDevice>, setup: PciSetup) -> Result<Function, VirtioPciError> {
    let PciSetup { name, host, memory, vectors, doorbells: vm } = setup;
    let queues = device.queue_sizes().len();
    if queues > layout::MAX_QUEUES || vectors.len() > layout::MAX_VECTORS {
        return Err(VirtioPciError::TooMany { queues, vectors: vectors.len() });
    }
    let doorbells = (0..queues).map(|_| Doorbell::new(vm.clone(), layout::NOTIFICATIONS.start));
    let doorbells = doorbells.collect::<Result<_, _>>()?;
    let interrupts = Arc::new(PciInterrupts::new(Msix::new(vectors), queues));
    let (configuration, access) = configuration(&*device, &interrupts)?;
    let control = Control::new(name, device, memory, doorbells, Arc::clone(&interrupts) as _);
    // As after a reset; nothing runs that this could stop.
    drop(control.set_bus_master(false));
    let device = Arc::new(VirtioPci { name, control, interrupts, refusals: LogLimit::default() });
    Ok(Function::new(name, configuration, device, Some(access), host)?)
}

/// The registers of the function, and the window through which its BAR is reached before it has an address.
fn configuration(
    device: &dyn VirtioDevice,
    interrupts: &PciInterrupts,
) -> Result<(Configuration, AccessWindow), VirtioPciError> {
    let device_type = device.device_type();
    let id = u16::try_from(device_type).ok().filter(|id| *id < 0x40);
    let device = FIRST_DEVICE.saturating_add(id.ok_or(VirtioPciError::Type(device_type))?);
    let mut configuration = Configuration::new(Identity {
        vendor: VENDOR,
        device,
        subsystem_vendor: VENDOR,
        subsystem: device,
        class: class(device_type),
        revision: REVISION,
    });
    configuration.add_bar(usize::from(layout::BAR), Bar::registers(layout::LENGTH, BarWidth::Bits32)?)?;
    let (body, writable) = interrupts.msix().capability(
        layout::BAR,
        offset(layout::MSIX_TABLE.start),
        offset(layout::MSIX_PENDING.start),
    );
    configuration.add_capability(Msix::CAPABILITY, &body, &writable)?;
    let access = capabilities::add(&mut configuration)?;
    Ok((configuration, access))
}

/// An offset in the BAR as capabilities have it.
fn offset(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// The PCI class of a device type (PCI Code and ID Assignment Specification 1.11).
fn class(device_type: u32) -> u32 {
    match device_type {
        1 => 0x02_0000,
        2 | 8 | 26 => 0x01_8000,
        3 => 0x07_8000,
        // None fits.
        _ => 0xff_0000,
    }
}

/// Has KVM take the notifications at `address`: of any width, or where it cannot tell that (without
/// `KVM_CAP_IOEVENTFD_ANY_LENGTH` a width of 0 is `EINVAL`), of the 16 bits that drivers write (section 4.1.5.2).
fn bind(doorbell: &Doorbell, address: u64) -> Result<(), DoorbellError> {
    let of = |width| DoorbellAddress { space: DoorbellSpace::Mmio, address, width, datamatch: None };
    match doorbell.rebind(of(0)) {
        Err(DoorbellError::Attach { source, .. }) if source.source.raw_os_error() == Some(libc::EINVAL) => {
            doorbell.rebind(of(2))
        }
        bound => bound,
    }
}

impl VirtioPci {
    fn common(&self) -> Common<'_> {
        Common::new(&self.control, &self.interrupts)
    }
}

impl PciDevice for VirtioPci {
    fn read_bar(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((part, offset)) = layout::part(offset, data.len()) else { return };
        match part {
            layout::Part::Common => self.common().read(offset, data),
            layout::Part::Isr => {
                if let Some(byte) = data.first_mut().filter(|_| offset == 0) {
                    *byte = self.interrupts.take_status();
                }
            }
            layout::Part::Device => self.control.read_config(offset, data),
            layout::Part::MsixTable => self.interrupts.msix().read_table(offset, data),
            layout::Part::MsixPending => self.interrupts.msix().read_pending(offset, data),
            layout::Part::Notifications => {}
        }
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) -> Option<Deferred> {
        let (part, offset) = layout::part(offset, data.len())?;
        match part {
            layout::Part::Common => self.common().write(offset, data),
            layout::Part::Device => self.control.write_config(offset, data),
            layout::Part::MsixTable => {
                if let Err(error) = self.interrupts.msix().write_table(offset, data) {
                    self.control.set_needs_reset(&error);
                }
            }
            // Reached only without ioeventfd.
            layout::Part::Notifications => self.control.notify(layout::queue_notified(offset)),
            layout::Part::Isr | layout::Part::MsixPending => {}
        }
        None
    }

    fn bar_moved(&self, _bar: usize, address: Option<u64>) {
        for (index, doorbell) in self.control.doorbells().iter().enumerate() {
            let Some(address) = address.map(|base| base.saturating_add(layout::notification(index))) else {
                doorbell.unbind();
                continue;
            };
            if let Err(error) = bind(doorbell, address) {
                // What is at the old address may be another's; the handler of the new one rings.
                doorbell.unbind();
                if let Some(left_out) = self.refusals.permit() {
                    let device = self.name;
                    tracing::warn!(device, queue = index, %error, left_out, "notifications of a queue take exits");
                }
            }
        }
    }

    fn set_bus_master(&self, on: bool) -> Option<Deferred> {
        self.control.set_bus_master(on)
    }

    fn msix(&self) -> Option<&Msix> {
        Some(self.interrupts.msix())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
