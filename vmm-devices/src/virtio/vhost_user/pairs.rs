//! Several pairs of queues of a network device: how many the back end has, and, by the control queue, how many the driver uses. The monitor
//! has the control queue; the back end sees of it which rings are enabled.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::Error;
use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_VQ;

use super::class::bit;
use super::peer::VhostUser;
use crate::virtio::net::{Carry, ControlQueue, NoQueue};
use crate::virtio::serve::ServeQueue;

/// Rings of a pair.
pub(super) const RINGS: usize = 2;

/// VHOST_USER_GET_QUEUE_NUM, and flags of a message: version 1, and that it is a reply.
const GET_QUEUE_NUM: u32 = 17;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
/// The bits of the flags that say these.
const KIND: u32 = 0b111;

/// Asks how many pairs the back end has; twice as many rings. Not by the vhost crate: that takes the answer for the number of rings, and refuses to
/// speak of those beyond.
pub(super) fn told_rings(mut socket: &UnixStream) -> Result<u64, vhost::Error> {
    let failed = |error: io::Error| vhost::Error::VhostUserProtocol(Error::SocketBroken(error));
    let request = [GET_QUEUE_NUM, VERSION, 0].map(u32::to_ne_bytes);
    socket.write_all(request.as_flattened()).map_err(failed)?;
    let mut header = [[0; 4]; 3];
    socket.read_exact(header.as_flattened_mut()).map_err(failed)?;
    let [request, flags, size] = header.map(u32::from_ne_bytes);
    if (request, flags & KIND, size) != (GET_QUEUE_NUM, VERSION | REPLY, 8) {
        return Err(vhost::Error::VhostUserProtocol(Error::InvalidMessage));
    }
    let mut pairs = [0; 8];
    socket.read_exact(&mut pairs).map_err(failed)?;
    Ok(u64::from_ne_bytes(pairs).saturating_mul(2))
}

/// Who serves a queue that the back end does not, for a driver with `features`: the one behind the others is the control queue (virtio 1.3, section
/// 5.1.2).
pub(super) fn server(user: &Arc<VhostUser>, features: u64, is_behind: bool) -> Box<dyn ServeQueue> {
    if is_behind && features & bit(VIRTIO_NET_F_CTRL_VQ) != 0 {
        Box::new(ControlQueue::new(Commands { user: Arc::clone(user), features }))
    } else {
        Box::new(NoQueue)
    }
}

/// Carries out the commands of a driver.
struct Commands {
    user: Arc<VhostUser>,
    features: u64,
}

impl Carry for Commands {
    fn has(&self, feature: u32) -> bool {
        self.features & bit(feature) != 0
    }

    fn use_pairs(&self, pairs: u16) -> bool {
        let queues = usize::from(pairs).saturating_mul(RINGS);
        (RINGS..=self.user.queues).contains(&queues) && self.user.enable(queues)
    }

    /// It is not offered.
    fn leave(&self, _bits: u64) -> bool {
        false
    }
}
