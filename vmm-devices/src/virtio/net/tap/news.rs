//! `News`: that something has happened to a network interface of the host (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

use crate::Wakeup;

/// Messages that are read at a time.
const MOST: usize = 64;

/// A socket that gets a message for each interface that comes, goes or changes. What is in it does not matter: who is woken looks.
#[derive(Debug)]
pub(super) struct News {
    socket: OwnedFd,
    came: AtomicBool,
}

impl News {
    pub(super) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let links = u32::try_from(libc::RTMGRP_LINK).unwrap_or(0);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, links))?;
        Ok(Self { socket, came: AtomicBool::new(false) })
    }

    /// The same over a socket that somebody else has made.
    pub(super) fn over(socket: OwnedFd) -> Self {
        Self { socket, came: AtomicBool::new(false) }
    }

    /// One more descriptor of the socket.
    pub(super) fn hand_over(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Whether some has come since this was asked.
    pub(super) fn came(&self) -> bool {
        self.came.swap(false, Ordering::AcqRel)
    }
}

impl AsRawFd for News {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Wakeup for News {
    fn take(&self) -> u64 {
        // Of a message only the beginning is read, and the rest is gone with it. Too many for the socket are an error once, and news
        // all the same.
        let mut message = [0; 16];
        let read = (0..MOST).take_while(|_| rustix::io::read(&self.socket, &mut message).is_ok()).count();
        self.came.store(true, Ordering::Release);
        read as u64
    }
}
