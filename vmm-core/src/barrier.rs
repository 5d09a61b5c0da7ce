//! `Barrier`: the expensive half of a store-load fence between many readers and a rare writer.
//!
//! A reader stores, and then loads what the writer stores; the writer stores, and then loads what readers store. One of
//! the two must see the other, so each needs a full fence in between. With membarrier(2) the reader's is left to the
//! compiler ([`light`]), and the writer's ([`Barrier::pass`]) interrupts every CPU that runs a thread of this process; a
//! thread that does not run has had its fence when it was switched out. A vCPU in the guest is such a running thread: the
//! interrupt is an exit that KVM serves itself.

use std::sync::atomic::compiler_fence;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Mutex, Ordering, fence, lock};

/// The shortest time from one interrupting barrier to the next. Whoever changes tables as fast as he can, a guest that moves
/// its BARs included, interrupts the other vCPUs no more often; those who wait at the same time share a barrier.
const PACE: Duration = Duration::from_micros(100);

/// How long to wait with a barrier that the kernel has refused. It does so without memory, and in a process that has
/// forbidden itself the call after it had registered: a filter of system calls has to leave it that.
const RETRY: Duration = Duration::from_millis(1);

/// The reader's fence. `fenced`: the readers do it themselves, as no kernel does it for them.
#[inline]
pub(crate) fn light(fenced: bool) {
    if fenced {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// The writer's fence.
#[derive(Debug)]
pub(crate) struct Barrier {
    fenced: bool,
    /// Interrupting barriers that have begun. Raised under `last` only.
    begun: AtomicUsize,
    last: Mutex<Option<Instant>>,
}

impl Barrier {
    /// One that leaves the readers without a fence, where the kernel can do that.
    pub(crate) fn new() -> Self {
        Self::of(!kernel::register())
    }

    fn of(fenced: bool) -> Self {
        Self { fenced, begun: AtomicUsize::new(0), last: Mutex::new(None) }
    }

    /// One for readers that have fences of their own.
    #[cfg(test)]
    pub(crate) fn fenced() -> Self {
        Self::of(true)
    }

    /// What readers have to pass to [`light`].
    pub(crate) fn readers_are_fenced(&self) -> bool {
        self.fenced
    }

    /// When it returns, each reader has seen what this thread stored before, or this thread sees what the reader stored
    /// before its [`light`]. May sleep; not to be called under a lock that a reader takes.
    pub(crate) fn pass(&self) {
        fence(Ordering::SeqCst);
        if self.fenced {
            return;
        }
        let seen = self.begun.load(Ordering::SeqCst);
        let mut last = lock(&self.last);
        if self.begun.load(Ordering::SeqCst) != seen {
            // One that began after this call did has ended meanwhile.
            return;
        }
        if let Some(too_soon) = last.and_then(|last| PACE.checked_sub(last.elapsed())) {
            sleep(too_soon);
        }
        self.begun.store(seen.wrapping_add(1), Ordering::SeqCst);
        // Nothing but the barrier makes it safe to go on.
        let mut is_said = false;
        while let Err(error) = kernel::interrupt() {
            if !std::mem::replace(&mut is_said, true) {
                tracing::error!(%error, "the kernel refuses a memory barrier that it has promised");
            }
            sleep(RETRY);
        }
        *last = Some(Instant::now());
    }
}

#[cfg(not(any(loom, miri)))]
mod kernel {
    use std::io;

    use rustix::thread::{MembarrierCommand, membarrier};

    /// Asks for barriers; whether they can be had.
    pub(super) fn register() -> bool {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }

    /// A full fence on every thread of this process.
    pub(super) fn interrupt() -> io::Result<()> {
        Ok(membarrier(MembarrierCommand::PrivateExpedited)?)
    }
}

/// Neither loom nor miri knows such a barrier: their readers have fences.
#[cfg(any(loom, miri))]
mod kernel {
    use std::io;

    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn interrupt() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
