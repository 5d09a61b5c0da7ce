//! The network devices of a machine: their interfaces, opened before it is built, or when a device is added to it, and kept through
//! its restarts.

use std::io;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_core::VmEvents;
use vmm_core::irq::TriggeredBy;
use vmm_devices::rate_limiter::{LimitError, Limits};
use vmm_devices::virtio::net::{Link, Net, NetOptions, StreamError, StreamLink, Tap, TapError, Throttle};
use vmm_devices::virtio::vhost::{Backend, VhostError, VhostFd, VhostMemory, VhostNet};

use crate::config::{DeviceId, MacAddress, NetConfig, NetError, Rate, VmConfig};
use crate::kept::{Kept, Named};
use crate::outcome::Failure;

/// One network device: what is behind it, and what it has in each life of the machine.
pub(crate) struct Nic {
    id: DeviceId,
    card: Card,
    link: Arc<dyn Link>,
    /// Where the kernel moves the frames, a descriptor for each pair of queues.
    vhost: Option<Vec<Arc<dyn VhostFd>>>,
    options: NetOptions,
}

/// What no other network device of a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    /// The name of the interface, or the path of the socket in its place.
    pub(crate) interface: String,
    /// The guest's address.
    pub(crate) mac: MacAddress,
}

/// The network devices of all lives of a machine.
pub(crate) type Nets = Kept<Nic>;

impl Nets {
    /// Opens the interfaces of all network devices of `config`.
    ///
    /// # Errors
    /// The first one that cannot be had, by whose it is to mend.
    pub(crate) fn open(config: &VmConfig) -> Result<Self, Failure> {
        let open = |(place, net): (usize, &NetConfig)| {
            let id = net.id(place);
            self::open(net, id.clone()).map_err(|error| error.failure(&id))
        };
        // The others have a back end of their own.
        let with_interface = config.net.iter().enumerate().filter(|(_, net)| net.vhost_user.is_none());
        let nics: Result<Vec<_>, Failure> = with_interface.map(open).collect();
        Ok(Self::new(nics?))
    }
}

/// Opens the interface of one network device, and what the kernel has for it. While a machine runs this is the one place that opens
/// a path for it.
///
/// # Errors
/// It cannot be had.
pub(crate) fn open(config: &NetConfig, id: DeviceId) -> Result<Nic, OpenError> {
    let receive = throttle(config.receive_bandwidth, config.receive_frames)?;
    let transmit = throttle(config.transmit_bandwidth, config.transmit_frames)?;
    let Behind { interface, link, mtu, vhost } = match &config.passt {
        Some(path) => {
            let link = Arc::new(StreamLink::open(path)?);
            Behind { interface: path.display().to_string(), link, mtu: config.mtu, vhost: None }
        }
        None => open_tap(config)?,
    };
    let mac = mac_address(config).map_err(OpenError::Random)?;
    let pairs = link.queues().len();
    tracing::info!(device = id.as_str(), interface, %mac, pairs, vhost = config.vhost, "a network device");
    let options = NetOptions { name: id.to_string(), mac: mac.bytes(), mtu, receive, transmit };
    Ok(Nic { id, card: Card { interface, mac }, link, vhost, options })
}

/// What is behind a network device.
struct Behind {
    interface: String,
    link: Arc<dyn Link>,
    mtu: Option<u16>,
    vhost: Option<Vec<Arc<dyn VhostFd>>>,
}

fn open_tap(config: &NetConfig) -> Result<Behind, OpenError> {
    let tap = Tap::open(&config.tap_options()?)?;
    let vhost = config.vhost.then(|| open_vhost(&tap)).transpose()?;
    let mtu = config.mtu.or(tap.mtu());
    Ok(Behind { interface: tap.name().to_owned(), mtu, vhost, link: Arc::new(tap) })
}

impl Nic {
    /// What no other one has.
    pub(crate) fn card(&self) -> &Card {
        &self.card
    }

    /// Who triggers its interrupts.
    pub(crate) fn triggered_by(&self) -> TriggeredBy {
        if self.has_limits() { TriggeredBy::UserSpace } else { TriggeredBy::Kernel }
    }

    /// Whether frames pass the monitor, which can limit them.
    pub(crate) fn has_limits(&self) -> bool {
        self.vhost.is_none()
    }

    /// Gives each way other limits, also what waits; returns those of receiving and those of transmitting.
    pub(crate) fn change_limits(
        &self,
        receive: impl FnOnce(Limits) -> Limits,
        transmit: impl FnOnce(Limits) -> Limits,
    ) -> [Limits; 2] {
        [self.options.receive.change(receive), self.options.transmit.change(transmit)]
    }

    /// The device of one life of the machine, whose guest memory is that of `memory`.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents, memory: &VhostMemory) -> Result<Net, Failure> {
        let (link, options) = (Arc::clone(&self.link), self.options.clone());
        let made = match &self.vhost {
            None => Net::new(link, options, events),
            Some(fds) => Backend::new(fds.clone(), memory)
                .and_then(|backend| Net::with_backend(backend, link, options, events)),
        };
        made.map_err(|error| Failure::host_cannot(anyhow::Error::new(error).context(context(&self.id))))
    }
}

impl Named for Nic {
    fn id(&self) -> &DeviceId {
        &self.id
    }
}

/// Why a network device cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its settings do not go together.
    #[error(transparent)]
    Settings(#[from] NetError),
    /// A rate that was read is one; this cannot be.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket in its place.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What the kernel has for its frames.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// An address could not be made up.
    #[error("random bytes")]
    Random(#[source] io::Error),
}

impl OpenError {
    /// Whether somebody else has the interface.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::Tap(TapError::Busy { .. }))
    }

    /// By whose it is to mend, of the device `id`.
    fn failure(self, id: &DeviceId) -> Failure {
        match self {
            Self::Settings(error) => Failure::bad_input(error),
            Self::Limit(error) => Failure::internal(error),
            Self::Tap(error) => {
                let is_of_host = error.is_of_host();
                let error = anyhow::Error::new(error).context(context(id));
                if is_of_host { Failure::host_cannot(error) } else { Failure::bad_input(error) }
            }
            error => Failure::host_cannot(anyhow::Error::new(error).context(context(id))),
        }
    }
}

/// One descriptor for each queue of `tap`.
fn open_vhost(tap: &Tap) -> Result<Vec<Arc<dyn VhostFd>>, VhostError> {
    let open = |queue| VhostNet::open(queue).map(|fd| Arc::new(fd) as _);
    tap.queues().iter().map(open).collect()
}

fn context(id: &DeviceId) -> String {
    format!("the network device {id} (--net)")
}

/// The address of a network device, made up if it is not configured.
///
/// # Errors
/// The host has no random bytes.
pub(crate) fn mac_address(config: &NetConfig) -> io::Result<MacAddress> {
    config.mac.map_or_else(made_up, Ok)
}

fn made_up() -> io::Result<MacAddress> {
    let mut bytes = [0; 5];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(MacAddress::made_up(bytes))
}

fn throttle(bandwidth: Option<Rate>, frames: Option<Rate>) -> Result<Arc<Throttle>, LimitError> {
    let limit = |rate: Option<Rate>| rate.map(|rate| rate.limit()).transpose();
    Ok(Throttle::new(Limits { bytes: limit(bandwidth)?, operations: limit(frames)? }))
}
