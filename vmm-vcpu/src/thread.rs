//! `VcpuThread`: a vCPU on a thread of its own, named `vcpuN`.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crate::kick::{KickCell, KickTarget, Requests};
use crate::run_loop::{ExitHandler, VcpuEnd, run};
use crate::run_page::ImmediateExit;
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
}

/// How a kick reaches the thread of a vCPU.
#[derive(Debug)]
struct ThreadTarget {
    immediate_exit: ImmediateExit,
    /// Stored by the thread before it first enters the guest; `KickCell` releases each entry and a kicker acquires it
    /// before it signals.
    tid: AtomicI32,
}

impl KickTarget for ThreadTarget {
    fn set_immediate_exit(&self) {
        self.immediate_exit.set();
    }

    fn take_immediate_exit(&self) -> bool {
        self.immediate_exit.take()
    }

    fn signal(&self) {
        signal::send(self.tid.load(Ordering::Relaxed));
    }
}

/// A running vCPU. Dropped, it is stopped and joined.
#[derive(Debug)]
pub struct VcpuThread {
    kicks: Arc<KickCell<ThreadTarget>>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts a thread that owns `vcpu`, paused: it enters the guest after [`resume`](Self::resume). When the run
    /// loop has ended, for whatever reason, `on_end` is called on that thread with the vCPU still open.
    pub fn spawn<H: ExitHandler + 'static>(
        vcpu: Vcpu,
        handler: Arc<H>,
        on_end: impl FnOnce(&Vcpu, VcpuEnd) + Send + 'static,
    ) -> Result<Self, ThreadError> {
        signal::install_kick_signal().map_err(ThreadError::Signal)?;
        let index = vcpu.index();
        let target = ThreadTarget { immediate_exit: vcpu.immediate_exit(), tid: AtomicI32::new(0) };
        let kicks = Arc::new(KickCell::new(target, Requests::PAUSE));
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn({
                let kicks = Arc::clone(&kicks);
                move || thread_main(vcpu, &*handler, &kicks, on_end)
            })
            .map_err(|source| ThreadError::Spawn { index, source })?;
        Ok(Self { kicks, thread: Some(thread) })
    }

    /// Lets the vCPU enter the guest.
    pub fn resume(&self) {
        self.kicks.withdraw(Requests::PAUSE);
    }

    /// A handle that can only stop.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::downgrade(&self.kicks))
    }

    /// Asks the vCPU to end its run loop; does not wait for it.
    pub fn request_stop(&self) {
        self.kicks.kick(Requests::STOP);
    }
}

/// Asks a vCPU to stop, from any thread, the vCPU's own included, and does not keep it alive.
#[derive(Clone, Debug)]
pub struct StopHandle(Weak<KickCell<ThreadTarget>>);

impl StopHandle {
    /// As [`VcpuThread::request_stop`]; nothing if the vCPU is gone. A vCPU that calls it while it handles an exit does not
    /// enter the guest again.
    pub fn request_stop(&self) {
        if let Some(kicks) = self.0.upgrade() {
            kicks.kick(Requests::STOP);
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

fn thread_main<H: ExitHandler>(
    mut vcpu: Vcpu,
    handler: &H,
    kicks: &KickCell<ThreadTarget>,
    on_end: impl FnOnce(&Vcpu, VcpuEnd),
) {
    kicks.target().tid.store(signal::thread_id(), Ordering::Relaxed);
    let end = match signal::unblock() {
        // The state behind the references is only used further by `on_end`, which reads registers.
        Ok(()) => catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, handler, kicks)))
            .unwrap_or_else(|panic| VcpuEnd::Panicked(panic_message(&*panic))),
        Err(error) => VcpuEnd::RunFailed(error),
    };
    kicks.end();
    on_end(&vcpu, end);
}

/// The text of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
