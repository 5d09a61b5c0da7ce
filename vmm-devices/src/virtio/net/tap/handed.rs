//! `HandedTap`: a TAP that another process has opened and set up, and what it takes to have its interface again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::news::News;
use super::{Again, FLAGS, Found, Tap, TapError, attached, interface, is_here, mtu, set_up};

/// The descriptors of a TAP.
#[derive(Debug)]
pub struct HandedTap {
    /// One for each pair of queues, which belong to the interface already and do not block.
    pub queues: Vec<OwnedFd>,
    /// What it takes to have the interface again when it was gone; without it, it is not had again.
    pub again: Option<HandedAgain>,
}

/// Two sockets of the network namespace of an interface.
#[derive(Debug)]
pub struct HandedAgain {
    /// A datagram socket through which interfaces are asked for (netdevice(7)).
    pub interfaces: OwnedFd,
    /// A netlink socket that does not block, and gets a message for each interface that comes, goes or changes.
    pub news: OwnedFd,
}

impl Tap {
    /// More descriptors of it, for whoever is to have it from this process.
    ///
    /// # Errors
    /// The host has none left.
    pub fn hand_over(&self) -> std::io::Result<HandedTap> {
        let queues = self.queues.iter().map(|queue| queue.as_fd().try_clone_to_owned());
        let again = self.again.as_ref().map(|again| {
            let (interfaces, news) = (again.socket.try_clone()?, again.news.hand_over()?);
            Ok::<_, std::io::Error>(HandedAgain { interfaces, news })
        });
        Ok(HandedTap { queues: queues.collect::<Result<_, _>>()?, again: again.transpose()? })
    }

    /// Takes the interface `name`, which another process has opened with `pairs` pairs of queues. No path is opened and no socket made.
    /// Messages have the numbers of the descriptors among those of `handed`.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn adopt(
        name: &str,
        handed: HandedTap,
        pairs: u16,
        wanted_mtu: Option<u16>,
    ) -> Result<Self, TapError> {
        let HandedTap { queues: fds, again } = handed;
        let own = interface(name)?;
        if fds.len() != usize::from(pairs) {
            return Err(TapError::Pairs { name: name.to_owned(), found: fds.len(), pairs });
        }
        let mut flags = FLAGS;
        for (number, fd) in (0..).zip(&fds) {
            let found = attached(number, fd)?;
            if found.name() != name {
                return Err(TapError::OtherInterface { name: name.to_owned(), found: found.name() });
            }
            flags |= found.flags() & libc::IFF_MULTI_QUEUE;
        }
        let host = |source| TapError::SetUp { name: name.to_owned(), source };
        fds.iter().try_for_each(set_up).map_err(host)?;
        let (mut mtu_of_it, mut kept) = (None, None);
        if let (Some(HandedAgain { interfaces: socket, news }), Some(first)) = (again, fds.first()) {
            check_sockets(&socket, &news)?;
            if !is_here(&socket, first, own) {
                let problem = "is of another network namespace than the interface";
                return Err(TapError::Companion { what: INTERFACES, problem });
            }
            mtu_of_it = Some(mtu(&socket, own).map_err(host)?);
            kept = Some(Again { socket, interface: own, flags, news: Arc::new(News::over(news)) });
        }
        Self::with(Found { name: name.to_owned(), fds, mtu: mtu_of_it, again: kept }, wanted_mtu)
    }
}

const INTERFACES: &str = "the socket for interfaces";
const NEWS: &str = "the socket for news";

fn check_sockets(interfaces: &OwnedFd, news: &OwnedFd) -> Result<(), TapError> {
    let bad = |what, problem| Err(TapError::Companion { what, problem });
    if sockopt::socket_type(interfaces).ok() != Some(SocketType::DGRAM) {
        return bad(INTERFACES, "is no datagram socket");
    }
    // NETLINK_ROUTE is 0, which is no protocol elsewhere.
    let is_of_routes = sockopt::socket_domain(news).ok() == Some(AddressFamily::NETLINK)
        && sockopt::socket_protocol(news).ok() == Some(None);
    if !is_of_routes {
        return bad(NEWS, "is no netlink socket (NETLINK_ROUTE)");
    }
    let flags = fcntl_getfl(news).unwrap_or(OFlags::empty());
    if flags.contains(OFlags::NONBLOCK) {
        Ok(())
    } else {
        bad(NEWS, "blocks: whoever opens it has to set O_NONBLOCK")
    }
}
