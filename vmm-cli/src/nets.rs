//! The network devices of a machine: their interfaces, opened before it is built, or by the client that adds a device to it, and kept
//! through its restarts.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vmm_core::VmEvents;
use vmm_core::irq::TriggeredBy;
use vmm_devices::rate_limiter::{LimitError, Limits};
use vmm_devices::virtio::net::{
    HandedAgain, HandedTap, Link, Net, NetOptions, StreamError, StreamLink, Tap, TapError, TapSource,
    Throttle,
};
use vmm_devices::virtio::vhost::{Backend, HandedVhost, VhostError, VhostFd, VhostMemory, VhostNet};

use crate::config::{DeviceId, MacAddress, NetConfig, NetError, Rate, VmConfig};
use crate::control::devices::DeviceError;
use crate::control::roles::NetFiles;
use crate::kept::{Kept, Named};
use crate::opener::Opener;
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
    pub(crate) fn open(config: &VmConfig, opener: &Opener) -> Result<Self, Failure> {
        let open = |(place, net): (usize, &NetConfig)| {
            let id = net.id(place);
            self::open(net, id.clone(), opener).map_err(|error| error.failure(&id))
        };
        // The others have a back end of their own.
        let with_interface = config.net.iter().enumerate().filter(|(_, net)| net.vhost_user.is_none());
        let nics: Result<Vec<_>, Failure> = with_interface.map(open).collect();
        Ok(Self::new(nics?))
    }
}

/// Opens the interface of one network device, and what the kernel has for it. Never in a process with a machine that runs.
///
/// # Errors
/// It cannot be had.
fn open(config: &NetConfig, id: DeviceId, opener: &Opener) -> Result<Nic, OpenError> {
    let behind = match &config.passt {
        Some(path) => {
            let failed = |source| StreamError::Connect { path: path.clone(), source };
            let link = Arc::new(StreamLink::open(opener.place(path).map_err(failed)?)?);
            Behind { interface: path.display().to_string(), link, mtu: config.mtu, vhost: None }
        }
        None => {
            let tap = Tap::open(&config.tap_options()?)?;
            let handed = config.vhost.then(|| open_vhost(&tap)).transpose()?;
            Behind::tap(tap, handed, config)?
        }
    };
    Nic::new(behind, config, id)
}

/// Checks and takes what a client has opened for one network device.
///
/// # Errors
/// Something is missing, or is not what the device needs.
pub(crate) fn adopt(config: &NetConfig, id: DeviceId, files: NetFiles) -> Result<Nic, OpenError> {
    let options = config.tap_options()?;
    let (TapSource::Existing(name) | TapSource::Created(name)) = options.source else {
        return Err(OpenError::Settings(NetError::NoInterface));
    };
    let NetFiles { tap, vhost, interfaces, news } = files;
    let not_given = |what: &str| OpenError::NotGiven { what: format!("{what} of {name}") };
    if tap.is_empty() {
        return Err(OpenError::NotGiven { what: format!("the interface {name}") });
    }
    let again = match (interfaces, news) {
        (Some(interfaces), Some(news)) => Some(HandedAgain { interfaces, news }),
        (None, None) => None,
        (None, Some(_)) => return Err(not_given("the socket for interfaces")),
        (Some(_), None) => return Err(not_given("the socket for news")),
    };
    let vhost = match (config.vhost, vhost.len()) {
        (false, 0) => None,
        (false, _) => return Err(OpenError::Unwanted { what: "vhost" }),
        (true, count) if count < tap.len() => return Err(not_given("/dev/vhost-net for each queue")),
        (true, count) if count > tap.len() => return Err(OpenError::Unwanted { what: "vhost" }),
        (true, _) => Some(vhost.into_iter().map(HandedVhost::adopt).collect::<Result<_, _>>()?),
    };
    let tap = Tap::adopt(&name, HandedTap { queues: tap, again }, options.pairs, options.mtu)?;
    Nic::new(Behind::tap(tap, vhost, config)?, config, id)
}

/// Opens what a network device takes, for the monitor to [adopt](adopt); and says what its interface is called, and how many
/// pairs of queues there are.
///
/// # Errors
/// It cannot be had.
pub(crate) fn open_for_monitor(config: &NetConfig) -> Result<(String, u16, NetFiles), OpenError> {
    let tap = Tap::open(&config.tap_options()?)?;
    let vhost = if config.vhost { open_vhost(&tap)? } else { Vec::new() };
    let HandedTap { queues, again } = tap.hand_over().map_err(OpenError::HandOver)?;
    let (interfaces, news) = again.map(|again| (again.interfaces, again.news)).unzip();
    let pairs = u16::try_from(queues.len()).unwrap_or(u16::MAX);
    let vhost = vhost.into_iter().map(OwnedFd::from).collect();
    Ok((tap.name().to_owned(), pairs, NetFiles { tap: queues, vhost, interfaces, news }))
}

/// What is behind a network device.
struct Behind {
    interface: String,
    link: Arc<dyn Link>,
    mtu: Option<u16>,
    vhost: Option<Vec<Arc<dyn VhostFd>>>,
}

impl Behind {
    /// `tap`, whose frames are moved by `vhost`, one for each of its queues, if there is that.
    fn tap(tap: Tap, vhost: Option<Vec<HandedVhost>>, config: &NetConfig) -> Result<Self, OpenError> {
        let vhost = vhost.map(|handed| {
            let each = handed.into_iter().zip(tap.queues());
            each.map(|(handed, queue)| VhostNet::new(handed, queue).map(|fd| Arc::new(fd) as _)).collect()
        });
        let mtu = config.mtu.or(tap.mtu());
        Ok(Self { interface: tap.name().to_owned(), mtu, vhost: vhost.transpose()?, link: Arc::new(tap) })
    }
}

impl Nic {
    /// The network device `id` on what is `behind` it.
    fn new(behind: Behind, config: &NetConfig, id: DeviceId) -> Result<Self, OpenError> {
        let receive = throttle(config.receive_bandwidth, config.receive_frames)?;
        let transmit = throttle(config.transmit_bandwidth, config.transmit_frames)?;
        let Behind { interface, link, mtu, vhost } = behind;
        let mac = mac_address(config).map_err(OpenError::Random)?;
        let pairs = link.queues().len();
        tracing::info!(device = id.as_str(), interface, %mac, pairs, vhost = config.vhost, "a network device");
        let options = NetOptions { name: id.to_string(), mac: mac.bytes(), mtu, receive, transmit };
        Ok(Self { id, card: Card { interface, mac }, link, vhost, options })
    }

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
    /// The client has no more descriptors.
    #[error("no descriptor to hand over")]
    HandOver(#[source] io::Error),
    /// The client has not opened it.
    #[error("there is no descriptor for {what}")]
    NotGiven {
        /// What.
        what: String,
    },
    /// The client has opened what is not part of the device.
    #[error("the device has no such descriptor `{what}`")]
    Unwanted {
        /// What.
        what: &'static str,
    },
}

impl OpenError {
    /// As whoever adds a network device is told.
    pub(crate) fn device_error(self) -> DeviceError {
        let message = |error: Self| format!("{:#}", anyhow::Error::new(error));
        match self {
            Self::NotGiven { what } => DeviceError::NotGiven { what },
            error @ Self::Tap(TapError::Busy { .. }) => DeviceError::InUse { message: message(error) },
            error => DeviceError::BadNet { message: message(error) },
        }
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
fn open_vhost(tap: &Tap) -> Result<Vec<HandedVhost>, VhostError> {
    tap.queues().iter().map(|_| HandedVhost::open()).collect()
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
