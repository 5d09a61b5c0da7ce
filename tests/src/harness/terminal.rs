//! `Terminal`: a pseudo-terminal with a person on its other end.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{read, write};
use rustix::termios::{Winsize, tcsetwinsize};

/// A pseudo-terminal. Dropped, it hangs up.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    shown: Vec<u8>,
}

impl Terminal {
    /// A new one, in the mode in which the kernel makes them: echo, and input by the line.
    ///
    /// # Errors
    ///
    /// The kernel has none.
    pub fn new() -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
        Ok(Self { master: master.into(), slave, shown: Vec::new() })
    }

    /// The end that a program has.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn end(&self) -> Result<Stdio> {
        Ok(self.slave.try_clone()?.into())
    }

    /// Its mode, seen from the person's side: that works also when the session on it is over.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn mode(&self) -> Result<Termios> {
        Ok(tcgetattr(&self.master)?)
    }

    /// Gives it another mode.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn set_mode(&self, mode: &Termios) -> Result<()> {
        Ok(tcsetattr(&self.master, SetArg::TCSANOW, mode)?)
    }

    /// Gives it another size, and tells the programs in its foreground.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// The status flags of the program's end.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn flags(&self) -> Result<OFlag> {
        status_flags(&self.slave)
    }

    /// Types `keys`.
    ///
    /// # Errors
    ///
    /// The terminal does not take all of them.
    pub fn type_keys(&self, keys: &[u8]) -> Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            let count = write(&self.master, rest)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Waits until `text` is shown.
    ///
    /// # Errors
    ///
    /// It is not shown in `time`.
    pub fn wait_for(&mut self, text: &str, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while !self.shown().contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(left).context("a long time")?)?;
            if ready == 0 {
                bail!("{text:?} is not shown, but {:?}", self.shown());
            }
            let mut chunk = [0; 4096];
            match read(&self.master, &mut chunk) {
                Ok(count) => self.shown.extend_from_slice(&chunk[..count]),
                Err(Errno::EINTR) => {}
                Err(errno) => bail!("{text:?} is not shown, but {:?}, then {errno}", self.shown()),
            }
        }
        Ok(())
    }

    /// All that was shown to those who waited.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }
}

/// The status flags (`F_GETFL`) of an open file.
///
/// # Errors
///
/// The system call failed.
pub fn status_flags(fd: impl AsFd) -> Result<OFlag> {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
    Ok(OFlag::from_bits_retain(flags))
}
