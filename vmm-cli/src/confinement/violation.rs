//! Violation: a thread has asked the kernel for what is not in its table. It is told, and the process ends.
//!
//! The kernel sends the thread SIGSYS instead of making the call. Its handler may do next to nothing, because the thread may hold any
//! lock: it writes down what was asked and wakes the nursery, which tells it. Where the nursery cannot, the process ends without.
#![expect(unsafe_code, reason = "a signal handler, and the context that the kernel gives it")]

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vmm_core::thread::current_kind;

use super::kinds;
use super::nursery::Nursery;
use crate::outcome::VIOLATION;
use crate::{console, listener, logging, messages};

/// How long the nursery may take, in seconds.
const PATIENCE: i64 = 2;

/// Arguments that are told.
const ARGUMENTS: usize = 4;

/// The descriptor that wakes the nursery; negative: there is none.
static NEWS: AtomicI32 = AtomicI32::new(-1);
/// The first violation wins. Pairs with itself.
static CLAIMED: AtomicBool = AtomicBool::new(false);
/// What the first one was, once `WRITTEN` says so. Release in the handler, acquire in the nursery.
static WRITTEN: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static THREAD: AtomicI32 = AtomicI32::new(0);
static VALUES: [AtomicU64; ARGUMENTS] = [const { AtomicU64::new(0) }; ARGUMENTS];
/// The kind of thread, by its place in the list.
static KIND: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Installs the handler of SIGSYS, which wakes `nursery`.
pub(super) fn install(nursery: &Nursery) -> io::Result<()> {
    NEWS.store(nursery.news(), Ordering::Relaxed);
    let handler = SigHandler::SigAction(on_violation);
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK, SigSet::all());
    // SAFETY:
    // - the handler touches atomics and the thread's own kind only, and makes system calls that are safe in one.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

extern "C" fn on_violation(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    if !CLAIMED.swap(true, Ordering::AcqRel) {
        // SAFETY:
        // - the kernel gives a handler with SA_SIGINFO a `ucontext_t`, which is there until the handler returns.
        let context = unsafe { &*context.cast::<libc::ucontext_t>() };
        let register = |at: c_int| {
            let value = usize::try_from(at).ok().and_then(|at| context.uc_mcontext.gregs.get(at));
            value.copied().unwrap_or_default().cast_unsigned()
        };
        NUMBER.store(register(libc::REG_RAX), Ordering::Relaxed);
        let registers = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10];
        for (value, at) in VALUES.iter().zip(registers) {
            value.store(register(at), Ordering::Relaxed);
        }
        let kind = current_kind().and_then(|own| kinds::ALL.iter().position(|kind| std::ptr::eq(*kind, own)));
        KIND.store(kind.unwrap_or(usize::MAX), Ordering::Relaxed);
        THREAD.store(rustix::thread::gettid().as_raw_pid(), Ordering::Relaxed);
        WRITTEN.store(true, Ordering::Release);
        let one = 1_u64;
        // SAFETY:
        // - the kernel reads eight bytes, which are there; the descriptor is open as long as the process.
        unsafe { libc::write(NEWS.load(Ordering::Relaxed), (&raw const one).cast(), size_of::<u64>()) };
    }
    let patience = libc::timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    // SAFETY:
    // - the kernel reads a `timespec`, which is there, and writes nothing.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const patience, std::ptr::null_mut()) };
    // SAFETY:
    // - the call does not return, and runs nothing of this process.
    unsafe { libc::_exit(c_int::from(VIOLATION)) };
}

/// Tells of the violation, if there was one, and ends the process.
pub(super) fn tell() {
    if !WRITTEN.load(Ordering::Acquire) {
        return;
    }
    console::restore_now();
    let [first, second, third, fourth] = VALUES.each_ref().map(|value| value.load(Ordering::Relaxed));
    let number = NUMBER.load(Ordering::Relaxed);
    messages::tell(format_args!(
        "vmm-cli: the thread {} ({}) asked the kernel for {}({first:#x}, {second:#x}, {third:#x}, {fourth:#x}), which threads of its kind \
         never do: the machine is ended, because its guest may have taken it. Please report it as SECURITY.md says; \
         `--seccomp log` runs the machine all the same\n",
        kinds::ALL.get(KIND.load(Ordering::Relaxed)).map_or("?", |kind| kind.name),
        THREAD.load(Ordering::Relaxed),
        kinds::call_name(number).map_or_else(|| format!("system call {number}"), ToOwned::to_owned),
    ));
    logging::flush();
    // Last: the thread that is told of may be about to do so itself, with the list in its hands.
    listener::remove_now();
    std::process::exit(i32::from(VIOLATION));
}
