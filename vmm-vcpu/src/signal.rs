//! The signal that interrupts `KVM_RUN`: its handler does nothing, its arrival is all that is wanted.
#![expect(unsafe_code, reason = "signal system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// The number of the kick signal: the first real-time signal that libc leaves to programs.
fn number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn do_nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler of the kick signal (`SIGRTMIN`), once for the process, without `SA_RESTART`.
///
/// Starting a vCPU thread does it too; a program that may be sent real-time signals does it first of all, because
/// their default action ends the process.
pub fn install_kick_signal() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(number(), do_nothing).map_err(kvm_ioctls::Error::errno))
        .map_err(io::Error::from_raw_os_error)
}

/// Lets the signal through to the calling thread, whatever mask it inherited.
pub(crate) fn unblock() -> io::Result<()> {
    unblock_signal(number()).map_err(|error| io::Error::other(error.to_string()))
}

/// Keeps the signal from the calling thread; returns the thread's mask without it, signal n at bit n − 1.
pub(crate) fn block() -> io::Result<u64> {
    let change = |how: i32, set: &libc::sigset_t| {
        let mut old = empty_set();
        // SAFETY:
        // - both sets are initialised and outlive the call.
        match unsafe { libc::pthread_sigmask(how, set, &raw mut old) } {
            0 => Ok(old),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    };
    let before = change(libc::SIG_BLOCK, &own_set())?;
    Ok((1..=64)
        .filter(|&signal| signal != number() && is_member(&before, signal))
        .fold(0, |mask, signal| mask | 1 << (signal - 1)))
}

/// Takes one signal that is pending for the calling thread; returns whether there was one. Never waits.
pub(crate) fn consume() -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY:
        // - the set and the time are initialised and outlive the call; a null pointer stands for "no details".
        let taken = unsafe { libc::sigtimedwait(&own_set(), std::ptr::null_mut(), &at_once) };
        if taken == number() {
            return true;
        }
        // Another signal's handler ran instead: look again.
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY:
    // - sigemptyset initialises the set it is given, and fails for no set that is there.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY:
    // - initialised by the call above.
    unsafe { set.assume_init() }
}

/// The set with the kick signal alone.
fn own_set() -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY:
    // - the set is initialised; the number is that of a signal.
    unsafe { libc::sigaddset(&raw mut set, number()) };
    set
}

fn is_member(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY:
    // - the set is initialised; for a number that is none the answer is an error, not 1.
    (unsafe { libc::sigismember(set, signal) }) == 1
}

/// The id of the calling thread.
///
/// Not `libc::gettid`: the standard library refers to that symbol weakly, so a static link may leave it null.
pub(crate) fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Sends the kick signal to the thread `tid` of the process `pid`, which is this one. One system call: `pthread_kill`
/// takes four and a lock of libc, and asking for the process id here would be another.
pub(crate) fn send(pid: u32, tid: i32) {
    // SAFETY:
    // - tgkill takes three integers; the signal has a handler, see `install_kick_signal`.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, number()) };
}
