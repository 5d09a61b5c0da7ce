//! `VhostFd`: one descriptor of vhost, as a device has it.

use std::io;
use std::sync::Arc;

use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::queue::QueueState;

/// One ring, as the kernel is to serve it.
#[derive(Clone)]
pub struct VhostRing {
    /// Which of the descriptor's it is.
    pub index: usize,
    /// Where it is in guest memory, each area in one region, and how far it has come.
    pub queue: QueueState,
    /// Signalled by the driver.
    pub kick: Arc<EventFd>,
    /// Signalled by the kernel for the driver.
    pub call: Arc<EventFd>,
    /// Signalled by the kernel when it finds the ring broken.
    pub error: Arc<EventFd>,
}

impl VhostRing {
    /// Has the kernel look at it.
    pub(super) fn kick(&self) {
        // Its counter cannot be full.
        let _ = self.kick.write(1);
    }

    /// Says that it is broken, as the kernel would.
    pub(super) fn break_down(&self) {
        // Its counter cannot be full.
        let _ = self.error.write(1);
    }
}

/// Serves rings without a thread of this program. Methods are called from any thread, one at a time; they take as long as a batch of
/// what is under way, at most.
pub trait VhostFd: Send + Sync {
    /// The feature bits that it has, of rings and of its type of device.
    fn features(&self) -> u64;

    /// What it accesses of guest RAM from now on: when this returns, nothing else. Without any RAM nothing runs.
    ///
    /// # Errors
    /// The kernel's; it goes on with what it had.
    fn set_memory(&self, memory: &GuestMemory) -> io::Result<()>;

    /// Whether its rings have to be stopped before it goes over to this memory, wherever they are.
    fn has_to_rest(&self, memory: &GuestMemory) -> bool {
        let _ = memory;
        false
    }

    /// A driver begins: looks for who serves it, where that can be lost, with `memory` as what it is to know. Returns whether it is another
    /// one than before.
    ///
    /// # Errors
    /// There is none.
    fn find(&self, memory: &GuestMemory) -> io::Result<bool> {
        let _ = memory;
        Ok(false)
    }

    /// Serves `rings`, which are in `memory`, with these features. None is served so far.
    ///
    /// # Errors
    /// The kernel's; some may be served then.
    fn start(&self, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()>;

    /// Serves none of `rings` any more: when this returns, guest memory is not touched for them. Returns the available index from which each
    /// goes on.
    ///
    /// # Errors
    /// The kernel's.
    fn stop(&self, rings: &[VhostRing]) -> io::Result<Vec<u16>>;

    /// Signals another eventfd for the driver of a ring, also while it is served.
    ///
    /// # Errors
    /// The kernel's.
    fn set_call(&self, ring: usize, call: &EventFd) -> io::Result<()>;
}
