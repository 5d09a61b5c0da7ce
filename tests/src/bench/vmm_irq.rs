//! This project's side of the interrupt benchmark: lines and vectors of the router, the run loop around the guest.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::Deferred;
use vmm_core::irq::{
    IrqLine, IrqRouter, IrqTrigger, Irqchip, LevelInput, LevelLine, MsiMessage, MsiVector, TriggeredBy,
};
use vmm_memory::AddressSpace;
use vmm_vcpu::{ExitHandler, ThreadOptions, VcpuThread};

use crate::bench::irq::{
    EDGE_PIN, Interrupted, IrqKind, LEVEL_PIN, MESSAGE_ADDRESS, READY_PORT, ROUTED, SERVED_PORT,
};
use crate::small_machine::SmallMachine;

/// How long the guest may take to its start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the level back when the guest has served it.
struct Handler {
    ready: Mutex<Sender<()>>,
    input: Arc<LevelInput>,
}

impl ExitHandler for Handler {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        match port {
            SERVED_PORT => self.input.set(false),
            // Whoever waits may have given up.
            READY_PORT => drop(self.ready.lock().unwrap_or_else(PoisonError::into_inner).send(())),
            _ => {}
        }
        None
    }
    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

/// A machine whose vCPU runs on a thread of its own.
pub struct VmmIrq {
    // Dropped in this order.
    _vcpu: VcpuThread,
    memory: AddressSpace,
    edge: IrqTrigger,
    level: Arc<LevelInput>,
    message: IrqTrigger,
    vectors: Vec<MsiVector>,
    router: IrqRouter,
    _lines: (IrqLine, LevelLine),
}

impl VmmIrq {
    /// Boots `irq_counters` from the directory `guests`.
    ///
    /// # Errors
    ///
    /// A part refuses, or the guest does not start.
    pub fn boot(guests: &Path) -> Result<Self> {
        let guest = guests.join("irq_counters.elf");
        let SmallMachine { mut vcpus, memory, router, .. } =
            SmallMachine::boot_with(&guest, (1, 0), Irqchip::Kernel, |vm| vm)?;
        let vcpu = vcpus.pop().context("a vCPU")?;
        let (line, level_line) =
            (router.edge_line(EDGE_PIN, "edge")?, router.level_line(LEVEL_PIN, "level")?);
        let level = Arc::new(level_line.input());
        let vectors = (0..ROUTED).map(|_| router.msi_vector("message", TriggeredBy::UserSpace));
        let vectors = vectors.collect::<Result<Vec<_>, _>>()?;
        let raised = vectors.first().context("a vector")?;
        raised.set_message(message(IrqKind::Message.vector()))?;
        raised.unmask()?;
        let (sender, ready) = channel();
        let handler = Handler { ready: Mutex::new(sender), input: Arc::clone(&level) };
        let vcpu = VcpuThread::spawn(vcpu, Arc::new(handler), ThreadOptions::default(), |_, _| {})?;
        vcpu.resume();
        ready.recv_timeout(PATIENCE).context("the guest does not start")?;
        let (edge, message) = (line.trigger(), raised.trigger());
        Ok(Self { _vcpu: vcpu, memory, edge, level, message, vectors, router, _lines: (line, level_line) })
    }
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: MESSAGE_ADDRESS.into(), data }
}

impl Interrupted for VmmIrq {
    fn raise(&self, kind: IrqKind) -> Result<()> {
        match kind {
            IrqKind::Edge => self.edge.trigger(),
            IrqKind::Level => self.level.set(true),
            IrqKind::Message => self.message.trigger(),
        }
        Ok(())
    }

    fn word(&self, address: usize) -> Result<u32> {
        Ok(self.memory.memory().read_obj(GuestAddress(address as u64))?)
    }

    fn route_one_by_one(&self, data: u32) -> Result<()> {
        self.router.batch(|changes| self.vectors[1..].iter().for_each(|vector| changes.clear(vector)))?;
        for (vector, data) in self.vectors[1..].iter().zip(data..) {
            vector.set_message(message(data))?;
        }
        Ok(())
    }

    fn route_at_once(&self, data: u32) -> Result<()> {
        Ok(self.router.batch(|changes| {
            self.vectors[1..]
                .iter()
                .zip(data..)
                .for_each(|(vector, data)| changes.set(vector, message(data)));
        })?)
    }
}
