//! Descriptors: all are closed but the standard ones and those that the machine is to have.

use std::os::fd::RawFd;

use super::error::JailError;
use super::syscalls;

/// The first one that is not standard input, output or error.
const FIRST: RawFd = 3;

/// Closes all but 0, 1, 2 and `kept`. Nobody in this process may own one of those that are closed.
///
/// # Errors
/// The kernel is older than Linux 5.9.
pub(super) fn close_all_but(kept: &[RawFd]) -> Result<(), JailError> {
    gaps(kept).into_iter().try_for_each(|(first, last)| {
        syscalls::close_range(first, last).map_err(|source| JailError::System {
            what: "close_range",
            since: "5.9",
            source,
        })
    })
}

/// The ranges without `kept`, from 3 to the last descriptor there can be.
fn gaps(kept: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let mut kept: Vec<_> = kept.iter().copied().filter(|fd| *fd >= FIRST).collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = FIRST;
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd.saturating_add(1));
    }
    gaps.push((next, RawFd::MAX));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_left_out() {
        const LAST: RawFd = RawFd::MAX;
        assert_eq!(gaps(&[]), [(3, LAST)]);
        assert_eq!(gaps(&[0, 1, 2]), [(3, LAST)]);
        assert_eq!(gaps(&[3]), [(4, LAST)]);
        assert_eq!(gaps(&[7, 4, 7, 5]), [(3, 3), (6, 6), (8, LAST)]);
    }
}
