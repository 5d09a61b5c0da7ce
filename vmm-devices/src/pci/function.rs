//! `Function`: one function on the bus: keeps its registers, and carries out what they say.
//!
//! BARs come, move and go on the [`Reconfigure`](crate::Reconfigure) thread; the access of the guest that causes it ends
//! when it is done. Addresses outside the window are decoded by nobody, as on a bus whose bridge does not pass them on: so
//! are BARs while they are sized. A place that another device has is refused: the BAR goes back to where it was last, or if
//! that is taken too, nowhere, and its register says so.
//!
//! Lock order: `places`, then the registers, then those of [`Msix`]. The registers are not locked while the device is called.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use vmm_core::{Deferred, InReadSection, LogLimit, Retired, deferred};

use super::access::AccessWindow;
use super::bar::BARS;
use super::configuration::Configuration;
use super::msix::{CONTROL, Msix};
use super::window::{BarWindow, Place, WindowError};
use crate::bus::{Bus, BusDevice, BusError, Ranges, both};
use crate::reconfigure::Poster;
use crate::sync::lock;

/// What is behind a function. Called by several vCPUs at a time; offsets and lengths stay inside the BAR.
pub trait PciDevice: Send + Sync {
    /// Fills `data`, which is all ones, with what is read from BAR `bar`.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);
    /// Takes what is written to BAR `bar`. `Some`: the access ends when the device says so.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Option<Deferred>;
    /// BAR `bar` is at `address` from now on, or nowhere. Called one at a time, where the device may make system calls.
    fn bar_moved(&self, bar: usize, address: Option<u64>);
    /// The function may access guest memory from now on, or may not: at first it may not. Called as
    /// [`bar_moved`](Self::bar_moved). `Some`: it does so until the device says that it has ended.
    fn set_bus_master(&self, on: bool) -> Option<Deferred> {
        let _ = on;
        None
    }
    /// The registers of its interrupts, if it has any.
    fn msix(&self) -> Option<&Msix> {
        None
    }
}

/// What a function gets of the machine.
#[derive(Clone)]
pub struct Host {
    /// Where BARs appear. Weak: the bus leads to the functions.
    pub bus: Weak<Bus>,
    /// Who moves them.
    pub poster: Poster,
    /// The addresses that they may have.
    pub window: Arc<BarWindow>,
}

impl Host {
    /// A place for a BAR of `size` bytes at which nobody answers: software moves BARs to any place of the window.
    fn allocate(&self, size: u64) -> Result<Place, WindowError> {
        let bus = self.bus.upgrade();
        let is_free = |place: &Place| bus.as_ref().is_none_or(|bus| bus.is_free(place.start(), size));
        // Kept until one is found, so that each is another.
        let mut taken = Vec::new();
        loop {
            let place = self.window.allocate(size)?;
            if is_free(&place) {
                return Ok(place);
            }
            taken.push(place);
        }
    }
}

/// What the register of a BAR says that can be nowhere: an address that no window has.
const NOWHERE: u64 = 0;

/// Where the BARs are on the bus.
#[derive(Default)]
struct Places {
    now: [Option<u64>; BARS],
    /// Where each was last, and is to be again if it cannot have another place.
    last: [Option<u64>; BARS],
    /// The device knows that it may access memory.
    is_bus_master: bool,
    /// The function leaves the bus: nothing comes any more.
    withdrawn: bool,
}

/// One function.
pub struct Function {
    name: &'static str,
    configuration: Mutex<Configuration>,
    places: Mutex<Places>,
    device: Arc<dyn PciDevice>,
    access: Option<AccessWindow>,
    /// Message control in configuration space.
    msix_control: Option<usize>,
    host: Host,
    refusals: LogLimit,
    /// Where the BARs were first.
    _allocated: Vec<Place>,
}

impl Function {
    /// A function called `name` in messages, with its BARs at addresses of the window and not decoded yet.
    ///
    /// # Errors
    /// The window is full.
    pub fn new(
        name: &'static str,
        mut configuration: Configuration,
        device: Arc<dyn PciDevice>,
        access: Option<AccessWindow>,
        host: Host,
    ) -> Result<Self, WindowError> {
        let msix_control = configuration.capability(Msix::CAPABILITY).map(|at| at.saturating_add(CONTROL));
        let mut allocated = Vec::new();
        for index in 0..BARS {
            if let Some(bar) = configuration.bar(index) {
                let place = host.allocate(bar.size())?;
                configuration.set_bar_address(index, place.start());
                allocated.push(place);
            }
        }
        let last = std::array::from_fn(|index| configuration.bar_address(index));
        Ok(Self {
            name,
            configuration: Mutex::new(configuration),
            places: Mutex::new(Places { last, ..Places::default() }),
            device,
            access,
            msix_control,
            host,
            refusals: LogLimit::default(),
            _allocated: allocated,
        })
    }

    /// Software reads registers. `data` is all ones, and stays so where there are none.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        if let Some(access) = self.access.filter(|access| access.is_touched(offset, data.len())) {
            self.read_through(access);
        }
        self.configuration().read(offset, data);
    }

    /// Software writes registers.
    pub(super) fn write(self: &Arc<Self>, offset: usize, data: &[u8]) -> Option<Deferred> {
        let mut configuration = self.configuration();
        let effects =
            |configuration: &Configuration| (configuration.decoded(), configuration.is_bus_master());
        let (before, control) = (effects(&configuration), self.control(&configuration));
        configuration.write(offset, data);
        let moves = effects(&configuration) != before;
        if self.control(&configuration) != control {
            self.set_control(&mut configuration, control);
        }
        drop(configuration);
        let moved = moves.then(|| self.post_places()).flatten();
        let access = self.access.filter(|access| access.is_touched(offset, data.len()));
        both(moved, access.and_then(|access| self.write_through(access)))
    }

    fn configuration(&self) -> MutexGuard<'_, Configuration> {
        lock(&self.configuration)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }

    fn control(&self, configuration: &Configuration) -> Option<u16> {
        configuration.get(self.msix_control?).map(u16::from_le_bytes)
    }

    /// Carries message control out. If that fails, it reads as before.
    fn set_control(&self, configuration: &mut Configuration, before: Option<u16>) {
        let Some(((msix, at), control)) =
            self.device.msix().zip(self.msix_control).zip(self.control(configuration))
        else {
            return;
        };
        if let Err(error) = msix.set_control(control) {
            configuration.put(at, &before.unwrap_or(control).to_le_bytes());
            self.log_refusal("its interrupts cannot be turned on or off", &error);
        }
    }

    fn log_refusal(&self, what: &str, error: &dyn std::error::Error) {
        if let Some(left_out) = self.refusals.permit() {
            tracing::warn!(function = self.name, %error, left_out, "{what}");
        }
    }

    fn read_through(&self, window: AccessWindow) {
        let selected = window.selected(&self.configuration());
        if let Some(access) = selected {
            let mut data = [0xff; 4];
            if let Some(data) = data.get_mut(..access.length) {
                self.device.read_bar(access.bar, access.offset, data);
                window.store(&mut self.configuration(), data);
            }
        }
    }

    fn write_through(&self, window: AccessWindow) -> Option<Deferred> {
        let access = window.selected(&self.configuration())?;
        self.device.write_bar(access.bar, access.offset, access.data.get(..access.length)?)
    }

    /// Has the BARs put where the registers say, and the device told whether it may access memory.
    fn post_places(self: &Arc<Self>) -> Option<Deferred> {
        let (completer, access) = deferred();
        let function = Arc::clone(self);
        let change = move || {
            let accesses = function.place();
            // Nobody has it for the sake of an access that has ended.
            drop(function);
            match accesses {
                Some(accesses) => accesses.on_complete(move || completer.complete()),
                None => completer.complete(),
            }
        };
        match self.host.poster.post(change) {
            Ok(()) => Some(access),
            Err(error) => {
                self.log_refusal("its BARs stay where they are", &error);
                None
            }
        }
    }

    /// Puts the BARs where the registers say now, and waits until nobody uses a place that they had. `Some`: the end of the
    /// accesses of a device that may make none any more.
    fn place(&self) -> Option<Deferred> {
        let bus = self.host.bus.upgrade()?;
        let mut places = self.places();
        if places.withdrawn {
            return None;
        }
        let configuration = self.configuration();
        let (wanted, is_bus_master) = (configuration.decoded(), configuration.is_bus_master());
        drop(configuration);
        let accesses = self.set_bus_master(&mut places, is_bus_master);
        let retired: Vec<_> = wanted
            .into_iter()
            .enumerate()
            .filter_map(|(index, to)| self.place_bar(&bus, &mut places, index, to))
            .collect();
        drop(places);
        // On the thread that may wait.
        let _ = wait_for(retired);
        accesses
    }

    /// Tells the device whether it may access memory and send messages, if that is news.
    fn set_bus_master(&self, places: &mut Places, on: bool) -> Option<Deferred> {
        if std::mem::replace(&mut places.is_bus_master, on) == on {
            return None;
        }
        if let Some(Err(error)) = self.device.msix().map(|msix| msix.set_bus_master(on)) {
            self.log_refusal("its interrupts cannot be held or let go", &error);
        }
        self.device.set_bus_master(on)
    }

    /// Puts BAR `index` to `to`, or back.
    fn place_bar(
        &self,
        bus: &Bus,
        places: &mut Places,
        index: usize,
        to: Option<u64>,
    ) -> Option<Retired<Ranges>> {
        let size = self.configuration().bar(index)?.size();
        let inside = to.filter(|&start| self.host.window.contains(start, size));
        let (now, last) = (places.now.get_mut(index)?, places.last.get_mut(index)?);
        let before = *now;
        if inside.is_none() {
            // Doorbells first: what the kernel does not take any more reaches the device as long as it is on the bus.
            self.moved(index, now, None);
        }
        match self.change_bus(bus, index, size, (before, inside)) {
            Ok(retired) => {
                self.moved(index, now, inside);
                *last = inside.or(*last);
                retired
            }
            Err(error) => {
                self.log_refusal("a BAR cannot have the place that it was given", &error);
                let mut retired = None;
                // It was nowhere, and is to be where it was before that.
                if now.is_none()
                    && let Ok(back) = self.change_bus(bus, index, size, (None, *last))
                {
                    retired = back;
                    self.moved(index, now, *last);
                }
                if let Some(refused) = to {
                    self.take_back(index, refused, now.unwrap_or(NOWHERE));
                }
                retired
            }
        }
    }

    fn moved(&self, index: usize, now: &mut Option<u64>, to: Option<u64>) {
        if *now != to {
            *now = to;
            self.device.bar_moved(index, to);
        }
    }

    /// Has the register say `to`, unless software has written another address than `refused` meanwhile.
    fn take_back(&self, index: usize, refused: u64, to: u64) {
        let mut configuration = self.configuration();
        if configuration.bar_address(index) == Some(refused) {
            configuration.set_bar_address(index, to);
        }
    }

    fn change_bus(
        &self,
        bus: &Bus,
        index: usize,
        size: u64,
        places: (Option<u64>, Option<u64>),
    ) -> Result<Option<Retired<Ranges>>, BusError> {
        match places {
            (None, None) => Ok(None),
            (Some(from), Some(to)) if from == to => Ok(None),
            (Some(from), Some(to)) => bus.move_range(from, to).map(Some),
            (Some(from), None) => bus.remove(from).map(Some),
            (None, Some(to)) => {
                let region = Region { device: Arc::clone(&self.device), index };
                bus.insert_retiring(to, size, self.name, Arc::new(region)).map(Some)
            }
        }
    }

    /// Takes the BARs off the bus for good. After the return no access to one is running and none will come.
    ///
    /// # Errors
    /// Called inside an access: the BARs go, and are not waited for.
    pub(super) fn withdraw(&self) -> Result<(), InReadSection> {
        let mut places = self.places();
        places.withdrawn = true;
        let Some(bus) = self.host.bus.upgrade() else { return Ok(()) };
        let retired: Vec<_> =
            (0..BARS).filter_map(|index| self.place_bar(&bus, &mut places, index, None)).collect();
        drop(places);
        wait_for(retired)
    }
}

/// Waits until nobody sees any of `retired`, which are in the order in which they were replaced.
fn wait_for(mut retired: Vec<Retired<Ranges>>) -> Result<(), InReadSection> {
    match retired.pop() {
        Some(last) => last.with_older(retired).wait(),
        None => Ok(()),
    }
}

/// A BAR on the bus.
struct Region {
    device: Arc<dyn PciDevice>,
    index: usize,
}

impl BusDevice for Region {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read_bar(self.index, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Nobody can wait for it here; buses call the other one.
        drop(self.write_deferred(offset, data));
    }

    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        self.device.write_bar(self.index, offset, data)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
