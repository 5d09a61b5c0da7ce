//! `VmEvents`: the latch that holds why a machine ends; the first reason wins.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Why a machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest turned its machine off, by the named means (`ACPI S5`).
    Shutdown(&'static str),
    /// The guest asked for a reset, by the named means (`i8042`, `port 0xcf9`, `triple fault`), or the person who runs the
    /// machine did (`control socket`).
    Reset(&'static str),
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// The person who runs the machine asked for its end, by the named means (`SIGTERM`, `Ctrl-A X`,
    /// `control socket`).
    UserStop(&'static str),
    /// The guest cannot go on; the text is the report for the user.
    GuestCrash(String),
    /// A part of this program failed; the text says which and how.
    Internal(String),
}

type Reaction = Box<dyn Fn() + Send + Sync>;

struct Shared {
    first: OnceLock<VmEvent>,
    reaction: OnceLock<Reaction>,
    wake: EventFd,
}

/// A latch for the first [`VmEvent`]: any thread sends, one thread polls the descriptor.
///
/// Later events are dropped, so that the exit code of the program does not depend on a race between the first
/// reason and its consequences. Clones share the latch.
#[derive(Clone)]
pub struct VmEvents(Arc<Shared>);

impl VmEvents {
    /// Makes an empty latch. Takes one descriptor (an eventfd, close-on-exec).
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            first: OnceLock::new(),
            reaction: OnceLock::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })))
    }

    /// Calls `reaction` when an event is recorded from now on, on the thread that sends it and before `send` returns: what must
    /// not go on after the end, a vCPU that has just asked for it, stops then. It must not block. Only the first call of this
    /// method counts.
    pub fn on_first(&self, reaction: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.reaction.set(Box::new(reaction));
    }

    /// Records `event` unless one is recorded already, and wakes the thread that polls. Returns whether `event` is
    /// the recorded one. Never blocks on a reader; may be called from any thread.
    pub fn send(&self, event: VmEvent) -> bool {
        let first = self.0.first.set(event).is_ok();
        if first {
            if let Some(reaction) = self.0.reaction.get() {
                reaction();
            }
            // An eventfd write fails only when the counter is full, and this is its only write.
            if let Err(error) = self.0.wake.write(1) {
                tracing::error!(%error, "cannot wake the event loop");
            }
        }
        first
    }

    /// The recorded event, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<&VmEvent> {
        self.0.first.get()
    }
}

impl fmt::Debug for VmEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VmEvents").field(&self.0.first).finish()
    }
}

impl AsFd for VmEvents {
    /// Readable from the moment an event is recorded, for ever.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_first_event_wins_and_the_rest_is_dropped() {
        let events = VmEvents::new().unwrap();
        assert_eq!(events.get(), None);
        assert!(events.send(VmEvent::DebugExit(3)));
        assert!(!events.clone().send(VmEvent::Reset("late")));
        assert_eq!(events.get(), Some(&VmEvent::DebugExit(3)));
    }

    #[test]
    fn the_reaction_comes_once_and_before_send_returns() {
        let events = VmEvents::new().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        events.on_first(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        for _ in 0..2 {
            events.send(VmEvent::DebugExit(0));
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn of_many_threads_exactly_one_decides() {
        let events = VmEvents::new().unwrap();
        let winners: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8u32)
                .map(|v| {
                    scope.spawn({
                        let events = &events;
                        move || events.send(VmEvent::DebugExit(v))
                    })
                })
                .collect();
            threads.into_iter().map(|t| usize::from(t.join().unwrap())).sum()
        });
        assert_eq!(winners, 1);
    }
}
