//! `Ringing`: this project's own parts under a guest that rings a doorbell as often as it is told, on the calling thread,
//! and what is counted on both sides.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::irq::IrqLine;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Deferred, Vm, VmEvents};
use vmm_devices::{Bus, BusDevice, Doorbell, Handler, Progress, Worker};
use vmm_memory::AddressSpace;
use vmm_vcpu::{Counters, ExitHandler, Requests, Shared, Vcpu, VcpuEnd, run};

use crate::bench::doorbells::{
    ANSWER, Answer, Arrivals, BURST, COUNT, Counted, DONE_PORT, PIN, Rings, WHERE, Way,
};
use crate::bench::scripted_exits::NoTarget;
use crate::harness::until;
use crate::small_machine::SmallMachine;

/// Rings of a step while something else is done.
const RINGS: u32 = 100;

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The device's register: it rings the doorbell for writes that KVM has not taken.
struct Register {
    doorbell: Doorbell,
    exits: AtomicU64,
}

impl BusDevice for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.exits.fetch_add(1, Ordering::Relaxed);
        self.doorbell.ring();
    }
}

/// The machine's buses, and the device on one of them: what may change while the guest rings.
pub struct Board {
    pio: Bus,
    mmio: Bus,
    register: Arc<Register>,
    memory: Arc<AddressSpace>,
    shared: Arc<Shared<Vcpu, NoTarget>>,
    steps: AtomicU64,
}

impl ExitHandler for Board {
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.pio.read(port.into(), size, data);
    }
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        if port != DONE_PORT {
            return self.pio.write(port.into(), size, data);
        }
        self.steps.fetch_add(1, Ordering::Release);
        self.shared.kicks().kick(Requests::STOP);
        None
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.mmio.read(address, data.len(), data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.mmio.write(address, data.len(), data)
    }
}

impl Board {
    /// The doorbell.
    #[must_use]
    pub fn doorbell(&self) -> &Doorbell {
        &self.register.doorbell
    }

    /// Moves the register and its doorbell: the guest is told the new address before KVM takes writes there, and KVM lets
    /// go of the old one while the guest may still write to it.
    ///
    /// # Errors
    ///
    /// The bus or KVM refuses, or the guest does not follow.
    pub fn move_to(&self, from: DoorbellAddress, to: u64) -> Result<()> {
        self.insert(from.space, to)?;
        self.set(WHERE, u32::try_from(to)?)?;
        self.doorbell().rebind(DoorbellAddress { address: to, ..from })?;
        self.wait_for_steps(2)?;
        self.bus(from.space).remove(from.address)?.wait()?;
        Ok(())
    }

    /// Waits until the guest has come `steps` times to the end of what it was told.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn wait_for_steps(&self, steps: u64) -> Result<()> {
        let made = || self.steps.load(Ordering::Acquire);
        let start = made();
        until(Instant::now() + DEADLINE, "rings", || Ok((made() - start >= steps).then_some(())))
    }

    fn bus(&self, space: DoorbellSpace) -> &Bus {
        match space {
            DoorbellSpace::Pio => &self.pio,
            DoorbellSpace::Mmio => &self.mmio,
        }
    }

    fn insert(&self, space: DoorbellSpace, at: u64) -> Result<()> {
        let device = Arc::clone(&self.register) as Arc<dyn BusDevice>;
        Ok(self.bus(space).insert(at, 4, "doorbell", device)?)
    }

    fn set(&self, word: usize, value: u32) -> Result<()> {
        Ok(self.memory.memory().write_obj(value, GuestAddress(word as u64))?)
    }
}

/// A machine whose guest rings.
pub struct Ringing {
    // Dropped in this order: the vCPU before the memory.
    vcpu: Vcpu,
    service: Option<Service>,
    board: Arc<Board>,
    rung: u64,
}

impl Ringing {
    /// Makes the machine of `way`, with the guest from the directory `guests`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot(guests: &Path, way: Way) -> Result<Self> {
        let guest = guests.join(way.guest).with_extension("elf");
        let SmallMachine { mut vcpus, memory, router, vm } = SmallMachine::boot(&guest, 1, 0)?;
        let memory = Arc::new(memory);
        let host = way.is_in_kernel.then(|| Arc::<Vm>::clone(&vm) as Arc<dyn DoorbellFds>);
        let doorbell = Doorbell::new(host, way.shape.address)?;
        doorbell.rebind(way.shape)?;
        let service = match way.answer {
            Answer::None => None,
            Answer::Memory => Some(Service::start(&doorbell, &memory, None)?),
            Answer::Interrupt => {
                Some(Service::start(&doorbell, &memory, Some(router.edge_line(PIN, "answer")?))?)
            }
        };
        let board = Board {
            pio: Bus::new("pio"),
            mmio: Bus::new("mmio"),
            register: Arc::new(Register { doorbell, exits: AtomicU64::new(0) }),
            memory,
            shared: Arc::new(Shared::new(NoTarget, Requests::none())),
            steps: AtomicU64::new(0),
        };
        board.insert(way.shape.space, way.shape.address)?;
        board.set(WHERE, u32::try_from(way.shape.address)?)?;
        let vcpu = vcpus.pop().context("a vCPU")?;
        Ok(Self { vcpu, service, board: Arc::new(board), rung: 0 })
    }

    /// What the vCPU has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.board.shared.counters()
    }

    /// Makes a change while the guest rings, step after step.
    ///
    /// # Errors
    ///
    /// Those of the change and of the steps.
    pub fn while_ringing(&mut self, change: impl FnOnce(&Board) -> Result<()>) -> Result<()> {
        let (board, is_over) = (Arc::clone(&self.board), AtomicBool::new(false));
        thread::scope(|scope| {
            let ringing = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    self.step(RINGS)?;
                }
                Ok(())
            });
            let changed = change(&board);
            is_over.store(true, Ordering::Relaxed);
            match ringing.join() {
                Ok(rung) => rung.and(changed),
                Err(_) => bail!("the guest's thread panicked"),
            }
        })
    }
}

impl Rings for Ringing {
    fn step(&mut self, rings: u32) -> Result<Duration> {
        ensure!(rings.is_multiple_of(BURST), "{rings} rings");
        if let Some(service) = &self.service {
            service.arrivals.begin(rings);
        }
        self.board.set(COUNT, rings)?;
        let start = Instant::now();
        let end = run(&mut self.vcpu, &*self.board, &self.board.shared);
        let elapsed = start.elapsed();
        let VcpuEnd::Stopped = end else { bail!("the vCPU ended: {end:?}") };
        self.board.shared.kicks().withdraw(Requests::STOP);
        self.rung += u64::from(rings);
        Ok(elapsed)
    }

    fn trips(&self) -> Vec<f64> {
        self.service.as_ref().map(|service| service.arrivals.trips()).unwrap_or_default()
    }

    fn counted(&self) -> Result<Counted> {
        let board = &self.board;
        ensure!(board.pio.unclaimed() == 0 && board.mmio.unclaimed() == 0, "rings into a hole");
        // Refused: nothing was counted, or all was answered.
        let counted = board.doorbell().eventfd().read().unwrap_or(0);
        Ok(Counted { rung: self.rung, counted, returns: board.register.exits.load(Ordering::Relaxed) })
    }
}

/// The worker that answers.
struct Service {
    arrivals: Arc<Arrivals>,
    _handler: Handler,
    _worker: Worker,
    _line: Option<IrqLine>,
}

impl Service {
    /// One that answers by `line`, or else in memory.
    fn start(doorbell: &Doorbell, memory: &Arc<AddressSpace>, line: Option<IrqLine>) -> Result<Self> {
        let arrivals = Arc::new(Arrivals::default());
        let worker = Worker::spawn(&vmm_devices::calls::SELFTEST, VmEvents::new()?)?;
        let trigger = line.as_ref().map(IrqLine::trigger);
        let serve = {
            let (arrivals, memory) = (Arc::clone(&arrivals), Arc::clone(memory));
            let mut answered = 0_u64;
            move |rings| {
                arrivals.note();
                match &trigger {
                    Some(trigger) => trigger.trigger(),
                    None => {
                        answered += rings;
                        // As wide as the guest's register. The word is in RAM.
                        let word = (answered & 0xffff_ffff) as u32;
                        let _ = memory.memory().store(word, GuestAddress(ANSWER as u64), Ordering::Release);
                    }
                }
                Progress::Done
            }
        };
        let handler = worker.add("answers", doorbell.eventfd(), serve, || ())?;
        Ok(Self { arrivals, _handler: handler, _worker: worker, _line: line })
    }
}
