//! `Desk`: the opener's side. It knows the places to which it may connect, and connects to one of them for whoever asks.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
};
use rustix::process::fchdir;

use super::packets::{self, Enclosed};
use super::wire::{Answer, LONGEST_NAME, LONGEST_REQUEST, Request};

/// Most places, a descriptor each: more than a machine can have devices.
pub(super) const MOST_PLACES: usize = 256;

/// What may be connected to: a name in a directory.
struct Place {
    directory: OwnedFd,
    name: Vec<u8>,
    /// Not the name itself, but the name with `_` and a port.
    ports: bool,
}

/// The places, by their numbers.
#[derive(Default)]
pub(super) struct Desk {
    places: Vec<Place>,
    /// There will be no more.
    is_sealed: bool,
}

/// What is answered with.
type Reply = (Answer, Option<OwnedFd>);

impl Desk {
    /// Serves whoever has the other end of `socket`, until nobody has it.
    pub(super) fn serve(mut self, socket: impl AsFd) {
        // One byte more than there can be, so that what is longer is seen to be.
        let mut buffer = [0; LONGEST_REQUEST + 1];
        loop {
            let (length, enclosed) = match packets::receive(&socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => return,
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let Some((answer, descriptor)) = self.answer(&buffer[..length], enclosed) else { continue };
            let packet = answer.packet();
            let sent =
                packets::send(&socket, &packet, descriptor.as_ref().map(AsFd::as_fd), SendFlags::empty());
            // The host does not pass on so many descriptors at once.
            let refused = |errno: Errno| {
                let answer = Answer { result: Err(errno), ..answer };
                packets::send(&socket, &answer.packet(), None, SendFlags::empty())
            };
            if sent.or_else(refused).is_err() {
                return;
            }
        }
    }

    /// The answer to `packet`; `None`: nobody would know to what.
    fn answer(&mut self, packet: &[u8], enclosed: Enclosed) -> Option<Reply> {
        let (turn, request) = Request::read(packet)?;
        let done = match (request, enclosed) {
            (Ok(Request::Place { name, ports }), Enclosed::One(directory)) => {
                self.add(Place { directory, name, ports }).map(|number| (number, None))
            }
            (Ok(Request::Seal), Enclosed::Nothing) => {
                self.is_sealed = true;
                Ok((0, None))
            }
            (Ok(Request::Connect { place, port }), Enclosed::Nothing) => {
                self.connect(place, port).map(|socket| (0, Some(socket)))
            }
            (Err(errno), _) => Err(errno),
            (Ok(_), _) => Err(Errno::INVAL),
        };
        let (result, descriptor) = match done {
            Ok((number, descriptor)) => (Ok(number), descriptor),
            Err(errno) => (Err(errno), None),
        };
        Some((Answer { turn, result }, descriptor))
    }

    fn add(&mut self, place: Place) -> Result<u32, Errno> {
        if self.is_sealed {
            return Err(Errno::PERM);
        }
        if self.places.len() >= MOST_PLACES {
            return Err(Errno::NOSPC);
        }
        // That it is a directory, and one that may be looked into.
        fchdir(&place.directory)?;
        let number = u32::try_from(self.places.len()).map_err(|_| Errno::NOSPC)?;
        self.places.push(place);
        Ok(number)
    }

    fn connect(&self, place: u32, port: Option<u32>) -> Result<OwnedFd, Errno> {
        let place = usize::try_from(place).ok().and_then(|at| self.places.get(at)).ok_or(Errno::INVAL)?;
        if place.ports != port.is_some() {
            return Err(Errno::INVAL);
        }
        let mut name = place.name.clone();
        if let Some(port) = port {
            name.extend(format!("_{port}").bytes());
        }
        if name.len() > LONGEST_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        let address = SocketAddrUnix::new(name)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A name is looked up where this process is.
        fchdir(&place.directory)?;
        rustix::io::retry_on_intr(|| connect(&socket, &address))?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests;
