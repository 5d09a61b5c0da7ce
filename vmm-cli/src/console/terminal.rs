//! Raw mode: the user's terminal while the guest has it, and its way back on every way out.
//!
//! The saved mode is kept where a signal handler can reach it: a process that dies of a signal restores the terminal
//! first. One terminal, standard input, for the whole process.
#![expect(unsafe_code, reason = "terminal and signal system calls, and a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::outside;

const STDIN: i32 = libc::STDIN_FILENO;

/// Signals that end a process and that nothing else here handles.
const DEADLY: [i32; 16] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGUSR1,
    libc::SIGSEGV,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGSYS,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// The mode to go back to; set before the terminal is first changed.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Raw mode. Dropped, the terminal is as it was.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    /// Puts the terminal on standard input into raw mode. `None`: it is no terminal, or this process is in the
    /// background, where changing it would stop the process.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !is_foreground() {
            return Ok(None);
        }
        let saved = current()?;
        let saved = SAVED.get_or_init(|| saved);
        restore_before_dying();
        RAW.store(true, Ordering::SeqCst);
        let guard = Self(());
        set(&raw(saved))?;
        Ok(Some(guard))
    }

    /// Sets raw mode again: the shell may have had the terminal meanwhile. Nothing happens in the background.
    pub(super) fn renew(&self) -> io::Result<()> {
        match SAVED.get() {
            Some(saved) if is_foreground() => {
                RAW.store(true, Ordering::SeqCst);
                set(&raw(saved))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Gives the terminal its saved mode, if it is in raw mode and still ours: a shell that has put this process in the
/// background has set its own. Safe to call from a signal handler and more than once.
pub fn restore_now() {
    if RAW.swap(false, Ordering::SeqCst)
        && is_foreground()
        && let Some(saved) = SAVED.get()
    {
        // A terminal that is gone needs nothing.
        let _ = set(saved);
    }
}

/// Whether standard input is a terminal on which this process is in the foreground. On a terminal that is not the
/// controlling one there is no background.
pub(super) fn is_foreground() -> bool {
    // SAFETY:
    // - isatty, tcgetpgrp and getpgrp take and return integers.
    let terminal = unsafe { libc::isatty(STDIN) } == 1;
    // SAFETY:
    // - as above.
    let foreground = unsafe { libc::tcgetpgrp(STDIN) };
    let controlling = foreground != -1;
    // SAFETY:
    // - as above.
    let own = unsafe { libc::getpgrp() };
    // In a PID namespace that has neither group, both are 0.
    let is_ours = || if own == 0 { outside::is_foreground().unwrap_or(true) } else { foreground == own };
    terminal && (!controlling || is_ours())
}

fn current() -> io::Result<libc::termios> {
    let mut mode = MaybeUninit::uninit();
    // SAFETY:
    // - the kernel writes one termios to the pointer, which has room for it.
    if unsafe { libc::tcgetattr(STDIN, mode.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY:
    // - tcgetattr succeeded, so it has filled the whole structure.
    Ok(unsafe { mode.assume_init() })
}

fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY:
    // - the pointer is to a whole termios, which the kernel only reads.
    if unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, mode) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether lines that go to the terminal have to bring their own carriage return.
pub(crate) fn is_raw() -> bool {
    RAW.load(Ordering::SeqCst)
}

/// Every key goes to the guest as it is typed, and every byte of the guest to the terminal as it is written. A read gives
/// what is there, which may be nothing: it never waits.
fn raw(saved: &libc::termios) -> libc::termios {
    let mut mode = *saved;
    // SAFETY:
    // - cfmakeraw changes the structure it is given and nothing else.
    unsafe { libc::cfmakeraw(&raw mut mode) };
    mode.c_cc[libc::VMIN] = 0;
    mode.c_cc[libc::VTIME] = 0;
    mode
}

/// Installs a handler that restores the terminal before a signal does what it would have done anyway.
fn restore_before_dying() {
    // The first real-time signal kicks vCPUs.
    for signal in DEADLY.into_iter().chain(libc::SIGRTMIN() + 1..=libc::SIGRTMAX()) {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY:
        // - all zeroes is a valid sigaction: no flags, an empty mask, the default handler.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = on_deadly_signal as *const () as usize;
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY:
        // - the handler calls only functions that are safe in a signal handler, see there;
        // - no old action is asked for.
        unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
    }
}

/// Restores the terminal and raises the signal again, now with its default action (`SA_RESETHAND`).
extern "C" fn on_deadly_signal(signal: libc::c_int) {
    // Atomics, a `OnceLock` that is set, and tcsetattr: all safe in a signal handler.
    restore_now();
    // SAFETY:
    // - raise takes an integer and is safe in a signal handler.
    unsafe { libc::raise(signal) };
}
