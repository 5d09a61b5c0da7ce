//! `Vcpus`: all vCPUs of a machine, paused and resumed as one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::kick::Parking;
use crate::thread::{StopHandle, VcpuGone, VcpuThread};
use crate::vcpu::Vcpu;

/// Why the vCPUs of a machine are not paused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// One has not left the guest or the device it is in. The pause stays asked for: to wait further, pause again; to give
    /// it up, resume.
    #[error("vCPU {index} has not answered within {limit:?}")]
    NoAnswer {
        /// The first that has not.
        index: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// They were resumed before all had answered.
    #[error("the vCPUs were resumed meanwhile")]
    Resumed,
    /// One has ended, and with it the machine.
    #[error("vCPU {index} has ended")]
    Ended {
        /// The first that has.
        index: u32,
    },
    /// The caller is a vCPU, which would wait for itself.
    #[error("vCPU {index} cannot wait for itself")]
    OwnThread {
        /// The caller.
        index: u32,
    },
}

/// The vCPUs of one machine. Every method may be called from any thread at any time. Dropped, they are stopped and
/// joined.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<VcpuThread>,
    /// Locked while all vCPUs are asked, so that of a pause and a resume at the same time one comes wholly after the other;
    /// never while somebody waits.
    pause: Mutex<Pause>,
}

/// Why vCPUs are not in the guest.
#[derive(Debug)]
struct Pause {
    /// A pause is asked for.
    wanted: bool,
    /// Holds that have not been let go.
    holds: usize,
}

impl Vcpus {
    /// Takes `threads`, which are paused as [`VcpuThread::spawn`] leaves them.
    #[must_use]
    pub fn new(threads: Vec<VcpuThread>) -> Self {
        Self { threads, pause: Mutex::new(Pause { wanted: true, holds: 0 }) }
    }

    /// Takes every vCPU out of the guest. When it returns `Ok`, each is parked with its pending access completed, and stays
    /// so until [`resume`](Self::resume); one whose access a device has deferred is parked with it. Paused already is
    /// fine.
    ///
    /// # Errors
    /// See [`PauseError`]; `limit` is how long all of them together may take.
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.refuse_own_thread()?;
        self.ask(|pause| pause.wanted = true);
        self.wait_parked(limit)
    }

    /// Lets every vCPU enter the guest, unless somebody [holds](Self::hold) them. Each tells its guest that it was stopped
    /// before it does so. Running already is fine.
    pub fn resume(&self) {
        self.ask(|pause| pause.wanted = false);
    }

    /// Takes every vCPU out of the guest as [`pause`](Self::pause) does, for work that must not be seen from outside: a
    /// resume takes effect only when [`let_go`](Self::let_go) has been called as often as this, and a machine that was paused
    /// stays so then.
    ///
    /// # Errors
    /// See [`PauseError`], but for [`PauseError::Resumed`]; nobody is held then.
    pub fn hold(&self, limit: Duration) -> Result<(), PauseError> {
        self.refuse_own_thread()?;
        self.ask(|pause| pause.holds = pause.holds.saturating_add(1));
        self.wait_parked(limit).inspect_err(|_| self.let_go())
    }

    /// Ends one [`hold`](Self::hold).
    pub fn let_go(&self) {
        self.ask(|pause| pause.holds = pause.holds.saturating_sub(1));
    }

    fn refuse_own_thread(&self) -> Result<(), PauseError> {
        match self.threads.iter().find(|thread| thread.is_current()) {
            Some(own) => Err(PauseError::OwnThread { index: own.index() }),
            None => Ok(()),
        }
    }

    /// Asks all vCPUs for what the pause is after `change`.
    fn ask(&self, change: impl FnOnce(&mut Pause)) {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut pause);
        if pause.wanted || pause.holds != 0 {
            // All are asked before the first is waited for.
            for thread in &self.threads {
                thread.request_pause();
            }
        } else {
            self.threads.iter().for_each(VcpuThread::resume);
        }
    }

    fn wait_parked(&self, limit: Duration) -> Result<(), PauseError> {
        let now = Instant::now();
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        for thread in &self.threads {
            let index = thread.index();
            match thread.wait_parked(deadline) {
                Parking::Parked => {}
                Parking::Resumed => return Err(PauseError::Resumed),
                Parking::Gone => return Err(PauseError::Ended { index }),
                Parking::Late => return Err(PauseError::NoAnswer { index, limit }),
            }
        }
        Ok(())
    }

    /// Whether a pause is asked for, and whether every vCPU has answered.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        if !self.pause.lock().unwrap_or_else(PoisonError::into_inner).wanted {
            return RunState::Running;
        }
        let now = Instant::now();
        if self.threads.iter().all(|thread| thread.wait_parked(now) == Parking::Parked) {
            RunState::Paused
        } else {
            RunState::Pausing
        }
    }

    /// Performs `task` with vCPU `index` on its own thread; see [`VcpuThread::perform`].
    ///
    /// # Errors
    /// There is no such vCPU, or it has ended.
    pub fn perform<R: Send + 'static>(
        &self,
        index: u32,
        task: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, VcpuGone> {
        let thread = self.threads.iter().find(|thread| thread.index() == index);
        thread.ok_or(VcpuGone { index })?.perform(task)
    }

    /// What each vCPU has counted.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        self.threads.iter().map(VcpuThread::counters).collect()
    }

    /// Asks all vCPUs to end; does not wait for them.
    pub fn request_stop(&self) {
        self.threads.iter().for_each(VcpuThread::request_stop);
    }

    /// Ends all vCPUs and joins their threads.
    pub fn stop(&mut self) {
        // All are asked before the first is joined.
        self.request_stop();
        self.threads.clear();
    }

    /// The same, and returns the vCPUs by index. One is missing whose thread has panicked where that is not caught.
    #[must_use]
    pub fn end(&mut self) -> Vec<Vcpu> {
        self.request_stop();
        let mut vcpus: Vec<_> = self.threads.drain(..).filter_map(VcpuThread::end).collect();
        vcpus.sort_unstable_by_key(Vcpu::index);
        vcpus
    }

    /// A handle for each vCPU that can only stop it.
    #[must_use]
    pub fn stop_handles(&self) -> Vec<StopHandle> {
        self.threads.iter().map(VcpuThread::stop_handle).collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What [`Vcpus::run_state`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// No pause is asked for.
    Running,
    /// Some vCPU has yet to answer.
    Pausing,
    /// No vCPU is in the guest.
    Paused,
}
