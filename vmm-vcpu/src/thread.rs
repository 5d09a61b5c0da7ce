//! `VcpuThread`: a vCPU on a thread of its own, named `vcpuN`.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use vmm_core::thread::{Kind, spawn_prepared};

use crate::calls::VCPU;
use crate::counters::Counters;
use crate::kick::{Kick, Parking, Requests};
use crate::mechanism::{Mechanism, ThreadTarget};
use crate::placement::{Placement, PlacementError};
use crate::run_loop::{Ended, ExitHandler, Shared, VcpuEnd, run};
use crate::signal;
use crate::vcpu::Vcpu;

/// Why a vCPU thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The handler of the kick signal cannot be installed.
    #[error("cannot install the handler of the kick signal")]
    Signal(#[source] io::Error),
    /// The host gives no thread.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// The vCPU.
        index: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It does not get its place on the host.
    #[error("the thread of vCPU {index}")]
    Placement {
        /// The vCPU.
        index: u32,
        /// What it does not get.
        #[source]
        source: PlacementError,
    },
}

/// A vCPU's thread has ended, so that nothing can be done with the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("vCPU {index} has ended")]
pub struct VcpuGone {
    /// The vCPU.
    pub index: u32,
}

/// How a vCPU's thread is set up.
#[derive(Clone, Copy, Debug)]
pub struct ThreadOptions {
    /// How kicks interrupt `KVM_RUN`.
    pub mechanism: Mechanism,
    /// Where and how it runs on the host.
    pub placement: Placement,
    /// What it may ask of the kernel: the tables of [`VCPU`], and what the handler of its exits needs.
    pub kind: &'static Kind,
}

impl Default for ThreadOptions {
    fn default() -> Self {
        Self { mechanism: Mechanism::default(), placement: Placement::default(), kind: &VCPU }
    }
}

/// A running vCPU. Dropped, it is stopped and joined.
#[derive(Debug)]
pub struct VcpuThread {
    shared: Arc<Shared<Vcpu, ThreadTarget>>,
    index: u32,
    thread: Option<JoinHandle<Vcpu>>,
}

impl VcpuThread {
    /// Starts a thread that owns `vcpu`, paused: it enters the guest after [`resume`](Self::resume). When the run
    /// loop has ended, for whatever reason, `on_end` is called on that thread with the vCPU still open.
    ///
    /// # Errors
    /// See [`ThreadError`]; there is no thread then, and `on_end` was not called.
    pub fn spawn<H: ExitHandler + 'static>(
        vcpu: Vcpu,
        handler: Arc<H>,
        options: ThreadOptions,
        on_end: impl FnOnce(&Vcpu, VcpuEnd) + Send + 'static,
    ) -> Result<Self, ThreadError> {
        signal::install_kick_signal().map_err(ThreadError::Signal)?;
        let index = vcpu.index();
        let target = ThreadTarget::new(options.mechanism, vcpu.immediate_exit());
        let shared = Arc::new(Shared::new(target, Requests::PAUSE));
        let (report, placed) = mpsc::sync_channel(1);
        let prepare = {
            let shared = Arc::clone(&shared);
            move || settle(vcpu, shared.kicks.target(), options.placement, &report)
        };
        let body = {
            let shared = Arc::clone(&shared);
            move |settled| thread_main(settled, &*handler, &shared, on_end)
        };
        let thread = spawn_prepared(options.kind, format!("vcpu{index}"), prepare, body)
            .map_err(|source| ThreadError::Spawn { index, source })?;
        let thread = Self { shared, index, thread: Some(thread) };
        if options.placement != Placement::default() {
            // A thread that has ended without a report has panicked; what that means its end will say.
            placed.recv().unwrap_or(Ok(())).map_err(|source| ThreadError::Placement { index, source })?;
        }
        Ok(thread)
    }

    /// The number of the vCPU.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Asks the vCPU to leave the guest and to stay out; does not wait for it.
    pub fn request_pause(&self) -> Kick {
        self.shared.kicks.kick(Requests::PAUSE)
    }

    /// Waits until the vCPU, after [`request_pause`](Self::request_pause), is out of the guest with its pending access
    /// completed; not longer than to `deadline`. Not to be called on the vCPU's own thread.
    pub fn wait_parked(&self, deadline: Instant) -> Parking {
        self.shared.kicks.wait_parked(deadline)
    }

    /// Lets the vCPU enter the guest.
    pub fn resume(&self) {
        self.shared.kicks.withdraw(Requests::PAUSE);
    }

    /// As [`Shared::perform`], for this vCPU.
    ///
    /// # Errors
    /// The thread has ended, or ends before it comes to the task.
    pub fn perform<R: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, VcpuGone> {
        self.shared.perform(task).map_err(|Ended| VcpuGone { index: self.index })
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// A handle that can only stop.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::downgrade(&self.shared))
    }

    /// Asks the vCPU to end its run loop; does not wait for it.
    pub fn request_stop(&self) {
        self.shared.kicks.kick(Requests::STOP);
    }

    /// Ends the run loop, joins the thread and returns the vCPU as it was left, perhaps with an access that is not completed;
    /// `None` if the thread has panicked in `on_end`.
    #[must_use]
    pub fn end(mut self) -> Option<Vcpu> {
        self.request_stop();
        self.thread.take()?.join().ok()
    }

    /// Whether the calling thread is this vCPU's.
    pub(crate) fn is_current(&self) -> bool {
        self.shared.kicks.target().is_current_thread()
    }
}

/// Asks a vCPU to stop, from any thread, the vCPU's own included, and does not keep it alive.
#[derive(Clone, Debug)]
pub struct StopHandle(Weak<Shared<Vcpu, ThreadTarget>>);

impl StopHandle {
    /// As [`VcpuThread::request_stop`]; nothing if the vCPU is gone. A vCPU that calls it while it handles an exit does not
    /// enter the guest again.
    pub fn request_stop(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.kicks.kick(Requests::STOP);
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the run loop was caught and reported by the thread; one of `on_end` cannot be.
            let _ = thread.join();
        }
    }
}

/// A vCPU on its thread, where kicks reach it, or an error.
struct Settled {
    vcpu: Vcpu,
    reached: io::Result<()>,
    is_placed: bool,
}

/// What a vCPU's thread does before it is confined.
fn settle(
    mut vcpu: Vcpu,
    target: &ThreadTarget,
    placement: Placement,
    report: &SyncSender<Result<(), PlacementError>>,
) -> Settled {
    let reached = target.settle(&vcpu);
    // A thread that kicks do not reach cannot even enter and return.
    let placed = if reached.is_ok() { placement.take(&mut vcpu, target) } else { Ok(()) };
    let is_placed = placed.is_ok();
    // Fails when nobody waits for it.
    let _ = report.send(placed);
    Settled { vcpu, reached, is_placed }
}

fn thread_main<H: ExitHandler>(
    settled: Settled,
    handler: &H,
    shared: &Arc<Shared<Vcpu, ThreadTarget>>,
    on_end: impl FnOnce(&Vcpu, VcpuEnd),
) -> Vcpu {
    let Settled { mut vcpu, reached, is_placed } = settled;
    if !is_placed {
        shared.end();
        return vcpu;
    }
    let end = match reached {
        // The state behind the references is only used further by `on_end`, which reads registers.
        Ok(()) => catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, handler, shared)))
            .unwrap_or_else(|panic| VcpuEnd::Panicked(panic_message(&*panic))),
        Err(error) => VcpuEnd::RunFailed(error),
    };
    shared.end();
    on_end(&vcpu, end);
    vcpu
}

/// The text of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
