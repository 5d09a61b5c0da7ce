//! `Mechanism`: the two ways in which a kick reaches a vCPU that is in `KVM_RUN`, behind one type.
//!
//! * `ImmediateExit` (`KVM_CAP_IMMEDIATE_EXIT`, Linux 4.12): the signal is let through to the thread at all times and its
//!   handler does nothing; a byte on the run page makes the next `KVM_RUN` return if the signal came before it. The
//!   run path pays nothing.
//! * `SignalMask` (`KVM_SET_SIGNAL_MASK`): the signal is blocked in the thread and let through inside `KVM_RUN` only, so
//!   that one that comes early is still pending there; it is consumed after `EINTR`. KVM changes the thread's mask
//!   twice in each `KVM_RUN`, under the lock that all threads of the process share.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::Vcpu;
use crate::kick::KickTarget;
use crate::run_page::ImmediateExit;
use crate::signal;

/// How a kick interrupts `KVM_RUN`. See the module documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// A byte on the run page, and a signal.
    #[default]
    ImmediateExit,
    /// A signal that is blocked outside `KVM_RUN`.
    SignalMask,
}

/// The thread of a vCPU, as its kickers reach it. Needs [`install_kick_signal`](crate::install_kick_signal).
#[derive(Debug)]
pub struct ThreadTarget {
    mechanism: Mechanism,
    immediate_exit: ImmediateExit,
    /// This process.
    pid: u32,
    /// Stored by the thread before it first enters the guest; `KickCell` releases each entry and a kicker acquires it
    /// before it signals.
    tid: AtomicI32,
}

impl ThreadTarget {
    /// The target for a vCPU whose thread has yet to start.
    #[must_use]
    pub fn new(mechanism: Mechanism, immediate_exit: ImmediateExit) -> Self {
        Self { mechanism, immediate_exit, pid: std::process::id(), tid: AtomicI32::new(0) }
    }

    /// Makes the calling thread the one that kicks reach; it is about to run `vcpu`.
    ///
    /// # Errors
    /// Its signal mask cannot be changed, or that of `KVM_RUN`.
    pub fn settle(&self, vcpu: &Vcpu) -> io::Result<()> {
        match self.mechanism {
            Mechanism::ImmediateExit => signal::unblock()?,
            Mechanism::SignalMask => {
                let unblocked = signal::block()?;
                vcpu.set_signal_mask(unblocked)?;
            }
        }
        self.tid.store(signal::thread_id(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether the calling thread is the one that kicks reach.
    pub(crate) fn is_current_thread(&self) -> bool {
        self.tid.load(Ordering::Relaxed) == signal::thread_id()
    }
}

impl KickTarget for ThreadTarget {
    fn arm(&self) {
        match self.mechanism {
            Mechanism::ImmediateExit => self.immediate_exit.set(),
            Mechanism::SignalMask => {}
        }
    }

    fn signal(&self) {
        signal::send(self.pid, self.tid.load(Ordering::Relaxed));
    }

    fn arm_own(&self) {
        match self.mechanism {
            Mechanism::ImmediateExit => self.immediate_exit.set(),
            Mechanism::SignalMask => self.signal(),
        }
    }

    fn disarm(&self) -> bool {
        match self.mechanism {
            Mechanism::ImmediateExit => self.immediate_exit.take(),
            Mechanism::SignalMask => signal::consume(),
        }
    }
}
