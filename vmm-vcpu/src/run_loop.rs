//! The run loop: enters the guest, sends each exit where it belongs, and listens to requests in between.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vmm_core::Deferred;

use crate::VcpuExit;
use crate::counters::{Counters, LiveCounters};
use crate::kick::{KickCell, KickTarget, Requests};
use crate::run_page::RunPage;
use crate::tasks::Tasks;

/// A vCPU that can be run: KVM's, or a scripted one.
pub trait RunVcpu {
    /// Enters the guest; returns at the next exit, which is then on the page.
    fn run(&mut self) -> io::Result<()>;
    /// The run page.
    fn page(&mut self) -> &mut RunPage;
    /// The guest did not run for a while and did nothing to cause it: it was paused, or the process was stopped.
    fn tell_stopped(&mut self);
    /// KVM refuses to enter the guest until the vCPU's dirty ring has been read.
    ///
    /// # Errors
    /// It cannot be read, or there is none.
    fn dirty_ring_full(&mut self) -> io::Result<()> {
        Err(io::Error::other("the vCPU has no dirty ring that could be full"))
    }
    /// The vCPU was kicked out of the guest: what is in its dirty ring can be read meanwhile.
    ///
    /// # Errors
    /// It cannot be read.
    fn reap_dirty_ring(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// A clock that goes on while the process is stopped, good to a hundredth of a second. Read twice an exit, so it must
    /// be cheap.
    fn now(&self) -> Duration;
}

/// Where the accesses of a guest go. One handler serves every vCPU of a machine at the same time.
///
/// Port accesses carry `data.len() / size` elements, each of which is an access of its own to the same port.
pub trait ExitHandler: Send + Sync {
    /// Fills `data` with what the guest reads from `port`.
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]);
    /// Takes what the guest writes to `port`. `Some`: the access ends when the device says so.
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred>;
    /// Fills `data` with what the guest reads at the guest-physical `address`.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Takes what the guest writes at the guest-physical `address`. `Some`: the access ends when the device says so.
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred>;
    /// The guest has ended the interrupt with `vector`. Only for machines whose I/O APIC is in user space: KVM tells no
    /// others.
    fn end_of_interrupt(&self, vector: u8) {
        let _ = vector;
    }
}

/// Why a vCPU's run loop ended.
#[derive(Debug)]
pub enum VcpuEnd {
    /// It was asked to stop.
    Stopped,
    /// The guest ran into a triple fault.
    TripleFault,
    /// The processor refused to enter the guest, for this reason, on this host CPU.
    FailEntry {
        /// The processor's reason.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// KVM gave up on the guest.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Details by suberror.
        data: [u64; 2],
    },
    /// An exit of this number, which nothing asked for.
    UnexpectedExit(u32),
    /// `KVM_RUN` itself failed.
    RunFailed(io::Error),
    /// The thread panicked, with this message.
    Panicked(String),
}

/// A vCPU's run loop is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vCPU has ended")]
pub struct Ended;

/// How long a vCPU may be out of the guest between two entries before the guest is told. Below it no watchdog of a guest
/// looks.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// The clock of [`RunVcpu::now`]: `CLOCK_MONOTONIC_COARSE`, a few nanoseconds and no system call.
#[inline]
pub fn coarse_now() -> Duration {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// What a run loop shares with the other threads: its kicks, its tasks, its counters.
#[derive(Debug)]
pub struct Shared<V, T> {
    pub(crate) kicks: KickCell<T>,
    pub(crate) tasks: Tasks<V>,
    pub(crate) counters: LiveCounters,
}

impl<V, T: KickTarget> Shared<V, T> {
    /// For a vCPU whose kicks reach `target`, with `requests` open from the beginning.
    pub fn new(target: T, requests: Requests) -> Self {
        let kicks = KickCell::new(target, requests);
        Self { kicks, tasks: Tasks::new(), counters: LiveCounters::default() }
    }

    /// The meeting point with the kickers.
    pub fn kicks(&self) -> &KickCell<T> {
        &self.kicks
    }

    /// Performs `task` on the vCPU's thread, out of the guest with the pending access completed, and waits for its result.
    /// A vCPU whose access is deferred performs it when the access has ended. Not to be called on that thread.
    ///
    /// # Errors
    /// The thread has ended, or ends before it comes to the task.
    pub fn perform<R: Send + 'static>(
        &self,
        task: impl FnOnce(&mut V) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (sender, result) = mpsc::sync_channel(1);
        self.tasks.push(Box::new(move |vcpu| {
            // The receiver waits until it has this or the sender is gone.
            let _ = sender.send(task(vcpu));
        }));
        self.kicks.kick(Requests::TASK);
        result.recv().map_err(|_| Ended)
    }

    /// To be called by the vCPU's thread when its run loop is over: no signal reaches it any longer, and nobody waits for a
    /// task.
    pub fn end(&self) {
        self.kicks.end();
        self.tasks.close();
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters.snapshot(self.kicks.counts())
    }
}

/// Runs `vcpu` until it ends. To be called on the thread that the kicks of `shared` reach.
pub fn run<V, H, T>(vcpu: &mut V, handler: &H, shared: &Arc<Shared<V, T>>) -> VcpuEnd
where
    V: RunVcpu + 'static,
    H: ExitHandler + ?Sized,
    T: KickTarget + 'static,
{
    let mut run = RunLoop { vcpu, handler, shared, pending: false, started: false };
    let mut state = State::Running;
    loop {
        state = match state {
            State::Running => run.running(),
            State::Deferred(access) => run.deferred(access),
            State::RingFull => run.ring_full(),
            State::Completing => run.completing(),
            State::Parked => run.parked(),
            State::Ended(end) => return end,
        };
    }
}

/// Where a vCPU's thread is.
enum State {
    /// In the guest, or serving one of its exits.
    Running,
    /// Asleep until a device lets an access end, and a pause that came meanwhile. Counts as parked: a pause is answered, a stop
    /// is obeyed.
    Deferred(Deferred),
    /// Having the dirty ring emptied, without which KVM does not enter the guest.
    RingFull,
    /// Letting KVM complete the pending access, and those that it leads to.
    Completing,
    /// Out of the guest with nothing pending: performs tasks, sleeps while paused.
    Parked,
    /// Nothing more will run.
    Ended(VcpuEnd),
}

struct RunLoop<'a, V, H: ?Sized, T> {
    vcpu: &'a mut V,
    handler: &'a H,
    shared: &'a Arc<Shared<V, T>>,
    /// The last `KVM_RUN` returned an exit, whose access is completed by the next.
    pending: bool,
    /// The guest has run: it knows a time that can have stood still.
    started: bool,
}

impl<V: RunVcpu + 'static, H: ExitHandler + ?Sized, T: KickTarget + 'static> RunLoop<'_, V, H, T> {
    fn running(&mut self) -> State {
        let mut left = self.vcpu.now();
        loop {
            match self.shared.kicks.enter() {
                Ok(()) => {}
                Err(open) if open.contains(Requests::STOP) => return State::Ended(VcpuEnd::Stopped),
                Err(_) => return State::Completing,
            }
            if self.vcpu.now().saturating_sub(left) > NOTICEABLE {
                self.vcpu.tell_stopped();
            }
            self.started = true;
            let returned = self.vcpu.run();
            self.shared.kicks.leave();
            left = self.vcpu.now();
            if let Some(state) = self.returned(returned) {
                return state;
            }
        }
    }

    /// Lets KVM complete what is pending, until it has nothing more to hand out. A string access or one that crosses a
    /// page takes several entries; none of them runs the guest further than that instruction.
    fn completing(&mut self) -> State {
        while self.pending {
            if self.shared.kicks.open().contains(Requests::STOP) {
                return State::Ended(VcpuEnd::Stopped);
            }
            self.shared.kicks.target().arm_own();
            let returned = self.vcpu.run();
            if let Some(state) = self.returned(returned) {
                return state;
            }
        }
        State::Parked
    }

    fn parked(&mut self) -> State {
        let kicks = &self.shared.kicks;
        let (start, mut slept) = (Instant::now(), false);
        loop {
            if kicks.take(Requests::TASK) {
                while let Some(task) = self.shared.tasks.next() {
                    task(self.vcpu);
                }
            }
            let stay = |open: Requests| {
                open.contains(Requests::PAUSE) && !open.intersects(Requests::STOP | Requests::TASK)
            };
            let open = kicks.open();
            if stay(open) {
                slept = true;
                kicks.park_while(stay);
            } else if !open.contains(Requests::TASK) || open.contains(Requests::STOP) {
                break;
            }
        }
        if slept {
            if self.started {
                self.shared.counters.pause(start.elapsed());
            }
            self.vcpu.tell_stopped();
        }
        State::Running
    }

    fn deferred(&mut self, access: Deferred) -> State {
        self.shared.counters.deferred.add(1);
        let shared = Arc::clone(self.shared);
        access.on_complete(move || {
            shared.kicks.kick(Requests::COMPLETION);
        });
        let left = self.vcpu.now();
        // It may be in a pause when the access ends, and the pause then goes on: whoever has seen it parked relies on that. A
        // task wants the access completed.
        self.shared.kicks.park_while(|open| {
            let holds = open.contains(Requests::PAUSE) && !open.contains(Requests::TASK);
            !open.contains(Requests::STOP) && (holds || !open.contains(Requests::COMPLETION))
        });
        self.shared.kicks.take(Requests::COMPLETION);
        if self.vcpu.now().saturating_sub(left) > NOTICEABLE {
            self.vcpu.tell_stopped();
        }
        State::Running
    }

    fn ring_full(&mut self) -> State {
        match self.vcpu.dirty_ring_full() {
            Ok(()) => State::Running,
            Err(error) => State::Ended(VcpuEnd::RunFailed(error)),
        }
    }

    /// Serves one return of `KVM_RUN`. `Some`: the guest is not to be entered next.
    #[inline]
    fn returned(&mut self, returned: io::Result<()>) -> Option<State> {
        match returned {
            Ok(()) => {
                self.pending = true;
                let exit = VcpuExit::decode(self.vcpu.page());
                self.shared.counters.exit(&exit);
                dispatch(exit, self.handler)
            }
            Err(error) => self.interrupted(error),
        }
    }

    /// Tells a kick from other reasons for which `KVM_RUN` returns an error. `Some`: a real failure.
    #[cold]
    fn interrupted(&mut self, error: io::Error) -> Option<State> {
        match error.raw_os_error() {
            Some(libc::EINTR) => {
                self.pending = false;
                // Taken back before the requests are looked at, which the next entry does.
                if self.shared.kicks.acknowledge() {
                    self.shared.counters.kicked.add(1);
                } else {
                    self.shared.counters.spurious.add(1);
                    self.vcpu.tell_stopped();
                }
                self.vcpu.reap_dirty_ring().err().map(|error| State::Ended(VcpuEnd::RunFailed(error)))
            }
            // A vCPU that waits for INIT and SIPI was woken and must be entered again.
            Some(libc::EAGAIN) => {
                self.shared.counters.woken_for_startup.add(1);
                None
            }
            _ => Some(State::Ended(VcpuEnd::RunFailed(error))),
        }
    }
}

/// Sends one exit where it belongs. `Some`: the guest is not to be entered next.
#[inline]
fn dispatch<H: ExitHandler + ?Sized>(exit: VcpuExit<'_>, handler: &H) -> Option<State> {
    let end = match exit {
        VcpuExit::PortRead { port, size, data } => {
            handler.port_read(port, size, data);
            return None;
        }
        VcpuExit::PortWrite { port, size, data } => {
            return handler.port_write(port, size, data).map(State::Deferred);
        }
        VcpuExit::MmioRead { address, data } => {
            handler.mmio_read(address, data);
            return None;
        }
        VcpuExit::MmioWrite { address, data } => {
            return handler.mmio_write(address, data).map(State::Deferred);
        }
        VcpuExit::EndOfInterrupt { vector } => {
            handler.end_of_interrupt(vector);
            return None;
        }
        VcpuExit::Interrupted => return None,
        VcpuExit::DirtyRingFull => return Some(State::RingFull),
        VcpuExit::Shutdown => VcpuEnd::TripleFault,
        VcpuExit::FailEntry { reason, cpu } => VcpuEnd::FailEntry { reason, cpu },
        VcpuExit::InternalError { suberror, data } => VcpuEnd::InternalError { suberror, data },
        VcpuExit::Unexpected(number) => VcpuEnd::UnexpectedExit(number),
    };
    Some(State::Ended(end))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
