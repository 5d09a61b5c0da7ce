//! What holds for the whole process: no more privileges than it was started with, and no core file with the guest's secrets.

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set, set_no_new_privs,
};

/// Settles it, for the calling thread and those that it starts.
///
/// # Errors
/// The kernel's.
pub(super) fn settle() -> nix::Result<()> {
    // It looks where the kernel's clock is, which no thread could do later.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    empty_bounding_set();
    // Linux before 4.3 has none.
    let _ = clear_ambient_capability_set();
    set_no_new_privs(true).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// As far as this process may: without CAP_SETPCAP it may not, and nothing is executed from which it could gain anything.
fn empty_bounding_set() {
    for number in 0..u64::BITS {
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)).is_err() {
            break;
        }
    }
}
