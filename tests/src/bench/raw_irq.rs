//! The raw baseline of the interrupt benchmark: an eventfd for each kind, and the routing table as the kernel takes it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bench::irq::{
    EDGE_PIN, Interrupted, IrqKind, LEVEL_PIN, MESSAGE_ADDRESS, READY_PORT, ROUTED, SERVED_PORT,
};
use crate::bench::raw_ioctl::RoutingTable;
use crate::bench::raw_vcpu::RawExit;
use crate::bench::raw_vm::{self, RawHandle};

/// GSI of the message that is raised; those that are only routed follow.
const MESSAGE_GSI: u32 = 24;

/// How long the guest may take to its start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine whose vCPU runs on a thread of its own.
#[derive(Debug)]
pub struct RawIrq {
    edge: EventFd,
    level: EventFd,
    message: EventFd,
    _resample: EventFd,
    interrupts: RawHandle,
    stop: Arc<AtomicBool>,
    vcpu: Option<JoinHandle<()>>,
}

impl RawIrq {
    /// Boots `irq_counters` from the directory `guests`.
    ///
    /// # Errors
    ///
    /// A system call fails, or the guest does not start.
    pub fn boot(guests: &Path) -> Result<Self> {
        let vm = raw_vm::boot(&guests.join("irq_counters.elf"))?;
        let interrupts = RawHandle::of(&vm);
        let resample = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let edge = interrupts.irqfd(EDGE_PIN, None)?;
        let level = interrupts.irqfd(LEVEL_PIN, Some(&resample))?;
        let message = interrupts.irqfd(MESSAGE_GSI, None)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ready) = channel();
        let stopped = Arc::clone(&stop);
        let vcpu = std::thread::spawn(move || {
            let mut vm = vm;
            // The level-triggered handler's exit is where it ends.
            while vm.enter().is_ok() && !stopped.load(Ordering::Relaxed) {
                match vm.exit() {
                    RawExit::Out { port: READY_PORT, .. } => drop(sender.send(())),
                    RawExit::Out { port: SERVED_PORT, .. } => {}
                    _ => return,
                }
            }
        });
        let machine = Self { edge, level, message, _resample: resample, interrupts, stop, vcpu: Some(vcpu) };
        machine.route_at_once(0)?;
        ready.recv_timeout(PATIENCE).context("the guest does not start")?;
        Ok(machine)
    }

    /// The pins, the message that is raised, and `count` others with data from `data` on.
    fn set_routes(&self, data: u32, count: usize) -> Result<()> {
        let mut routes = pins();
        routes.push(message(MESSAGE_GSI, IrqKind::Message.vector()));
        routes.extend((0..).zip(data..).take(count).map(|(gsi, data)| message(MESSAGE_GSI + 1 + gsi, data)));
        Ok(self.interrupts.set_routes(&RoutingTable::new(&routes))?)
    }
}

/// Where the pins lead by themselves.
fn pins() -> Vec<kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let ioapic = (0..24).map(|gsi| entry(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    let first = (0..8).map(|gsi| entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
    let second = (8..16).map(|gsi| entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
    ioapic.chain(first).chain(second).collect()
}

fn message(gsi: u32, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo: MESSAGE_ADDRESS, data, ..Default::default() };
    entry
}

impl Interrupted for RawIrq {
    fn raise(&self, kind: IrqKind) -> Result<()> {
        let fd = match kind {
            IrqKind::Edge => &self.edge,
            IrqKind::Level => &self.level,
            IrqKind::Message => &self.message,
        };
        if fd.write(1)? != 8 {
            bail!("a short write")
        }
        Ok(())
    }

    fn word(&self, address: usize) -> Result<u32> {
        Ok(self.interrupts.word(address))
    }

    /// As a monitor does that hands the table over at each vector.
    fn route_one_by_one(&self, data: u32) -> Result<()> {
        (1..ROUTED).try_for_each(|count| self.set_routes(data, count))
    }

    fn route_at_once(&self, data: u32) -> Result<()> {
        self.set_routes(data, ROUTED - 1)
    }
}

impl Drop for RawIrq {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its handler's exit is where the vCPU looks. Without a guest that handles it the thread stays until the process
        // ends.
        if self.raise(IrqKind::Level).is_ok()
            && let Some(vcpu) = self.vcpu.take()
        {
            // It reports by its exits, not by its result.
            let _ = vcpu.join();
        }
    }
}
