//! Packets between the monitor and the opener, each with at most one descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Bytes for a descriptor that comes along. What is more the kernel drops.
const SPACE: usize = rustix::cmsg_space!(ScmRights(1));

/// What comes along with a packet.
#[derive(Debug)]
pub(super) enum Enclosed {
    Nothing,
    One(OwnedFd),
    /// More than there should be, or what this process had no room for. All of it is closed.
    Other,
}

/// Two ends of a socket that keeps packets apart.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends `packet`.
pub(super) fn send(
    socket: impl AsFd,
    packet: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::INVAL);
    }
    let flags = flags | SendFlags::NOSIGNAL;
    let once = || sendmsg(&socket, &[IoSlice::new(packet)], &mut control, flags);
    // A packet goes as a whole.
    retry_on_intr(once).map(drop)
}

/// Receives a packet into `buffer`; a longer one is cut off. How long it is: 0 is the end, or a packet of nothing.
pub(super) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Enclosed), Errno> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    let is_cut = message.flags.contains(ReturnFlags::CTRUNC);
    let enclosed = match (descriptors.len(), descriptors.pop()) {
        (0, _) if !is_cut => Enclosed::Nothing,
        (1, Some(one)) if !is_cut => Enclosed::One(one),
        _ => Enclosed::Other,
    };
    Ok((message.bytes, enclosed))
}
