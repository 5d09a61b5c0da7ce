//! `IoctlError`: a KVM ioctl that failed: which one, and what the kernel answered.

use std::io;

/// A KVM ioctl that failed.
#[derive(Debug, thiserror::Error)]
#[error("{ioctl} failed")]
pub struct IoctlError {
    /// The ioctl, by its name in the kernel's `Documentation/virt/kvm/api.rst`.
    pub ioctl: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl IoctlError {
    /// Returns a function that wraps an errno as the failure of `ioctl`, for use with `map_err`.
    pub fn of(ioctl: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> Self {
        move |errno| Self { ioctl, source: io::Error::from_raw_os_error(errno.errno()) }
    }
}
