//! The ioctls of TAP devices (`linux/if_tun.h`) and of network interfaces (netdevice(7)).
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_uint};

/// Bytes of the name of an interface, with the NUL that ends it.
const NAME: usize = libc::IFNAMSIZ;

/// `struct ifreq`: the name of an interface, and something about it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    name: [u8; NAME],
    /// As far as it is used here, a number in its first bytes.
    value: [u8; VALUE],
}

const VALUE: usize = size_of::<libc::ifreq>() - NAME;
const _: () = assert!(size_of::<Interface>() == size_of::<libc::ifreq>());

/// What is asked about an interface, or said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Of a TAP descriptor: it belongs to the interface with this name and these flags from now on.
    Attach,
    /// Of a TAP descriptor: which one that is.
    Attached,
    /// Of a TAP descriptor: whether frames come to it, by its flags.
    Queue,
    /// Of either: the address of the hardware.
    Address,
    /// Of a socket: whether there is such an interface.
    Index,
    /// Of a socket: the MTU.
    Mtu,
    /// Of a socket: the MTU is this one.
    SetMtu,
    /// Of a socket: the flags.
    Flags,
    /// Of a socket: the flags are these.
    SetFlags,
}

impl Interface {
    /// The interface `name` with a value of 0; `None`: none has such a name.
    pub(super) fn new(name: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
        let is_name =
            (1..NAME).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != "..";
        let mut interface = Self { name: [0; NAME], value: [0; VALUE] };
        interface.name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        is_name.then_some(interface)
    }

    /// One without a name.
    pub(super) fn unnamed() -> Self {
        Self { name: [0; NAME], value: [0; VALUE] }
    }

    pub(super) fn name(&self) -> String {
        let bytes = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// As flags, of 16 bits.
    pub(super) fn flags(&self) -> c_int {
        let [one, other, ..] = self.value;
        u16::from_ne_bytes([one, other]).into()
    }

    pub(super) fn with_flags(mut self, flags: c_int) -> Self {
        let [one, other, ..] = flags.to_le_bytes();
        let flags = u16::from_le_bytes([one, other]).to_ne_bytes();
        self.value.iter_mut().zip(flags).for_each(|(place, byte)| *place = byte);
        self
    }

    /// As a number of 32 bits.
    pub(super) fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }

    /// As an address: its family and its six bytes (`struct sockaddr`).
    pub(super) fn address(&self) -> [u8; 8] {
        self.value.first_chunk().copied().unwrap_or_default()
    }

    pub(super) fn with_number(mut self, number: i32) -> Self {
        self.value.iter_mut().zip(number.to_ne_bytes()).for_each(|(place, byte)| *place = byte);
        self
    }
}

/// Asks `fd` about `interface`, which then has the answer.
pub(super) fn ask(fd: impl AsFd, request: Request, interface: &mut Interface) -> io::Result<()> {
    let number = match request {
        Request::Attach => libc::TUNSETIFF,
        Request::Attached => libc::TUNGETIFF,
        Request::Queue => libc::TUNSETQUEUE,
        Request::Address => libc::SIOCGIFHWADDR,
        Request::Index => libc::SIOCGIFINDEX,
        Request::Mtu => libc::SIOCGIFMTU,
        Request::SetMtu => libc::SIOCSIFMTU,
        Request::Flags => libc::SIOCGIFFLAGS,
        Request::SetFlags => libc::SIOCSIFFLAGS,
    };
    let interface: *mut Interface = interface;
    // SAFETY:
    // - each of these takes a `struct ifreq`, whose size and layout `Interface` has, and reads and writes nothing else;
    // - a descriptor that is neither a TAP nor a socket refuses them.
    result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, interface) })
}

/// Bytes of the header before each frame.
pub(super) fn set_header_length(fd: impl AsFd, length: c_int) -> io::Result<()> {
    let length: *const c_int = &raw const length;
    // SAFETY:
    // - the kernel reads one `int`, which is there.
    result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, length) })
}

/// The header's numbers are little-endian, as those of virtio are.
pub(super) fn set_little_endian(fd: impl AsFd) -> io::Result<()> {
    let yes: c_int = 1;
    let yes: *const c_int = &raw const yes;
    // SAFETY:
    // - the kernel reads one `int`, which is there.
    result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETLE, yes) })
}

/// What may be left to whoever reads frames: `TUN_F_*`.
pub(super) fn set_offloads(fd: impl AsFd, offloads: c_uint) -> io::Result<()> {
    // SAFETY:
    // - the argument is a number; no memory is touched.
    result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Another descriptor for what `fd`, which this process was started with, stands for.
pub(super) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY:
    // - the call touches no memory; a number that is no descriptor is refused.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    result(copy)?;
    // SAFETY:
    // - the kernel made this descriptor just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Has `fd` stand for what `by` stands for, which is closed as such, and not for what it stood for before.
pub(in super::super) fn replace(fd: impl AsFd, by: impl Into<OwnedFd>) -> io::Result<()> {
    let by = by.into();
    // SAFETY:
    // - the call touches no memory;
    // - both are open descriptors, and both are after it: whoever owns `fd` closes it later, as before.
    result(unsafe { libc::dup3(by.as_raw_fd(), fd.as_fd().as_raw_fd(), libc::O_CLOEXEC) })
}

fn result(status: c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_an_interface_can_have() {
        for name in ["tap0", "a", "fifteen-letters"] {
            assert_eq!(Interface::new(name).unwrap().name(), name);
        }
        for name in ["", "sixteen-letters-", "a b", "a/b", "a:1", "tap%d", "..", ".", "täp", "a\0"] {
            assert!(Interface::new(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn flags_and_numbers_share_their_place() {
        let interface = Interface::new("x").unwrap().with_number(0x1_0002);
        assert_eq!((interface.number(), interface.flags()), (0x1_0002, 2));
        let flags = libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        assert_eq!(interface.with_flags(flags).flags(), flags);
    }

    #[test]
    fn what_is_no_descriptor_and_what_is_no_tap_say_so() {
        assert_eq!(duplicate(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let file = tempfile::tempfile().unwrap();
        let error = ask(&file, Request::Attached, &mut Interface::unnamed()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(set_offloads(&file, 0).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
