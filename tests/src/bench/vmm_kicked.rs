//! `KickedVcpus`: this project's own run loop, kicks and mechanisms on threads that say when they have seen a request.
//!
//! A kick is [`KickCell::kick`](vmm_vcpu::KickCell::kick) without a request of the run loop's own; what is wanted is in
//! a [`Mailbox`], and the vCPU's thread looks there one step before the run loop looks at its requests.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm_devices::BusDevice;
use vmm_memory::AddressSpace;
use vmm_vcpu::{
    ExitHandler, Kick, KickTarget, Mechanism, Parking, Requests, Shared, ThreadTarget, Vcpu, run,
};

use crate::bench::buses::{Buses, Status};
use crate::bench::mailbox::{Kicker, Mailbox};
use crate::bench::vcpu_set::{Kickable, LIMIT, Pausable};
use crate::small_machine::SmallMachine;

type Loop = Arc<Shared<Vcpu, Target>>;

/// The vCPUs of a machine. Dropped, they are ended and joined.
pub struct KickedVcpus {
    // Dropped in this order: the memory goes after the vCPUs, which `drop` has joined.
    vcpus: Vec<(Loop, Option<JoinHandle<()>>)>,
    _memory: AddressSpace,
}

impl KickedVcpus {
    /// Makes a machine of `cpus` vCPUs with `guest`, and starts their threads, paused.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn new(guest: &Path, cpus: u32, mechanism: Mechanism) -> anyhow::Result<Self> {
        vmm_vcpu::install_kick_signal().context("the kick signal")?;
        let SmallMachine { vcpus, memory, .. } = SmallMachine::boot(guest, cpus, 0)?;
        let device: Arc<dyn BusDevice> = Arc::new(Status::default());
        let buses = Arc::new(Buses::new(&device)?);
        let mut kicked = Self { vcpus: Vec::new(), _memory: memory };
        for vcpu in vcpus {
            let thread = ThreadTarget::new(mechanism, vcpu.immediate_exit());
            let shared = Arc::new(Shared::new(Target { thread, mailbox: Mailbox::new() }, Requests::PAUSE));
            let (own, buses) = (Arc::clone(&shared), Arc::clone(&buses));
            let thread = std::thread::Builder::new().name(format!("vcpu{}", vcpu.index()));
            let thread = thread.spawn(move || serve(vcpu, &*buses, &own))?;
            kicked.vcpus.push((shared, Some(thread)));
        }
        kicked.pause()?;
        Ok(kicked)
    }
}

impl Pausable for KickedVcpus {
    fn pause(&self) -> anyhow::Result<()> {
        for (shared, _) in &self.vcpus {
            shared.kicks().kick(Requests::PAUSE);
        }
        for (shared, _) in &self.vcpus {
            match shared.kicks().wait_parked(Instant::now() + LIMIT) {
                Parking::Parked => {}
                parking => bail!("a vCPU that was to be paused: {parking:?}"),
            }
        }
        Ok(())
    }

    fn resume(&self) {
        for (shared, _) in &self.vcpus {
            shared.kicks().withdraw(Requests::PAUSE);
        }
    }
}

impl Kickable for KickedVcpus {
    fn kick(&self, vcpu: usize, kicker: Kicker) -> anyhow::Result<Duration> {
        let (shared, _) = self.vcpus.get(vcpu).context("no such vCPU")?;
        let kicks = shared.kicks();
        let asked = kicks.target().mailbox.ask(kicker, || kicks.kick(Requests::none()) != Kick::Gone);
        asked.context("the vCPU has ended")
    }
}

impl Drop for KickedVcpus {
    fn drop(&mut self) {
        for (shared, _) in &self.vcpus {
            shared.kicks().kick(Requests::STOP);
        }
        for thread in self.vcpus.iter_mut().filter_map(|(_, thread)| thread.take()) {
            // A thread that panicked has nothing to say here.
            let _ = thread.join();
        }
    }
}

thread_local! {
    /// Whether this is the thread of a vCPU: kickers go through the steps of the protocol too.
    static RUNS_A_VCPU: Cell<bool> = const { Cell::new(false) };
}

/// A vCPU's thread.
fn serve<H: ExitHandler>(mut vcpu: Vcpu, handler: &H, shared: &Loop) {
    RUNS_A_VCPU.set(true);
    if shared.kicks().target().thread.settle(&vcpu).is_ok() {
        // However it ends: if too early, the next kick or pause says so.
        run(&mut vcpu, handler, shared);
    }
    shared.end();
    shared.kicks().target().mailbox.look();
}

/// The thread, with a look at the mailbox where the run loop is about to look at its requests.
struct Target {
    thread: ThreadTarget,
    mailbox: Mailbox,
}

impl KickTarget for Target {
    fn arm(&self) {
        self.thread.arm();
    }

    fn signal(&self) {
        self.thread.signal();
    }

    fn arm_own(&self) {
        self.thread.arm_own();
    }

    fn disarm(&self) -> bool {
        self.thread.disarm()
    }

    #[inline]
    fn between_steps(&self) {
        if RUNS_A_VCPU.get() {
            self.mailbox.look();
        }
    }
}
