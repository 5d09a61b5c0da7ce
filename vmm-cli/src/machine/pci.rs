//! `Pci`: the PCI bus of a machine, its addresses, and the thread that moves what is on it.

use std::sync::Arc;

use vmm_core::VmEvents;
use vmm_devices::pci::{BarWindow, Function, Host, PciAddress, PciRoot};
use vmm_devices::{Bus, Reconfigure};

use super::layout::PCI_BARS;
use crate::outcome::Failure;

/// The bus. Dropped, its functions move no more; they go with the exits.
pub(super) struct Pci {
    root: Arc<PciRoot>,
    host: Host,
    _reconfigure: Reconfigure,
}

impl Pci {
    /// A bus with its host bridge, whose BARs appear on `mmio`.
    pub(super) fn new(mmio: &Arc<Bus>, events: &VmEvents) -> Result<Self, Failure> {
        let reconfigure = Reconfigure::new(events.clone());
        // Has the thread started here: started by a vCPU it would have that one's affinity and scheduler.
        reconfigure.poster().post(|| ()).map_err(Failure::host_cannot)?;
        let (start, size) = PCI_BARS;
        let window = BarWindow::new(start.into(), size.into()).map_err(Failure::internal)?;
        let host = Host { bus: Arc::downgrade(mmio), poster: reconfigure.poster(), window: Arc::new(window) };
        let root = PciRoot::new(&host).map_err(Failure::internal)?;
        Ok(Self { root: Arc::new(root), host, _reconfigure: reconfigure })
    }

    /// Which functions there are.
    pub(super) fn root(&self) -> &Arc<PciRoot> {
        &self.root
    }

    /// What functions get of the machine.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Puts a function on the bus; returns where.
    pub(super) fn insert(&self, function: Function) -> Result<PciAddress, Failure> {
        self.root.insert(function).map_err(Failure::bad_input)
    }
}
