//! The other end of a network stream, as passt is: frames, each behind its length, to and from a TAP interface.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_devices::virtio::net::{Link, Tap};

/// Bytes before each frame of a TAP.
const HEADER: usize = 12;

/// No frame is longer, with that.
const LONGEST: usize = HEADER + (1 << 16);

/// Moves frames between `stream` and `tap` until the stream ends.
///
/// # Errors
///
/// The interface does not take or give frames, or what comes is none.
pub fn serve(stream: &UnixStream, tap: &Tap) -> Result<()> {
    let queue = tap.queues().first().context("a TAP without a queue")?;
    let tap: File = queue.as_fd().try_clone_to_owned()?.into();
    thread::scope(|scope| {
        let sending = scope.spawn(|| to_stream(&tap, stream));
        let received = to_tap(stream, &tap);
        // The other one is told by this.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        sending.join().ok().context("a thread has panicked")??;
        received
    })
}

fn to_stream(mut tap: &File, mut stream: &UnixStream) -> Result<()> {
    let mut packet = vec![0; LONGEST];
    loop {
        let mut fds =
            [PollFd::new(tap.as_fd(), PollFlags::POLLIN), PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::NONE)?;
        if fds[1].any() == Some(true) {
            return Ok(());
        }
        let length = match tap.read(&mut packet) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        ensure!(length >= HEADER, "a packet of {length} bytes");
        let frame = u32::try_from(length - HEADER)?.to_be_bytes();
        packet[HEADER - frame.len()..HEADER].copy_from_slice(&frame);
        if stream.write_all(&packet[HEADER - frame.len()..length]).is_err() {
            return Ok(());
        }
    }
}

fn to_tap(mut stream: &UnixStream, mut tap: &File) -> Result<()> {
    let mut packet = vec![0; LONGEST];
    loop {
        let mut length = [0; 4];
        if !whole(stream.read_exact(&mut length))? {
            return Ok(());
        }
        let length = usize::try_from(u32::from_be_bytes(length))?;
        let frame = packet.get_mut(HEADER..HEADER + length).context("a frame that is too long")?;
        if !whole(stream.read_exact(frame))? {
            return Ok(());
        }
        // An interface that is down takes none.
        let _ = tap.write(&packet[..HEADER + length]);
    }
}

/// Whether all was read, and not the end.
fn whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
