//! A TAP interface that stays, made as somebody else makes it for a user: `ip tuntap add NAME mode tap user ROOT`, which the nested host's
//! busybox does not have.
#![expect(unsafe_code, reason = "ioctls of /dev/net/tun")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

/// Makes the interface `name`, whose owner is the user of this process.
///
/// # Errors
///
/// The kernel's.
pub fn make_persistent(name: &str) -> Result<()> {
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
    let device = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // `struct ifreq`: the name, and the flags behind it.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&u16::try_from(flags)?.to_ne_bytes());
    // SAFETY:
    // - the kernel reads and writes a `struct ifreq` of 40 bytes, which are there.
    done(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })
        .context("TUNSETIFF")?;
    let own = libc::c_ulong::from(nix::unistd::geteuid().as_raw());
    // SAFETY:
    // - the argument is a number.
    done(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOWNER, own) }).context("TUNSETOWNER")?;
    // SAFETY:
    // - the argument is a number.
    done(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })
        .context("TUNSETPERSIST")
}

fn done(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
