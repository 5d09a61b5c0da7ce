//! `IrqRouter`: gives out lines and vectors and takes them back; the only writer of a VM's routing table.
//!
//! KVM's default table routes GSIs 0–15 to both 8259s and the I/O APIC and 16–23 to the I/O APIC; that is all that pins
//! need, so giving out a line costs one `KVM_IRQFD` and no `KVM_SET_GSI_ROUTING`. That ioctl replaces the table as a whole
//! and leaves irqfds attached, so any number of changes costs one.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::msi::Vector;
use super::pins::Pins;
use super::table::{GsiError, GsiTable, Irqchip};
use super::{IrqLine, LevelLine, MsiMessage, MsiVector, MsixTable, TriggeredBy};
use crate::seam::{InterruptVm, IrqRoute, IrqTarget};
use crate::sync::{Mutex, lock};
use crate::{Capabilities, IoctlError, LogLimit};

/// Why an interrupt cannot be made, routed or masked.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// The GSI cannot be had.
    #[error(transparent)]
    Gsi(#[from] GsiError),
    /// No eventfd for the interrupt.
    #[error("cannot make an eventfd for GSI {gsi}")]
    EventFd {
        /// The interrupt.
        gsi: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM refuses to connect the eventfd.
    #[error("cannot connect GSI {gsi}")]
    Attach {
        /// The interrupt.
        gsi: u32,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
    /// KVM refuses to disconnect the eventfd.
    #[error("cannot disconnect GSI {gsi}")]
    Detach {
        /// The interrupt.
        gsi: u32,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
    /// KVM refuses the routes.
    #[error("cannot change the interrupt routes")]
    Routes(#[source] IoctlError),
    /// The kernel is to trigger a vector, and KVM has no irqfd.
    #[error("KVM lacks KVM_CAP_IRQFD: the kernel cannot trigger interrupts")]
    NoIrqfd,
    /// A table has no such vector.
    #[error("there is no vector {index}: the table has {count}")]
    NoVector {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
}

/// How interrupts work in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqOptions {
    /// Who emulates the interrupt controllers. `Split` needs irqfd.
    pub irqchip: Irqchip,
    /// `KVM_CAP_IRQFD`; without it every interrupt is an ioctl.
    pub irqfd: bool,
    /// `KVM_CAP_IRQFD_RESAMPLE`; without it level-triggered lines are set by ioctl.
    pub resample: bool,
    /// `KVM_CAP_IRQ_ROUTING`: how many routes KVM has.
    pub routes: u32,
    /// Destinations have more than 8 bits, in the extended form of messages (`KVM_CAP_X2APIC_API` is on).
    pub wide_destinations: bool,
}

impl IrqOptions {
    /// All that the host has.
    #[must_use]
    pub fn of_host(capabilities: &Capabilities, irqchip: Irqchip) -> Self {
        Self {
            irqchip,
            irqfd: capabilities.irqfd,
            resample: capabilities.irqfd_resample,
            routes: capabilities.irq_routes,
            wide_destinations: irqchip == Irqchip::Split,
        }
    }

    /// A host that has everything, for tests.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn all() -> Self {
        let irqchip = Irqchip::Kernel;
        Self { irqchip, irqfd: true, resample: true, routes: 4096, wide_destinations: false }
    }
}

/// The table, and whether KVM has it.
struct Routes {
    table: GsiTable,
    /// KVM has refused a change that cannot be taken back: the next one brings it up to date.
    behind: bool,
}

/// What every interrupt needs to be taken back.
///
/// Lock order: an [`MsixTable`]'s lock, a vector's control lock, the routes. The routes are locked to change them and hand
/// them to KVM, which takes one table at a time; never while anything is waited for, attached, detached or called back.
pub(super) struct Shared {
    pub(super) vm: Arc<dyn InterruptVm>,
    pub(super) options: IrqOptions,
    pub(super) pins: Pins,
    /// Of messages that KVM does not deliver, of all vectors: a guest has many.
    pub(super) losses: Arc<LogLimit>,
    routes: Mutex<Routes>,
}

/// GSIs and what each is to lead to.
pub(super) type Changes = [(u32, Option<MsiMessage>)];

impl Shared {
    /// Makes all of `changes` with one ioctl, or none if the table says so already. Returns what undoes them.
    ///
    /// # Errors
    /// A GSI cannot be routed, or KVM refuses the table; nothing is changed then.
    pub(super) fn change(&self, changes: &Changes) -> Result<Vec<(u32, Option<MsiMessage>)>, IrqError> {
        let mut routes = lock(&self.routes);
        let mut undo = Vec::with_capacity(changes.len());
        let result = self.try_change(&mut routes, changes, &mut undo);
        if result.is_err() {
            for &(gsi, message) in undo.iter().rev() {
                // Was routable a moment ago.
                let _ = routes.table.set_message(gsi, message);
            }
        }
        undo.reverse();
        result.map(|()| undo)
    }

    fn try_change(
        &self,
        routes: &mut Routes,
        changes: &Changes,
        undo: &mut Vec<(u32, Option<MsiMessage>)>,
    ) -> Result<(), IrqError> {
        let mut differs = routes.behind;
        for &(gsi, message) in changes {
            let before = routes.table.set_message(gsi, message)?;
            differs |= before != message;
            undo.push((gsi, before));
        }
        // Without irqfd nothing uses a route to a message.
        if differs && self.options.irqfd {
            self.hand_over(&routes.table).map_err(IrqError::Routes)?;
            routes.behind = false;
        }
        Ok(())
    }

    fn hand_over(&self, table: &GsiTable) -> Result<(), IoctlError> {
        let mut routes: Vec<_> = table.routes().collect();
        if self.options.wide_destinations {
            routes.iter_mut().for_each(widen);
        }
        self.vm.set_routes(&routes)
    }

    /// Detaches `fd` from `gsi`. KVM fails to only when it does not know them.
    pub(super) fn detach(&self, gsi: u32, fd: &EventFd) {
        if let Err(error) = self.vm.detach_irqfd(gsi, fd) {
            tracing::error!(gsi, %error, "cannot disconnect an interrupt");
        }
    }

    /// Takes `gsi`, which nothing is attached to, back with its route.
    pub(super) fn release(&self, gsi: u32) {
        let mut routes = lock(&self.routes);
        let routed = gsi >= super::IOAPIC_PINS && routes.table.message(gsi).is_some();
        routes.table.release(gsi);
        if !routed || !self.options.irqfd {
            return;
        }
        let result = self.hand_over(&routes.table);
        routes.behind = result.is_err();
        drop(routes);
        if let Err(error) = result {
            tracing::error!(gsi, %error, "cannot take an interrupt route back");
        }
    }
}

fn widen(route: &mut IrqRoute) {
    if let IrqTarget::Message(message) = &mut route.target {
        *message = message.with_wide_destination();
    }
}

/// The changes of one [`IrqRouter::batch`]. Borrows the vectors until they are made: the GSI of one that is dropped before
/// could be another's.
#[derive(Default)]
pub struct RouteChanges<'v> {
    changes: Vec<(u32, Option<MsiMessage>)>,
    vectors: Vec<&'v Vector>,
}

impl<'v> RouteChanges<'v> {
    /// Lets `vector` lead to `message`. Of several changes of one vector the last counts.
    pub fn set(&mut self, vector: &'v MsiVector, message: MsiMessage) {
        self.push(vector, Some(message));
    }

    /// Lets `vector` lead nowhere.
    pub fn clear(&mut self, vector: &'v MsiVector) {
        self.push(vector, None);
    }

    fn push(&mut self, vector: &'v MsiVector, message: Option<MsiMessage>) {
        self.changes.push((vector.gsi(), message));
        self.vectors.push(vector.shared_vector());
    }
}

/// The owner of the GSI table of one VM. Changing it takes a lock, raising an interrupt takes none.
#[derive(Clone)]
pub struct IrqRouter(Arc<Shared>);

impl IrqRouter {
    /// A router over `vm`, whose irqchip exists already.
    #[must_use]
    pub fn new(vm: Arc<dyn InterruptVm>, options: IrqOptions) -> Self {
        let table = GsiTable::new(options.irqchip, options.routes);
        let routes = Mutex::new(Routes { table, behind: false });
        Self(Arc::new(Shared { vm, options, pins: Pins::new(), losses: Arc::default(), routes }))
    }

    /// A router over `vm`, on which an earlier one has left no interrupt: KVM's table is again the one that it had at first.
    ///
    /// # Errors
    /// KVM refuses the routes.
    pub fn renewed(vm: Arc<dyn InterruptVm>, options: IrqOptions) -> Result<Self, IrqError> {
        let router = Self::new(vm, options);
        if options.irqfd {
            router.0.hand_over(&lock(&router.0.routes).table).map_err(IrqError::Routes)?;
        }
        Ok(router)
    }

    /// Makes the edge-triggered line `gsi` for `owner` (a device name for messages). Takes one descriptor.
    ///
    /// # Errors
    /// The GSI is taken or has no pin, or the host has no descriptor left; nothing is changed then.
    pub fn edge_line(&self, gsi: u32, owner: &'static str) -> Result<IrqLine, IrqError> {
        self.claimed(gsi, owner, |shared| IrqLine::connect(shared, gsi))
    }

    /// Makes the level-triggered line `gsi` for `owner`, who shares it out. Takes up to two descriptors.
    ///
    /// # Errors
    /// As [`edge_line`](Self::edge_line).
    pub fn level_line(&self, gsi: u32, owner: &'static str) -> Result<LevelLine, IrqError> {
        self.claimed(gsi, owner, |shared| LevelLine::connect(shared, gsi))
    }

    /// Makes a vector for `owner`. Takes one descriptor.
    ///
    /// # Errors
    /// KVM has no route left, or the host no descriptor; nothing is changed then.
    pub fn msi_vector(&self, owner: &'static str, by: TriggeredBy) -> Result<MsiVector, IrqError> {
        let gsi = lock(&self.0.routes).table.allocate(owner)?;
        MsiVector::connect(Arc::clone(&self.0), gsi, by).inspect_err(|_| self.0.release(gsi))
    }

    /// Makes a table of `count` vectors for `owner`.
    ///
    /// # Errors
    /// As [`msi_vector`](Self::msi_vector).
    pub fn msix_table(
        &self,
        owner: &'static str,
        count: usize,
        by: TriggeredBy,
    ) -> Result<MsixTable, IrqError> {
        let vectors = (0..count).map(|_| self.msi_vector(owner, by)).collect::<Result<Vec<_>, _>>()?;
        Ok(MsixTable::new(Arc::clone(&self.0), vectors))
    }

    /// Makes all changes that `collect` asks for with one `KVM_SET_GSI_ROUTING`, or none if nothing changes; irqfds stay
    /// attached. `collect` runs without a lock. Of two batches with one vector at the same time, either may be the last.
    ///
    /// # Errors
    /// KVM refuses the table; everything is as it was.
    pub fn batch<'v>(&self, collect: impl FnOnce(&mut RouteChanges<'v>)) -> Result<(), IrqError> {
        let mut batch = RouteChanges::default();
        collect(&mut batch);
        self.0.change(&batch.changes)?;
        for (vector, (_, message)) in batch.vectors.iter().zip(&batch.changes) {
            vector.follow(*message);
        }
        Ok(())
    }

    /// Whether the guest has masked `pin` of the I/O APIC, as it is after a reset.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn pin_masked(&self, pin: u32) -> Result<bool, IoctlError> {
        match self.0.options.irqchip {
            Irqchip::Kernel => self.0.vm.ioapic_pin_masked(pin),
            Irqchip::Split => Ok(self.ioapic_pins().is_masked(pin)),
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Claims pin `gsi` and connects it.
    fn claimed<T>(
        &self,
        gsi: u32,
        owner: &'static str,
        connect: impl FnOnce(Arc<Shared>) -> Result<T, IrqError>,
    ) -> Result<T, IrqError> {
        lock(&self.0.routes).table.claim_pin(gsi, owner)?;
        connect(Arc::clone(&self.0)).inspect_err(|_| self.0.release(gsi))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
