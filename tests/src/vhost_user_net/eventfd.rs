//! Descriptors that have come over a socket become eventfds.
#![expect(unsafe_code, reason = "an eventfd is made of the number of a descriptor")]

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd that `file` is.
pub(super) fn eventfd(file: File) -> EventFd {
    // SAFETY:
    // - the descriptor is open, and `file` gives it up: nobody else closes it.
    unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
}
