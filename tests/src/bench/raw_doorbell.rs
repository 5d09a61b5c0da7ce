//! The raw baseline of the doorbell benchmark: a loop over `KVM_RUN`, an eventfd, and a thread that reads it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::KVM_EXIT_MMIO;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bench::doorbells::{
    ANSWER, Answer, Arrivals, BURST, COUNT, Counted, DONE_PORT, PIN, Rings, WHERE, Way,
};
use crate::bench::raw_vcpu::{RawExit, RawVcpu};
use crate::bench::raw_vm::{self, RawHandle};

/// A machine whose guest rings.
#[derive(Debug)]
pub struct RawDoorbell {
    service: Option<Service>,
    doorbell: Arc<EventFd>,
    vcpu: RawVcpu,
    machine: Arc<RawHandle>,
    way: Way,
    rung: u64,
    returns: u64,
}

impl RawDoorbell {
    /// Makes the machine of `way`, with the guest from the directory `guests`.
    ///
    /// # Errors
    ///
    /// A system call fails.
    pub fn boot(guests: &Path, way: Way) -> Result<Self> {
        let vcpu = raw_vm::boot(&guests.join(way.guest).with_extension("elf"))?;
        let machine = Arc::new(RawHandle::of(&vcpu));
        // Somebody sleeps in the read, or nobody reads until the end.
        let blocking = if way.answer == Answer::None { EfdFlags::EFD_NONBLOCK } else { EfdFlags::empty() };
        let doorbell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | blocking)?);
        if way.is_in_kernel {
            machine.ioeventfd(&way.shape, &doorbell).context("the ioeventfd")?;
        }
        machine.set_word(WHERE, u32::try_from(way.shape.address)?);
        let service = match way.answer {
            Answer::None => None,
            Answer::Memory => Some(Service::spawn(&doorbell, &machine, None)),
            Answer::Interrupt => Some(Service::spawn(&doorbell, &machine, Some(machine.irqfd(PIN, None)?))),
        };
        Ok(Self { service, doorbell, vcpu, machine, way, rung: 0, returns: 0 })
    }
}

impl Rings for RawDoorbell {
    fn step(&mut self, rings: u32) -> Result<Duration> {
        ensure!(rings.is_multiple_of(BURST), "{rings} rings");
        if let Some(service) = &self.service {
            service.arrivals.begin(rings);
        }
        self.machine.set_word(COUNT, rings);
        let start = Instant::now();
        loop {
            self.vcpu.enter()?;
            match self.vcpu.exit() {
                RawExit::Out { port: DONE_PORT, .. } => break,
                RawExit::Out { .. } | RawExit::Other(KVM_EXIT_MMIO) if !self.way.is_in_kernel => {
                    self.returns += 1;
                    self.doorbell.write(1)?;
                }
                exit => bail!("{exit:?}"),
            }
        }
        self.rung += u64::from(rings);
        Ok(start.elapsed())
    }

    fn trips(&self) -> Vec<f64> {
        self.service.as_ref().map(|service| service.arrivals.trips()).unwrap_or_default()
    }

    fn counted(&self) -> Result<Counted> {
        let counted = match &self.service {
            // All were read.
            Some(_) => 0,
            None => match self.doorbell.read() {
                Err(Errno::EAGAIN) => 0,
                read => read?,
            },
        };
        Ok(Counted { rung: self.rung, counted, returns: self.returns })
    }
}

/// The thread that answers.
#[derive(Debug)]
struct Service {
    arrivals: Arc<Arrivals>,
    stop: Arc<AtomicBool>,
    doorbell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// One that answers by `irq`, or else in memory.
    fn spawn(doorbell: &Arc<EventFd>, machine: &Arc<RawHandle>, irq: Option<EventFd>) -> Self {
        let (arrivals, stop) = (Arc::new(Arrivals::default()), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (arrivals, stop) = (Arc::clone(&arrivals), Arc::clone(&stop));
            let (doorbell, machine) = (Arc::clone(doorbell), Arc::clone(machine));
            let mut answered = 0_u64;
            move || {
                while let Ok(rings) = doorbell.read()
                    && !stop.load(Ordering::Relaxed)
                {
                    arrivals.note();
                    match &irq {
                        // As an interrupt that gets lost would be: the guest waits for ever.
                        Some(irq) => drop(irq.write(1)),
                        None => {
                            answered += rings;
                            // As wide as the guest's register.
                            machine.set_word(ANSWER, (answered & 0xffff_ffff) as u32);
                        }
                    }
                }
            }
        });
        Self { arrivals, stop, doorbell: Arc::clone(doorbell), thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.doorbell.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It has no result.
            let _ = thread.join();
        }
    }
}
