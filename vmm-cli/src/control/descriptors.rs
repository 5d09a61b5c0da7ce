//! Descriptors that go over a socket with bytes (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::arrivals::MOST_DESCRIPTORS;

/// Bytes for the descriptors of one message. What is more the kernel drops.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS));

/// What was read at once.
#[derive(Debug)]
pub(super) struct Received {
    /// How many bytes; none at the end.
    pub(super) count: usize,
    /// What came with the last of them. They are closed in a program that is executed.
    pub(super) descriptors: Vec<OwnedFd>,
    /// There were more.
    pub(super) cut: bool,
}

/// Reads once.
///
/// # Errors
/// The host's, as that of a read.
pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    Ok(Received { count: message.bytes, descriptors, cut: message.flags.contains(ReturnFlags::CTRUNC) })
}

/// Writes all `bytes`, with `descriptors` beside the first of them.
///
/// # Errors
/// The host's, as that of a write; or there are more descriptors than a request can have.
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    if descriptors.is_empty() {
        return (&mut &*stream).write_all(bytes);
    }
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > MOST_DESCRIPTORS || !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let once = || sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    let count = retry_on_intr(once).map_err(|errno: Errno| io::Error::from(errno))?;
    (&mut &*stream).write_all(bytes.get(count..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    fn some(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect()
    }

    fn receive_all(stream: &UnixStream) -> Received {
        receive(stream, &mut [0; 100]).unwrap()
    }

    #[test]
    fn descriptors_come_with_the_bytes_they_were_sent_with_and_are_closed_on_exec() {
        let (own, other) = UnixStream::pair().unwrap();
        send(&other, b"one", &[]).unwrap();
        send(&other, b"two", &some(2)).unwrap();
        send(&other, b"three", &[]).unwrap();
        let Received { count, descriptors, cut } = receive_all(&own);
        assert_eq!((count, descriptors.len(), cut), (6, 2, false));
        assert!(descriptors.iter().all(|fd| fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)));
        let Received { count, descriptors, .. } = receive_all(&own);
        assert_eq!((count, descriptors.len()), (5, 0));
        drop(other);
        assert_eq!(receive_all(&own).count, 0);
    }

    #[test]
    fn as_many_as_a_request_may_have_come_and_more_are_not_sent() {
        let (own, other) = UnixStream::pair().unwrap();
        send(&other, b"x", &some(MOST_DESCRIPTORS)).unwrap();
        let received = receive_all(&own);
        assert_eq!((received.descriptors.len(), received.cut), (MOST_DESCRIPTORS, false));
        let error = send(&other, b"x", &some(MOST_DESCRIPTORS + 1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn fault_c10_a_message_with_more_is_cut_and_what_is_cut_off_is_closed() {
        let (own, other) = UnixStream::pair().unwrap();
        // A socket whose other end tells whether somebody has it still.
        let (mut told, last) = UnixStream::pair().unwrap();
        let mut all = some(MOST_DESCRIPTORS + 8);
        all.push(last.into());
        let borrowed: Vec<_> = all.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        sendmsg(&other, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        drop(all);
        let received = receive_all(&own);
        assert!(received.cut && received.descriptors.len() >= MOST_DESCRIPTORS);
        assert_eq!(told.read(&mut [0]).unwrap(), 0, "somebody has it still");
    }

    #[test]
    fn a_long_request_is_sent_as_a_whole() {
        let (mut own, other) = UnixStream::pair().unwrap();
        let bytes = vec![b'x'; 1 << 20];
        let expected = bytes.clone();
        let sender = std::thread::spawn(move || send(&other, &bytes, &some(1)));
        let received = receive_all(&own);
        assert_eq!(received.descriptors.len(), 1);
        let mut rest = Vec::new();
        own.read_to_end(&mut rest).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(received.count + rest.len(), expected.len());
    }
}
