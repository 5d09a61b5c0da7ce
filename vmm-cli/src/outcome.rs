//! `Failure`, and the exit codes: how a run ends, and the number that says so. `docs/exit-codes.md` is the user's page.

use std::fmt;

use nix::sys::signal::Signal;
use vmm_core::VmEvent;

use crate::advice;

/// Exit codes of failures; 0 is success, the rest is computed.
const INTERNAL: u8 = 1;
const BAD_INPUT: u8 = 2;
pub(crate) const HOST_CANNOT: u8 = 3;
const GUEST_CRASHED: u8 = 4;
/// A thread asked the kernel for what is not in its table.
pub(crate) const VIOLATION: u8 = 5;
/// Non-zero values of the debug-exit port come out from here on.
const DEBUG_EXIT: u8 = 64;

/// The exit code of a stop that was forced after `signal`, as shells count it.
#[must_use]
pub(crate) fn forced(signal: Signal) -> u8 {
    128 + signal as u8
}

/// Why something could not be done, by whose it is to mend.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
    error: anyhow::Error,
}

/// Whose it is to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    /// This program's.
    Internal,
    /// The user's: arguments, configuration, images.
    BadInput,
    /// The host's: no KVM, no permission, no memory, no descriptors.
    HostCannot,
}

impl Failure {
    /// A failure of this program itself.
    pub fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: FailureKind::Internal, error: error.into() }
    }

    /// A failure that the user mends; the host's administrator, if it comes from a host that has run out of something.
    pub fn bad_input(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let exhausted = matches!(advice::errno(&error), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
        Self { kind: if exhausted { FailureKind::HostCannot } else { FailureKind::BadInput }, error }
    }

    /// A failure that the host's administrator mends.
    pub fn host_cannot(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: FailureKind::HostCannot, error: error.into() }
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::Internal => INTERNAL,
            FailureKind::BadInput => BAD_INPUT,
            FailureKind::HostCannot => HOST_CANNOT,
        }
    }
}

impl fmt::Display for Failure {
    /// The error and its causes on one line, with what to do where that is the same for every place it comes from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)?;
        if let Some(advice) = advice::about(&self.error) {
            write!(f, "; {advice}")?;
        }
        match self.kind {
            FailureKind::HostCannot => f.write_str("; `vmm-cli doctor` says what this host can do"),
            FailureKind::Internal | FailureKind::BadInput => Ok(()),
        }
    }
}

/// The exit code of a machine that ran and ended with `event`.
#[must_use]
pub fn exit_code(event: &VmEvent) -> u8 {
    match event {
        VmEvent::Shutdown(_) | VmEvent::Reset(_) | VmEvent::UserStop(_) | VmEvent::DebugExit(0) => 0,
        VmEvent::DebugExit(value) => DEBUG_EXIT + (value & 63) as u8,
        VmEvent::GuestCrash(_) => GUEST_CRASHED,
        VmEvent::Internal(_) => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_end_has_the_documented_code() {
        for (event, code) in [
            (VmEvent::Shutdown("ACPI S5"), 0),
            (VmEvent::Reset("i8042"), 0),
            (VmEvent::UserStop("SIGTERM"), 0),
            (VmEvent::DebugExit(0), 0),
            (VmEvent::DebugExit(1), 65),
            (VmEvent::DebugExit(64), 64),
            (VmEvent::DebugExit(0x1ff), 127),
            (VmEvent::GuestCrash(String::new()), 4),
            (VmEvent::Internal(String::new()), 1),
        ] {
            assert_eq!(exit_code(&event), code, "{event:?}");
        }
    }

    #[test]
    fn fault_c1_an_exhausted_host_is_not_the_users_fault() {
        let failure =
            |errno| Failure::bad_input(anyhow::Error::new(io::Error::from_raw_os_error(errno)).context("x"));
        assert_eq!(failure(libc::EMFILE).exit_code(), 3);
        assert!(failure(libc::EMFILE).to_string().contains("ulimit -n"));
        assert!(failure(libc::EMFILE).to_string().contains("vmm-cli doctor"));
        assert!(!failure(libc::ENOENT).to_string().contains("vmm-cli doctor"));
        assert_eq!(failure(libc::ENOENT).exit_code(), 2);
    }

    #[test]
    fn every_code_is_on_the_users_page() {
        let page = include_str!("../../docs/exit-codes.md");
        for code in ["`0`", "`1`", "`2`", "`3`", "`4`", "`5`", "`64`–`127`", "`130`", "`143`"] {
            assert!(page.contains(code), "{code} is not in docs/exit-codes.md");
        }
    }
}
