//! Capabilities, which a thread has of its own.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

/// Gives up all of the calling thread's.
///
/// # Errors
/// The kernel's.
pub(crate) fn drop_all() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Empties the bounding set of the calling thread and of those that it starts, also of capabilities that this program has no name for.
///
/// # Errors
/// The kernel's: it takes CAP_SETPCAP.
pub(crate) fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
