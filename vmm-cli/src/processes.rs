//! Processes that this one makes, which are this program from the fork on, and the descriptors that they keep.
#![expect(unsafe_code, reason = "fork, and descriptors that are closed by their numbers")]

use std::io;
use std::os::fd::RawFd;

use nix::unistd::{ForkResult, fork};

/// Makes a process that goes on from here, as this one does.
///
/// # Errors
/// The kernel does not make one; or this process has several threads, of which the new one would have the locks but not the
/// owners.
pub(crate) fn fork_alone() -> io::Result<ForkResult> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("this process has several threads"));
    }
    // SAFETY:
    // - there is one thread, so that no lock is held by another one and the child may do whatever this process may.
    Ok(unsafe { fork() }?)
}

/// Closes all descriptors from `first` on but `kept`. Nobody in this process may use one of those that are closed.
///
/// # Errors
/// The kernel is older than Linux 5.9, and there is no `/proc`.
pub(crate) fn close_all_but(first: RawFd, kept: &[RawFd]) -> io::Result<()> {
    let gaps = gaps(first, kept);
    match gaps.iter().try_for_each(|(first, last)| close_range(*first, *last)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => close_each(&gaps),
        closed => closed,
    }
}

fn close_each(gaps: &[(RawFd, RawFd)]) -> io::Result<()> {
    let numbers =
        std::fs::read_dir("/proc/self/fd")?.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok());
    // All of them, before one is closed.
    let numbers: Vec<RawFd> = numbers.collect();
    for fd in numbers {
        if gaps.iter().any(|(first, last)| (*first..=*last).contains(&fd)) {
            // SAFETY:
            // - the argument is an integer; of the rest, as in `close_range`.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY:
    // - the arguments are integers;
    // - that nobody uses what is closed is the promise of who calls `close_all_but`: the jail and the opener, at their beginnings.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The ranges without `kept`, from `first` to the last descriptor there can be.
fn gaps(first: RawFd, kept: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let mut kept: Vec<_> = kept.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = first;
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
        assert_eq!(gaps(3, &[]), [(3, LAST)]);
        assert_eq!(gaps(3, &[0, 1, 2]), [(3, LAST)]);
        assert_eq!(gaps(3, &[3]), [(4, LAST)]);
        assert_eq!(gaps(3, &[7, 4, 7, 5]), [(3, 3), (6, 6), (8, LAST)]);
        assert_eq!(gaps(0, &[7]), [(0, 6), (8, LAST)]);
    }
}
