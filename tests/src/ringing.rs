//! `Ringing`: a guest that rings a doorbell as fast as it can, and what is counted on both sides.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{Deferred, Vm};
use vmm_devices::{Bus, BusDevice, Doorbell};
use vmm_memory::AddressSpace;
use vmm_vcpu::{Counters, ExitHandler, ThreadOptions, VcpuThread};

use crate::harness::until;
use crate::small_machine::SmallMachine;

/// The words of `guests/rings.inc`.
const WHERE: GuestAddress = GuestAddress(0x9000);
const USED: GuestAddress = GuestAddress(0x9004);
const RUNG: GuestAddress = GuestAddress(0x9008);
const STOP: GuestAddress = GuestAddress(0x900c);

/// What the guest writes.
pub const VALUE: u64 = 7;

/// The guest's way to say that it has stopped.
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The device: a register that rings the doorbell for writes that KVM has not taken.
pub struct Register {
    doorbell: Arc<Doorbell>,
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

/// The buses, and the guest's last word.
struct Exits {
    pio: Bus,
    mmio: Bus,
    over: Sender<()>,
}

impl ExitHandler for Exits {
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.pio.read(port.into(), size, data);
    }
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        if port == DEBUG_EXIT_PORT {
            // Nobody listens when the trial has failed already.
            let _ = self.over.send(());
        }
        self.pio.write(port.into(), size, data)
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.mmio.read(address, data.len(), data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.mmio.write(address, data.len(), data)
    }
}

/// A machine whose guest rings.
pub struct Ringing {
    // Dropped in this order: the vCPU first, the memory last.
    vcpu: VcpuThread,
    doorbell: Arc<Doorbell>,
    register: Arc<Register>,
    exits: Arc<Exits>,
    over: Receiver<()>,
    shape: DoorbellAddress,
    memory: AddressSpace,
}

impl Ringing {
    /// Makes the machine with the guest program `guest`, which is not started, and a doorbell of the form `shape`, which
    /// KVM takes if `is_in_kernel`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn new(guest: &Path, shape: DoorbellAddress, is_in_kernel: bool) -> Result<Self> {
        let SmallMachine { vcpu, memory, vm } = SmallMachine::boot(guest)?;
        let host = is_in_kernel.then(|| Arc::<Vm>::clone(&vm) as Arc<dyn DoorbellFds>);
        let doorbell = Arc::new(Doorbell::new(host, shape.address)?);
        let register = Arc::new(Register { doorbell: Arc::clone(&doorbell), exits: AtomicU64::new(0) });
        let (over, ended) = channel();
        let exits = Arc::new(Exits { pio: Bus::new("pio"), mmio: Bus::new("mmio"), over });
        let vcpu = VcpuThread::spawn(vcpu, Arc::clone(&exits), ThreadOptions::default(), |_, _| ())?;
        let ringing = Self { vcpu, doorbell, register, exits, over: ended, shape, memory };
        ringing.insert(shape.address)?;
        ringing.doorbell.rebind(shape)?;
        ringing.set(WHERE, shape.address)?;
        Ok(ringing)
    }

    /// Lets the guest run.
    pub fn start(&self) {
        self.vcpu.resume();
    }

    /// What the vCPU has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.vcpu.counters()
    }

    /// Exits that the register has served.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.register.exits.load(Ordering::Relaxed)
    }

    /// The doorbell.
    #[must_use]
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &AddressSpace {
        &self.memory
    }

    /// Rings that the guest has made.
    ///
    /// # Errors
    ///
    /// None: the memory is there.
    pub fn rung(&self) -> Result<u32> {
        self.get(RUNG)
    }

    /// Waits until the guest has rung `rings` times more.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn wait_for(&self, rings: u32) -> Result<()> {
        let start = self.rung()?;
        let deadline = Instant::now() + DEADLINE;
        until(deadline, "rings", || Ok((self.rung()?.wrapping_sub(start) >= rings).then_some(())))
    }

    /// Moves the register to `to` while the guest rings: it is told the new address before KVM takes writes there, and KVM
    /// lets go of the old one while it may still write to it.
    ///
    /// # Errors
    ///
    /// The bus or KVM refuses, or the guest does not follow.
    pub fn move_to(&mut self, to: u64) -> Result<()> {
        let from = std::mem::replace(&mut self.shape.address, to);
        self.insert(to)?;
        self.set(WHERE, to)?;
        self.doorbell.rebind(self.shape)?;
        let deadline = Instant::now() + DEADLINE;
        let to = u32::try_from(to)?;
        until(deadline, "the guest at the new address", || Ok((self.get(USED)? == to).then_some(())))?;
        self.bus().remove(from)?.wait()?;
        Ok(())
    }

    /// Lets KVM take the writes again after [`Doorbell::unbind`].
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn bind(&self) -> Result<()> {
        Ok(self.doorbell.rebind(self.shape)?)
    }

    /// Lets the guest come to its end; returns how often it has rung, and how often that was counted.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn finish(self) -> Result<(u64, u64)> {
        self.set(STOP, 1)?;
        self.over.recv_timeout(DEADLINE).context("the guest did not end")?;
        let counted = self.doorbell.eventfd().read().unwrap_or(0);
        ensure!(self.exits.pio.unclaimed() <= 1 && self.exits.mmio.unclaimed() == 0, "rings into a hole");
        Ok((self.rung()?.into(), counted))
    }

    fn bus(&self) -> &Bus {
        match self.shape.space {
            DoorbellSpace::Pio => &self.exits.pio,
            DoorbellSpace::Mmio => &self.exits.mmio,
        }
    }

    fn insert(&self, at: u64) -> Result<()> {
        Ok(self.bus().insert(at, 4, "doorbell", Arc::clone(&self.register) as Arc<dyn BusDevice>)?)
    }

    fn set(&self, word: GuestAddress, value: u64) -> Result<()> {
        Ok(self.memory.memory().write_obj(u32::try_from(value)?, word)?)
    }

    fn get(&self, word: GuestAddress) -> Result<u32> {
        Ok(self.memory.memory().read_obj(word)?)
    }
}
