//! `PciRoot`: which functions are on the bus. Reading the table takes no lock; functions come and go under traffic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use vmm_core::{Deferred, InReadSection, Published};

use super::HOST_BRIDGE;
use super::configuration::{Configuration, HEADER_TYPE};
use super::function::{Function, Host, PciDevice};
use super::window::WindowError;
use crate::reconfigure::{PostError, Poster};

/// In the header type of function 0: there are others.
const MULTI_FUNCTION: u8 = 1 << 7;

const FUNCTIONS: u8 = 8;

/// Device and function on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress(u8);

impl PciAddress {
    /// Function `function` (0–7) of device `device` (0–31).
    #[must_use]
    pub fn new(device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < FUNCTIONS).then_some(Self(device << 3 | function))
    }

    /// The address whose bits 7–3 are the device and 2–0 the function, as both ways to configuration space have it.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The device.
    #[must_use]
    pub fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function.
    #[must_use]
    pub fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device(), self.function())
    }
}

/// Why the table cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// A function is there.
    #[error("PCI address {0} is taken")]
    Taken(PciAddress),
    /// No function is there.
    #[error("there is no PCI function at {0}")]
    NotFound(PciAddress),
    /// All addresses are taken.
    #[error("the PCI bus is full")]
    Full,
    /// Asked for inside an access: what is removed is not waited for.
    #[error(transparent)]
    InReadSection(#[from] InReadSection),
}

type Functions = BTreeMap<PciAddress, Arc<Function>>;

/// Whether nobody is in a function any more.
type Waited = Result<(), InReadSection>;

/// The last owner of a function. Dropped, the function goes, and then that is said.
struct Last {
    function: Option<Arc<Function>>,
    done: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Last {
    fn drop(&mut self) {
        drop(self.function.take());
        if let Some(done) = self.done.take() {
            done();
        }
    }
}

/// The one bus of a machine: 32 devices of 8 functions.
pub struct PciRoot {
    functions: Published<Functions>,
}

impl PciRoot {
    /// A bus with its host bridge.
    ///
    /// # Errors
    /// None: the bridge has no BARs to find room for.
    pub fn new(host: &Host) -> Result<Self, WindowError> {
        let bridge = Function::new(
            "host bridge",
            Configuration::new(HOST_BRIDGE),
            Arc::new(HostBridge),
            None,
            host.clone(),
        )?;
        let functions = Functions::from([(PciAddress(0), Arc::new(bridge))]);
        Ok(Self { functions: Published::new(functions) })
    }

    /// Puts `function` on the bus: at function 0 of the first device that is free, or where none is, at the first function
    /// that is. Returns where.
    ///
    /// # Errors
    /// [`RootError::Full`].
    pub fn insert(&self, function: Function) -> Result<PciAddress, RootError> {
        let function = Arc::new(function);
        let mut found = Err(RootError::Full);
        let retired = self.functions.update(|functions| {
            let address = free(functions).ok_or(RootError::Full)?;
            found = Ok(address);
            let mut functions = functions.clone();
            functions.insert(address, Arc::clone(&function));
            Ok::<_, RootError>(functions)
        })?;
        // The old table keeps its functions. Refused inside an access: they stay until nobody reads it.
        let _ = retired.wait();
        found
    }

    /// Puts `function` on the bus at `address`, where software finds it from now on.
    ///
    /// # Errors
    /// [`RootError::Taken`].
    pub fn insert_at(&self, address: PciAddress, function: Function) -> Result<(), RootError> {
        let function = Arc::new(function);
        let retired = self.functions.update(|functions| {
            if functions.contains_key(&address) {
                return Err(RootError::Taken(address));
            }
            let mut functions = functions.clone();
            functions.insert(address, Arc::clone(&function));
            Ok(functions)
        })?;
        // As for `insert`.
        let _ = retired.wait();
        Ok(())
    }

    /// The devices that have no function, a bit each.
    #[must_use]
    pub fn free_devices(&self) -> u32 {
        let bit = |address: &PciAddress| 1_u32.checked_shl(address.device().into()).unwrap_or(0);
        !self.functions.load().keys().fold(0, |taken, address| taken | bit(address))
    }

    /// Takes the function at `address` off the bus. After the return no access to it is running and none will come.
    ///
    /// # Errors
    /// No function is there; or it goes and cannot be waited for.
    pub fn remove(&self, address: PciAddress) -> Result<(), RootError> {
        let (_function, waited) = self.take(address)?;
        Ok(waited?)
    }

    /// Takes the function at `address` off the bus, on the thread of `poster`, and calls `done` when nothing of it is left:
    /// its device has stopped, and what it had of the host is given back. `done` is told whether a function was there.
    ///
    /// # Errors
    /// As [`Poster::post`]; `done` is dropped then.
    pub fn remove_later(
        self: &Arc<Self>,
        address: PciAddress,
        poster: &Poster,
        done: impl FnOnce(Result<(), RootError>) + Send + 'static,
    ) -> Result<(), PostError> {
        let (root, behind) = (Arc::clone(self), poster.clone());
        poster.post(move || match root.take(address) {
            Err(error) => done(Err(error)),
            Ok((function, _waited)) => {
                let last = Last { function: Some(function), done: Some(Box::new(move || done(Ok(())))) };
                // Accesses that came before may have posted moves of its BARs, which have it too: those are made before this.
                // Refused: it is dropped here.
                let _ = behind.post(move || drop(last));
            }
        })
    }

    /// The function that was at `address`, and how the wait for its accesses has ended.
    fn take(&self, address: PciAddress) -> Result<(Arc<Function>, Waited), RootError> {
        let mut removed = None;
        let retired = self.functions.update(|functions| {
            let mut functions = functions.clone();
            removed = functions.remove(&address);
            if removed.is_some() { Ok(functions) } else { Err(RootError::NotFound(address)) }
        })?;
        let function = removed.ok_or(RootError::NotFound(address))?;
        let withdrawn = function.withdraw();
        let waited = retired.wait();
        Ok((function, withdrawn.and(waited)))
    }

    /// Software reads registers of the function at `address`. `data` is all ones, and stays so where there are none.
    pub fn read(&self, address: PciAddress, offset: usize, data: &mut [u8]) {
        let functions = self.functions.load();
        let Some(function) = functions.get(&address) else { return };
        function.read(offset, data);
        let header_type = HEADER_TYPE.checked_sub(offset).and_then(|at| data.get_mut(at));
        if let Some(header_type) = header_type.filter(|_| address.function() == 0) {
            let others = PciAddress(address.0.saturating_add(1))..=PciAddress(address.0 | 7);
            if functions.range(others).next().is_some() {
                *header_type |= MULTI_FUNCTION;
            }
        }
    }

    /// Software writes registers of the function at `address`. What is written where there are none is lost.
    pub fn write(&self, address: PciAddress, offset: usize, data: &[u8]) -> Option<Deferred> {
        self.functions.load().get(&address)?.write(offset, data)
    }
}

/// Where the next function goes.
fn free(functions: &Functions) -> Option<PciAddress> {
    let in_order = (0..FUNCTIONS)
        .flat_map(|function| (0..32).filter_map(move |device| PciAddress::new(device, function)));
    // Functions of device 0 but the bridge stay free: drivers look for parts of a chipset there.
    in_order.filter(|address| address.device() != 0).find(|address| !functions.contains_key(address))
}

/// The bridge has nothing but its registers.
struct HostBridge;

impl PciDevice for HostBridge {
    fn read_bar(&self, _bar: usize, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&self, _bar: usize, _offset: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }

    fn bar_moved(&self, _bar: usize, _address: Option<u64>) {}
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
