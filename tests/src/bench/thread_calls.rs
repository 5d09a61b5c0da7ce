//! System calls about threads: sleeping on a word, a signal to one, its CPU time, its scheduling class.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustix::thread::futex;

/// Sleeps if `word` is `expected`; may return for no reason.
pub(super) fn wait(word: &AtomicU32, expected: u32) {
    // Woken, changed already or interrupted: the callers look at the word in any case.
    let _ = futex::wait(word, futex::Flags::PRIVATE, expected, None);
}

/// Wakes all who sleep on `word`.
pub(super) fn wake(word: &AtomicU32) {
    // To wake nobody is no error, and there is no other on a word of our own.
    let _ = futex::wake(word, futex::Flags::PRIVATE, u32::MAX >> 1);
}

/// The id of the calling thread.
pub(super) fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Sends the signal of kicks to the thread `tid` of the process `pid`, which is this one.
pub(super) fn signal_thread(pid: i32, tid: i32) {
    // SAFETY:
    // - tgkill takes three integers; the signal has a handler, see `install_kick_signal`.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGRTMIN()) };
}

/// The CPU time of the thread `tid` of this process.
///
/// # Errors
///
/// There is no such thread.
pub(super) fn cpu_time(tid: i32) -> nix::Result<Duration> {
    /// `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED` of the kernel's include/linux/posix-timers_types.h; the complement of the
    /// thread id stands above it.
    const THREAD_CLOCK: i32 = 4 | 2;
    clock_gettime(ClockId::from_raw(!tid << 3 | THREAD_CLOCK)).map(Duration::from)
}

/// Makes the calling thread one of `SCHED_IDLE`, which runs where nobody else wants to.
///
/// # Errors
///
/// The kernel refuses.
pub fn become_idle() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY:
    // - 0 is the calling thread; the parameter outlives the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
