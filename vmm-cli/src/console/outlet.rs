//! `Outlet`: the side of a console that a port of the guest has, in each life of the machine.

use std::io::Write;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use crate::sink::Pen;

/// Where the output of a port goes, and who feeds it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(super) pen: Pen,
    /// Signalled when the guest's FIFO is empty.
    pub(super) drained: Arc<EventFd>,
}

/// Those of all consoles.
#[derive(Debug)]
pub(crate) struct Outlets {
    pub(crate) serial: Outlet,
    pub(crate) virtio: Option<Outlet>,
}

impl Outlet {
    /// A sink for a device, which never blocks.
    pub(crate) fn output(&self) -> Box<dyn Write + Send> {
        Box::new(self.pen.clone())
    }

    /// To be called by the port when its input FIFO is empty.
    pub(crate) fn on_drained(&self) -> Box<dyn Fn() + Send + Sync> {
        let drained = Arc::clone(&self.drained);
        // Fails when the counter is full: then the event loop has been told often enough.
        Box::new(move || {
            let _ = drained.write(1);
        })
    }
}
