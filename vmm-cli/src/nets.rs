//! The network devices of a machine: their interfaces, opened before it is built and kept through its restarts.

use std::io;
use std::sync::Arc;

use anyhow::Context;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_core::VmEvents;
use vmm_core::irq::TriggeredBy;
use vmm_devices::rate_limiter::Limits;
use vmm_devices::virtio::net::{Link, Net, NetOptions, Tap, TapError, Throttle};
use vmm_devices::virtio::vhost::{Backend, VhostError, VhostFd, VhostMemory, VhostNet};

use crate::config::{DiskId, MacAddress, NetConfig, NetError, Rate, VmConfig};
use crate::outcome::Failure;

/// One network device: what is behind it, and what it has in each life of the machine.
pub(crate) struct Nic {
    id: DiskId,
    tap: Arc<Tap>,
    /// Where the kernel moves the frames, a descriptor for each pair of queues.
    vhost: Option<Vec<Arc<dyn VhostFd>>>,
    options: NetOptions,
}

/// Opens the interfaces of all network devices of `config`, in the order in which a guest finds them.
///
/// # Errors
/// The first one that cannot be had, by whose it is to mend.
pub(crate) fn open(config: &VmConfig) -> Result<Vec<Nic>, Failure> {
    // The others have a back end of their own.
    let with_interface = config.net.iter().enumerate().filter(|(_, net)| net.vhost_user.is_none());
    with_interface.map(|(place, net)| Nic::open(net, net.id(place))).collect()
}

impl Nic {
    fn open(config: &NetConfig, id: DiskId) -> Result<Self, Failure> {
        let options = config.tap_options().map_err(|error: NetError| Failure::bad_input(error))?;
        let tap = Tap::open(&options).map_err(|error| failure(&id, error))?;
        let vhost = config.vhost.then(|| open_vhost(&tap)).transpose();
        let vhost = vhost.with_context(|| context(&id)).map_err(Failure::host_cannot)?;
        let mac = mac_address(config)?;
        tracing::info!(device = id.as_str(), interface = tap.name(), %mac, pairs = tap.pairs(), vhost = config.vhost, "a network device");
        let options = NetOptions {
            name: id.to_string(),
            mac: mac.bytes(),
            mtu: Some(config.mtu.unwrap_or(tap.mtu())),
            receive: throttle(config.receive_bandwidth, config.receive_frames)?,
            transmit: throttle(config.transmit_bandwidth, config.transmit_frames)?,
        };
        Ok(Self { id, tap: Arc::new(tap), vhost, options })
    }

    /// What it is called.
    pub(crate) fn id(&self) -> &DiskId {
        &self.id
    }

    /// Who triggers its interrupts.
    pub(crate) fn triggered_by(&self) -> TriggeredBy {
        if self.vhost.is_some() { TriggeredBy::Kernel } else { TriggeredBy::UserSpace }
    }

    /// The device of one life of the machine, whose guest memory is that of `memory`.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents, memory: &VhostMemory) -> Result<Net, Failure> {
        let (link, options) = (Arc::clone(&self.tap) as _, self.options.clone());
        let made = match &self.vhost {
            None => Net::new(link, options, events),
            Some(fds) => Backend::new(fds.clone(), memory)
                .and_then(|backend| Net::with_backend(backend, link, options, events)),
        };
        made.with_context(|| context(&self.id)).map_err(Failure::host_cannot)
    }
}

/// One descriptor for each queue of `tap`.
fn open_vhost(tap: &Tap) -> Result<Vec<Arc<dyn VhostFd>>, VhostError> {
    let open = |queue: &Arc<_>| VhostNet::open(&**queue).map(|fd| Arc::new(fd) as _);
    tap.queues().iter().map(open).collect()
}

fn context(id: &DiskId) -> String {
    format!("the network device {id} (--net)")
}

/// By whose it is to mend.
fn failure(id: &DiskId, error: TapError) -> Failure {
    let is_of_host = error.is_of_host();
    let error = anyhow::Error::new(error).context(context(id));
    if is_of_host { Failure::host_cannot(error) } else { Failure::bad_input(error) }
}

/// The address of a network device, made up if it is not configured.
///
/// # Errors
/// The host has no random bytes.
pub(crate) fn mac_address(config: &NetConfig) -> Result<MacAddress, Failure> {
    match config.mac {
        Some(mac) => Ok(mac),
        None => made_up().context("random bytes").map_err(Failure::host_cannot),
    }
}

fn made_up() -> io::Result<MacAddress> {
    let mut bytes = [0; 5];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(MacAddress::made_up(bytes))
}

fn throttle(bandwidth: Option<Rate>, frames: Option<Rate>) -> Result<Arc<Throttle>, Failure> {
    let limit = |rate: Option<Rate>| rate.map(|rate| rate.limit()).transpose().map_err(Failure::internal);
    Ok(Throttle::new(Limits { bytes: limit(bandwidth)?, operations: limit(frames)? }))
}
