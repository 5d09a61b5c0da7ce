//! What is left to do for a network device whose frames the kernel moves: the interface is set up for each driver, and missed when it
//! is gone.

use std::sync::Arc;

use super::shared::Shared;
use crate::Wakeup;
use crate::virtio::vhost::Attend;

/// The link behind queues that the kernel serves. What is transmitted over one that is gone the kernel drops.
pub(super) struct KernelLink(pub(super) Arc<Shared>);

impl Attend for KernelLink {
    fn is_there(&mut self) -> bool {
        self.0.set_up();
        self.0.probe()
    }

    fn is_there_again(&mut self) -> bool {
        if self.0.probe() {
            return false;
        }
        self.0.look_again();
        !self.0.is_lost()
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        self.0.link.news().into_iter().collect()
    }
}
