//! `Tap`: a TAP interface of the host, as the link of a device (Documentation/networking/tuntap.rst).
//!
//! It is one that exists, one that is created and goes when this is dropped, or one whose descriptors were handed to this process.
//! While a machine runs no path is opened for it.

mod error;
mod handed;
mod ioctl;
mod news;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};

use libc::{c_int, c_uint};
use rustix::fs::OFlags;

pub use error::TapError;
pub use handed::{HandedAgain, HandedTap};
pub(super) use ioctl::replace;
use ioctl::{Interface, Request};
use news::News;

use super::frame::HEADER;
use super::link::{Link, LinkQueue};
use super::offloads::Offloads;
use crate::Wakeup;
use crate::sync::lock;

/// Most pairs of queues; a TAP of Linux has at most as many (`MAX_TAP_QUEUES`).
pub const MAX_PAIRS: u16 = 256;

/// Where descriptors for TAP interfaces come from.
const DEVICE: &str = "/dev/net/tun";

/// What each descriptor has: Ethernet frames, with the header of virtio before them and nothing else.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Which TAP it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// The one with this name, which exists.
    Existing(String),
    /// One that gets this name, and is gone when nobody has it any more.
    Created(String),
    /// That of these descriptors, which this process was started with, one for each pair of queues.
    Descriptors(Vec<RawFd>),
}

/// What is said about a TAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapOptions {
    /// Which one.
    pub source: TapSource,
    /// How many pairs of queues it is to have; of descriptors, they say that themselves.
    pub pairs: u16,
    /// The MTU that the guest is to have; one that is created gets it too.
    pub mtu: Option<u16>,
}

/// A TAP interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<Arc<LinkQueue>>,
    offloads: Offloads,
    /// That of the interface, if it is in the network namespace of this process.
    mtu: Option<u16>,
    /// How many of the queues get frames.
    used: Mutex<usize>,
    /// What it takes to have the interface again when it was gone; of descriptors, that is up to whoever has opened them.
    again: Option<Again>,
}

/// An interface, opened and set up.
struct Found {
    name: String,
    fds: Vec<OwnedFd>,
    mtu: Option<u16>,
    again: Option<Again>,
}

/// What it takes to have an interface again.
#[derive(Debug)]
struct Again {
    /// Through which interfaces are asked for.
    socket: OwnedFd,
    interface: Interface,
    /// With which it is asked for.
    flags: c_int,
    news: Arc<News>,
}

impl Tap {
    /// Opens the interface and sets it up; it leaves nothing to the guest so far.
    ///
    /// # Errors
    /// [`TapError`] says what is missing, and what mends it.
    pub fn open(options: &TapOptions) -> Result<Self, TapError> {
        let socket = socket()?;
        let (name, fds, flags) = match &options.source {
            TapSource::Existing(name) => attach(&socket, name, options.pairs)?,
            TapSource::Created(name) => create(name, options.pairs)?,
            TapSource::Descriptors(numbers) => adopt(numbers)?,
        };
        for fd in &fds {
            set_up(fd).map_err(|source| TapError::SetUp { name: name.clone(), source })?;
        }
        let host = |source| TapError::SetUp { name: name.clone(), source };
        let interface = interface(&name)?;
        if matches!(options.source, TapSource::Created(_)) {
            bring_up(&socket, interface, options.mtu).map_err(host)?;
        }
        let first = fds.first().ok_or(TapError::NoDescriptor)?;
        let is_here =
            !matches!(options.source, TapSource::Descriptors(_)) || is_here(&socket, first, interface);
        let mtu = is_here.then(|| mtu(&socket, interface)).transpose().map_err(host)?;
        let again = match flags {
            Some(flags) => {
                let news = News::new().map(Arc::new).map_err(|source| TapError::Socket { source })?;
                Some(Again { socket, interface, flags, news })
            }
            None => None,
        };
        Self::with(Found { name, fds, mtu, again }, options.mtu)
    }

    /// Of what was found, with an MTU of `wanted` for the guest.
    fn with(Found { name, fds, mtu, again }: Found, wanted: Option<u16>) -> Result<Self, TapError> {
        if let (Some(wanted), Some(mtu)) = (wanted, mtu)
            && wanted > mtu
        {
            return Err(TapError::Mtu { name, wanted, mtu });
        }
        let first = fds.first().ok_or(TapError::NoDescriptor)?;
        let offloads = probe(first).map_err(|source| TapError::SetUp { name: name.clone(), source })?;
        let used = Mutex::new(fds.len());
        let queues = fds.into_iter().map(|fd| Arc::new(LinkQueue::new(fd))).collect();
        Ok(Self { name, queues, offloads, mtu, used, again })
    }

    /// The name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The MTU that it had when it was opened; `None`: it is in another network namespace, which cannot be asked.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// How many pairs of queues it has.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.queues.len()
    }
}

impl Link for Tap {
    fn queues(&self) -> &[Arc<LinkQueue>] {
        &self.queues
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn leave(&self, offloads: Offloads) -> io::Result<()> {
        // For all queues.
        self.queues.first().map_or(Ok(()), |queue| ioctl::set_offloads(&**queue, bits(offloads)))
    }

    fn news(&self) -> Option<Arc<dyn Wakeup>> {
        self.again.as_ref().map(|again| Arc::clone(&again.news) as _)
    }

    fn take_again(&self) -> io::Result<bool> {
        let Some(Again { socket, interface, flags, news }) = &self.again else { return Ok(false) };
        // One that is not there is not created.
        if !news.came() || ioctl::ask(socket, Request::Index, &mut { *interface }).is_err() {
            return Ok(false);
        }
        let mut used = lock(&self.used);
        for queue in &self.queues {
            match ioctl::ask(&**queue, Request::Attach, &mut interface.with_flags(*flags)) {
                Ok(()) => {}
                // From an attempt that came to this queue and not to the next.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                // Whoever makes it has it still; there is news when that has changed.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
                Err(error) => return Err(error),
            }
            set_up(&**queue)?;
        }
        *used = self.queues.len();
        self.leave(Offloads::default())?;
        Ok(true)
    }

    fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        let mut used = lock(&self.used);
        while *used > pairs {
            let last = used.saturating_sub(1);
            self.set_used(last, libc::IFF_DETACH_QUEUE)?;
            *used = last;
        }
        while *used < pairs.min(self.queues.len()) {
            self.set_used(*used, libc::IFF_ATTACH_QUEUE)?;
            *used = used.saturating_add(1);
        }
        Ok(())
    }
}

impl Tap {
    fn set_used(&self, index: usize, flag: c_int) -> io::Result<()> {
        let Some(queue) = self.queues.get(index) else { return Ok(()) };
        ioctl::ask(&**queue, Request::Queue, &mut Interface::unnamed().with_flags(flag))
    }
}

/// The bits by which a TAP knows offloads.
fn bits(offloads: Offloads) -> c_uint {
    let Offloads { checksum, tso4, tso6, ecn, uso } = offloads;
    let bits = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    bits.iter().filter(|(has, _)| *has).fold(0, |all, (_, bit)| all | bit)
}

/// Which offloads the kernel of the host has; none of them is on afterwards. UDP segments came with Linux 6.2.
fn probe(fd: impl AsFd + Copy) -> io::Result<Offloads> {
    let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
    let has_uso = ioctl::set_offloads(fd, bits(all)).is_ok();
    ioctl::set_offloads(fd, 0)?;
    Ok(Offloads { uso: has_uso, ..all })
}

fn set_up(fd: impl AsFd + Copy) -> io::Result<()> {
    ioctl::set_header_length(fd, c_int::try_from(HEADER).unwrap_or(c_int::MAX))?;
    ioctl::set_little_endian(fd)
}

/// A socket through which interfaces are asked for.
fn socket() -> Result<OwnedFd, TapError> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    let made = socket(AddressFamily::Unix, SockType::Datagram, flags, None);
    made.map_err(|errno| TapError::Socket { source: errno.into() })
}

/// A descriptor that belongs to no interface yet.
fn open() -> Result<OwnedFd, TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let opened: io::Result<File> = options.open(DEVICE);
    opened.map(Into::into).map_err(|source| TapError::Device { source })
}

/// An interface: its name, its descriptors, and with which flags it is had again.
type Opened = (String, Vec<OwnedFd>, Option<c_int>);

/// `pairs` descriptors of the interface `name`, which exists.
fn attach(socket: &OwnedFd, name: &str, pairs: u16) -> Result<Opened, TapError> {
    let interface = interface(name)?;
    // Otherwise the kernel would create one.
    ioctl::ask(socket, Request::Index, &mut { interface }).map_err(|source| TapError::NotThere {
        name: name.to_owned(),
        pairs,
        source,
    })?;
    let one = |flags| {
        let fd = open()?;
        ioctl::ask(&fd, Request::Attach, &mut interface.with_flags(flags))
            .map(|()| fd)
            .map_err(|source| refused(name, pairs, source))
    };
    let (own, several) = (name.to_owned(), FLAGS | libc::IFF_MULTI_QUEUE);
    if pairs > 1 {
        let fds = (0..pairs).map(|_| one(several)).collect::<Result<_, _>>()?;
        return Ok((own, fds, Some(several)));
    }
    // One that may have several queues has to be asked for as such.
    match one(FLAGS) {
        Ok(fd) => Ok((own, vec![fd], Some(FLAGS))),
        Err(error) => match one(several) {
            Ok(fd) => Ok((own, vec![fd], Some(several))),
            Err(_) => Err(error),
        },
    }
}

/// Why the interface `name` was not given.
fn refused(name: &str, pairs: u16, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy { name },
        Some(libc::EPERM) => TapError::NotOwner { name },
        Some(libc::EINVAL) => match flags_in_sysfs(&name) {
            Some(flags) if flags & libc::IFF_TAP == 0 => TapError::NotATap { name },
            Some(flags) if flags & libc::IFF_MULTI_QUEUE == 0 && pairs > 1 => {
                TapError::OneQueue { name, pairs }
            }
            Some(_) => TapError::Attach { name, source },
            None => TapError::NotATap { name },
        },
        _ => TapError::Attach { name, source },
    }
}

/// What `tun_flags` of an interface says, which only TUN and TAP interfaces have.
fn flags_in_sysfs(name: &str) -> Option<c_int> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok()?;
    c_int::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// `pairs` descriptors of a new interface `name`.
fn create(name: &str, pairs: u16) -> Result<Opened, TapError> {
    let interface = interface(name)?;
    let several = if pairs > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let one = |index| {
        let fd = open()?;
        // The others come to the interface that the first one has made.
        let new = if index == 0 { libc::IFF_TUN_EXCL } else { 0 };
        let asked = ioctl::ask(&fd, Request::Attach, &mut interface.with_flags(FLAGS | several | new));
        asked.map(|()| fd).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Exists { name: name.to_owned() },
            Some(libc::EPERM) => TapError::MayNotCreate { name: name.to_owned() },
            _ => TapError::Create { name: name.to_owned(), source },
        })
    };
    let fds = (0..pairs).map(one).collect::<Result<_, _>>()?;
    Ok((name.to_owned(), fds, Some(FLAGS | several)))
}

/// The descriptors with these numbers, and the name of their interface.
fn adopt(numbers: &[RawFd]) -> Result<Opened, TapError> {
    let (mut name, mut fds) = (None, Vec::new());
    for &number in numbers {
        let fd = ioctl::duplicate(number).map_err(|source| TapError::Descriptor { number, source })?;
        let own = attached(number, &fd)?.name();
        if let Some(other) = name.replace(own.clone()).filter(|other| *other != own) {
            return Err(TapError::TwoInterfaces { one: other, other: own });
        }
        fds.push(fd);
    }
    name.map(|name| (name, fds, None)).ok_or(TapError::NoDescriptor)
}

/// The interface of a descriptor that is one of a TAP as it is needed here; messages have its number.
fn attached(number: RawFd, fd: &OwnedFd) -> Result<Interface, TapError> {
    let mut interface = Interface::unnamed();
    ioctl::ask(fd, Request::Attached, &mut interface)
        .map_err(|source| TapError::NotATapDescriptor { number, source })?;
    let missing = FLAGS & !interface.flags();
    if missing != 0 {
        return Err(TapError::Flags { number, missing: flag_names(missing) });
    }
    let flags = rustix::fs::fcntl_getfl(fd);
    let flags = flags.map_err(|errno| TapError::Descriptor { number, source: errno.into() })?;
    if flags.contains(OFlags::NONBLOCK) { Ok(interface) } else { Err(TapError::Blocks { number }) }
}

fn interface(name: &str) -> Result<Interface, TapError> {
    Interface::new(name).ok_or_else(|| TapError::Name { name: name.to_owned() })
}

/// Whether the `interface` of the descriptor `fd` is in the network namespace of `socket`: one there may have the same name, but not the
/// same address.
fn is_here(socket: &OwnedFd, fd: &OwnedFd, interface: Interface) -> bool {
    let address = |fd| {
        let mut answer = interface;
        ioctl::ask(fd, Request::Address, &mut answer).ok().map(|()| answer.address())
    };
    address(socket).is_some_and(|here| address(fd) == Some(here))
}

/// The MTU of `interface`.
fn mtu(socket: &OwnedFd, interface: Interface) -> io::Result<u16> {
    let mut answer = interface;
    ioctl::ask(socket, Request::Mtu, &mut answer)?;
    Ok(u16::try_from(answer.number()).unwrap_or(u16::MAX))
}

fn flag_names(flags: c_int) -> String {
    let names =
        [(libc::IFF_TAP, "IFF_TAP"), (libc::IFF_NO_PI, "IFF_NO_PI"), (libc::IFF_VNET_HDR, "IFF_VNET_HDR")];
    let names = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name);
    names.collect::<Vec<_>>().join(", ")
}

/// Sets the MTU of a new interface, and has it up.
fn bring_up(socket: &OwnedFd, interface: Interface, mtu: Option<u16>) -> io::Result<()> {
    if let Some(mtu) = mtu {
        ioctl::ask(socket, Request::SetMtu, &mut interface.with_number(mtu.into()))?;
    }
    let mut answer = interface;
    ioctl::ask(socket, Request::Flags, &mut answer)?;
    let flags = answer.flags() | libc::IFF_UP;
    ioctl::ask(socket, Request::SetFlags, &mut interface.with_flags(flags))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
