//! `Renewal`: the thread `renewal`, which makes a machine ready for each life but the first.
//!
//! By then the process may do less than before, and each thread only what is its job: what a new life takes of the kernel, the
//! main thread need not be able to do. It hands over the chassis and gets back a machine.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use anyhow::{Context, anyhow};
use nix::sys::eventfd::EventFd;
use vmm_core::VmEvents;
use vmm_core::thread::spawn_scoped;
use vmm_memory::Backing;

use crate::machine::calls::RENEWAL;
use crate::machine::{Chassis, Machine, Resources};
use crate::memory;
use crate::outcome::Failure;

/// A machine that waits to be resumed, and what it tells.
pub(crate) struct Built {
    pub(crate) machine: Machine,
    pub(crate) events: VmEvents,
}

/// What the thread has come to. `None`: it was asked to stop before there was a machine.
type Outcome = Result<Option<Built>, Failure>;

/// The other side of the thread, which ends when this is dropped.
pub(crate) struct Renewal {
    work: Sender<Chassis>,
    done: Receiver<Outcome>,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    /// Signalled when there is an outcome, or will be none.
    ready: EventFd,
}

impl Renewal {
    /// Starts the thread, which builds of `resources` and has guest memory made of `backing`.
    ///
    /// # Errors
    /// The host gives no thread or no eventfd.
    pub(crate) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        resources: &'env Resources<'env>,
        backing: &'env Backing,
    ) -> Result<Self, Failure> {
        let ready = EventFd::new().context("an eventfd").map_err(Failure::host_cannot)?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), ready });
        let (work, todo) = channel::<Chassis>();
        let (tell, done) = channel();
        let thread = {
            let shared = Arc::clone(&shared);
            move || {
                let _ended = Ready(&shared.ready);
                for chassis in todo {
                    let outcome = renew(chassis, resources, backing, &shared.stop);
                    // Fails when nobody wants it any more.
                    if tell.send(outcome).is_err() {
                        return;
                    }
                    drop(Ready(&shared.ready));
                }
            }
        };
        let started = spawn_scoped(scope, &RENEWAL, RENEWAL.name, thread);
        started.context("a thread").map_err(Failure::host_cannot)?;
        Ok(Self { work, done, shared })
    }

    /// Has a machine made of `chassis`. Its end is [`ready`](Self::ready), and then taken.
    pub(crate) fn begin(&self, chassis: Chassis) {
        // Fails when the thread has ended, which `take` says.
        let _ = self.work.send(chassis);
    }

    /// Readable when there is a machine to take.
    pub(crate) fn ready(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    /// Waits for the machine, no longer than for the next chunk of memory if it is to `stop`.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn take(&self, stop: bool) -> Outcome {
        self.shared.stop.store(stop, Ordering::Relaxed);
        let outcome = self.done.recv();
        // There is something to read by now, or will be at once.
        let _ = self.shared.ready.read();
        outcome.unwrap_or_else(|_| {
            Err(Failure::internal(anyhow!("the thread that renews the machine panicked")))
        })
    }
}

/// Says that there is something to look at, when it is dropped.
struct Ready<'a>(&'a EventFd);

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        // It fails only where the count is at its end.
        let _ = self.0.write(1);
    }
}

fn renew(mut chassis: Chassis, resources: &Resources<'_>, backing: &Backing, stop: &AtomicBool) -> Outcome {
    // A process that serves a device may still have requests of the last life in hand.
    let anew = !resources.back_ends.is_empty();
    let ram = chassis.take_ram();
    let Some(ram) = memory::renew(backing, ram, anew, &|| stop.load(Ordering::Relaxed))? else {
        return Ok(None);
    };
    let events = VmEvents::new().context("an eventfd").map_err(Failure::host_cannot)?;
    let machine = Machine::build(chassis.renew(ram)?, resources, &events)?;
    Ok(Some(Built { machine, events }))
}
