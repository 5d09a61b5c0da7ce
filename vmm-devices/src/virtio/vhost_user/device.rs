//! `VhostUserDevice`: the device whose queues a back end serves, as a transport sees it.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_core::VmEvents;

use super::calls::VHOST_USER;
use super::pairs;
use super::peer::VhostUser;
use super::remains::Remains;
use crate::virtio::serve::ServeQueue;
use crate::virtio::vhost::{Attend, Backend, KernelQueues, Servers, VhostMemory};
use crate::virtio::{ActivateError, Activation, Running, VirtioDevice, features, read_config};
use crate::{Wakeup, Worker};

/// The device of one life of the machine, with a thread of its own, which sleeps while the back end is there.
pub struct VhostUserDevice {
    worker: Arc<Worker>,
    user: Arc<VhostUser>,
    backend: Arc<Backend>,
    sizes: Vec<u16>,
}

impl VhostUserDevice {
    /// The device whose queues `user` serves, with the guest memory of `memory`.
    ///
    /// # Errors
    /// The host has no thread for it, or the back end does not take the memory.
    pub fn new(user: &Arc<VhostUser>, memory: &VhostMemory, events: &VmEvents) -> io::Result<Self> {
        let worker = Worker::spawn(&VHOST_USER, events.clone()).map_err(|error| error.source)?;
        Ok(Self {
            worker: Arc::new(worker),
            backend: Backend::with_rings(vec![Arc::clone(user) as _], user.queues, memory)?,
            sizes: vec![user.class.queue_size(); user.class.all_queues(user.queues)],
            user: Arc::clone(user),
        })
    }
}

impl VirtioDevice for VhostUserDevice {
    fn device_type(&self) -> u32 {
        self.user.class.device_type()
    }

    fn features(&self) -> u64 {
        self.user.class.offered(self.backend.features(), self.user.queues)
    }

    fn ring_features(&self) -> u64 {
        self.backend.features() & features::OF_RINGS
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.user.with_config(|config| {
            if self.user.is_connected() {
                return read_config(config, offset, data);
            }
            let mut config = config.to_vec();
            self.user.class.without_back_end(&mut config);
            read_config(&config, offset, data);
        });
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let features = activation.features;
        let served = self.user.class.served(self.backend.queues(), features);
        let backend = (Arc::clone(&self.backend), served);
        let attend = BackEnd(Arc::clone(&self.user));
        let user = Arc::clone(&self.user);
        let others = move |index| pairs::server(&user, features, index == served);
        self.user.begin();
        let queues = KernelQueues::start(&self.worker, activation, backend, Box::new(attend), others)?;
        Ok(Box::new(queues))
    }
}

impl fmt::Debug for VhostUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserDevice").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The back end behind rings. Once lost it is looked for when the next driver begins.
struct BackEnd(Arc<VhostUser>);

impl Attend for BackEnd {
    fn is_there(&mut self) -> bool {
        true
    }

    fn is_there_again(&mut self) -> bool {
        false
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        vec![Arc::clone(&self.0.hang_up) as _]
    }

    fn is_lost(&mut self) -> Option<Box<dyn Error + Send + Sync>> {
        self.0.loss().map(|loss| Box::new(loss) as _)
    }

    /// Nobody, while the back end may still use the rings.
    fn after_loss(&self) -> Option<Servers> {
        if !self.0.has_ended() {
            return None;
        }
        let user = Arc::clone(&self.0);
        Some(Box::new(move |index| Box::new(Remains::new(Arc::clone(&user), index)) as Box<dyn ServeQueue>))
    }
}
