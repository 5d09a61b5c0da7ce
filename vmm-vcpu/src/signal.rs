//! The signal that interrupts `KVM_RUN`: its handler does nothing, its arrival is all that is wanted.
#![expect(unsafe_code, reason = "signal system calls")]

use std::io;
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

/// The id of the calling thread.
///
/// Not `libc::gettid`: the standard library refers to that symbol weakly, so a static link may leave it null.
pub(crate) fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Sends the kick signal to the thread `tid` of this process. One system call: `pthread_kill` takes four and a lock
/// of libc.
pub(crate) fn send(tid: i32) {
    let pid = std::process::id();
    // SAFETY:
    // - tgkill takes three integers; the signal has a handler, see `install_kick_signal`.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, number()) };
}
