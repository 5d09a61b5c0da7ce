//! What the tests of the bus share: a machine with nothing but a bus and a thread for changes, and a device that notes what
//! reaches it.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use vmm_core::{Deferred, VmEvents};

use super::{Bar, BarWidth, BarWindow, Configuration, Function, Host, Identity, PciDevice};
use crate::{Bus, Reconfigure};

pub(crate) const WINDOW: u64 = 0xc000_0000;
pub(crate) const WINDOW_SIZE: u64 = 0x40_0000;

pub(crate) const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x11,
    subsystem_vendor: 0,
    subsystem: 0,
    class: 0xff_0000,
    revision: 0,
};

/// A bus and who changes it.
pub(crate) struct TestHost {
    pub(crate) bus: Arc<Bus>,
    pub(crate) reconfigure: Reconfigure,
    pub(crate) window: Arc<BarWindow>,
}

impl TestHost {
    pub(crate) fn new() -> Self {
        Self {
            bus: Arc::new(Bus::new("mmio")),
            reconfigure: Reconfigure::new(VmEvents::new().unwrap()),
            window: Arc::new(BarWindow::new(WINDOW, WINDOW_SIZE).unwrap()),
        }
    }

    pub(crate) fn host(&self) -> Host {
        Host {
            bus: Arc::downgrade(&self.bus),
            poster: self.reconfigure.poster(),
            window: Arc::clone(&self.window),
        }
    }

    /// What is read at `address`: the id of the device that answers.
    pub(crate) fn who(&self, address: u64) -> u8 {
        let mut data = [0];
        self.bus.read(address, 1, &mut data);
        data[0]
    }
}

/// Waits for the end of an access.
pub(crate) fn finish(access: Option<Deferred>) {
    if let Some(access) = access {
        let (sender, ended) = channel();
        access.on_complete(move || sender.send(()).unwrap());
        ended.recv().unwrap();
    }
}

/// A device whose BARs read as `id`.
#[derive(Default)]
pub(crate) struct Named {
    pub(crate) id: u8,
    pub(crate) moves: Mutex<Vec<(usize, Option<u64>)>>,
    pub(crate) writes: Mutex<Vec<(usize, u64, Vec<u8>)>>,
    /// Asked, when BAR 0 comes or goes, who answers at this address: into `seen`.
    pub(crate) watch: Mutex<Option<(Arc<Bus>, u64)>>,
    pub(crate) seen: Mutex<Vec<u8>>,
}

impl PciDevice for Named {
    fn read_bar(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(self.id);
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Option<Deferred> {
        self.writes.lock().unwrap().push((bar, offset, data.to_vec()));
        None
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        self.moves.lock().unwrap().push((bar, address));
        if let Some((bus, address)) = &*self.watch.lock().unwrap() {
            let mut data = [0];
            bus.read(*address, 1, &mut data);
            self.seen.lock().unwrap().push(data[0]);
        }
    }
}

/// A function with BAR 0 of 4 KiB and 32 bits and BAR 2 of 64 KiB and 64 bits.
pub(crate) fn named(host: &TestHost, id: u8) -> (Arc<Named>, Function) {
    let device = Arc::new(Named { id, ..Named::default() });
    let mut configuration = Configuration::new(IDENTITY);
    configuration.add_bar(0, Bar::registers(0x1000, BarWidth::Bits32).unwrap()).unwrap();
    configuration.add_bar(2, Bar::memory(0x1_0000, BarWidth::Bits64).unwrap()).unwrap();
    let function = Function::new("named", configuration, Arc::clone(&device) as _, None, host.host());
    (device, function.unwrap())
}
