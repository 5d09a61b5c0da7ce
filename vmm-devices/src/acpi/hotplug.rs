//! `HotplugSlots`: the registers by which a guest learns which PCI slots have news, and gives slots back.
//!
//! Three registers of 32 bits, a bit for each slot; the bit of slot *n* is bit *n*. A slot is a device of the one bus, so
//! that bit 0, the host bridge, never has news. The guest's way to them are the methods of the tables: the generic event
//! device has it read the first two, which clears them, and notify each slot; `_EJ0` writes the third.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_core::Deferred;

use super::{GenericEvents, PCI_HOTPLUG};
use crate::bus::{BusDevice, both};

/// What is done with a slot that the guest gives back. Called inside an access: it does not wait.
type Eject = Box<dyn Fn(u8) -> Option<Deferred> + Send + Sync>;

/// The registers, and the interrupt that has a guest read them.
pub struct HotplugSlots {
    /// Both pair with themselves, as the register of the events does: bits are set before the event is raised.
    changed: AtomicU32,
    leaving: AtomicU32,
    events: Arc<GenericEvents>,
    eject: Eject,
}

impl HotplugSlots {
    /// Offset of the register of slots to which a device was added.
    pub const CHANGED: u64 = 0;
    /// Offset of the register of slots that are asked to be given back.
    pub const LEAVING: u64 = 4;
    /// Offset of the register that takes the slots that are given back. It reads as zero.
    pub const EJECT: u64 = 8;
    /// Length of the range in bytes.
    pub const LENGTH: u64 = 12;

    /// Registers without news, whose event is one of `events`. `eject` is called with each slot that the guest gives back,
    /// whether or not it was asked to, and whether or not anything is there; the guest's access ends when that says so.
    #[must_use]
    pub fn new(
        events: Arc<GenericEvents>,
        eject: impl Fn(u8) -> Option<Deferred> + Send + Sync + 'static,
    ) -> Self {
        let (changed, leaving) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { changed, leaving, events, eject: Box::new(eject) }
    }

    /// Tells the guest that there is a device in `slot`.
    pub fn added(&self, slot: u8) {
        self.changed.fetch_or(bit(slot), Ordering::AcqRel);
        self.events.raise(PCI_HOTPLUG);
    }

    /// Asks the guest to give `slot` back.
    pub fn ask(&self, slot: u8) {
        self.leaving.fetch_or(bit(slot), Ordering::AcqRel);
        self.events.raise(PCI_HOTPLUG);
    }

    /// The device of `slot` has gone: what the guest has not read about it is old.
    pub fn forget(&self, slot: u8) {
        self.changed.fetch_and(!bit(slot), Ordering::AcqRel);
        self.leaving.fetch_and(!bit(slot), Ordering::AcqRel);
    }
}

fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for HotplugSlots {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else { return };
        *word = match offset {
            Self::CHANGED => self.changed.swap(0, Ordering::AcqRel),
            Self::LEAVING => self.leaving.swap(0, Ordering::AcqRel),
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Nobody can wait for it here; buses call the other one.
        drop(self.write_deferred(offset, data));
    }

    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        let word = <[u8; 4]>::try_from(data).ok().filter(|_| offset == Self::EJECT)?;
        let slots = u32::from_le_bytes(word);
        (0..32).filter(|slot| slots & bit(*slot) != 0).map(|slot| (self.eject)(slot)).fold(None, both)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Mutex;

    use vmm_core::deferred;
    use vmm_core::irq::IrqTrigger;

    use super::*;

    struct Bench {
        interrupt: IrqTrigger,
        events: Arc<GenericEvents>,
        slots: HotplugSlots,
        ejected: Arc<Mutex<Vec<u8>>>,
    }

    fn bench() -> Bench {
        let interrupt = IrqTrigger::unconnected().unwrap();
        let events = Arc::new(GenericEvents::new(interrupt.clone()));
        let ejected = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ejected);
        let slots = HotplugSlots::new(Arc::clone(&events), move |slot| {
            seen.lock().unwrap().push(slot);
            None
        });
        Bench { interrupt, events, slots, ejected }
    }

    fn read(slots: &HotplugSlots, offset: u64) -> u32 {
        let mut word = [0xff; 4];
        slots.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn news_of_slots_interrupt_and_are_read_once() {
        let bench = bench();
        bench.slots.added(1);
        bench.slots.added(31);
        bench.slots.ask(5);
        let mut events = [0];
        bench.events.read(0, &mut events);
        assert_eq!((bench.interrupt.signals(), events), (3, [PCI_HOTPLUG]));
        for expected in [(0x8000_0002, 0x20), (0, 0)] {
            let found =
                (read(&bench.slots, HotplugSlots::CHANGED), read(&bench.slots, HotplugSlots::LEAVING));
            assert_eq!(found, expected);
        }
        assert_eq!(read(&bench.slots, HotplugSlots::EJECT), 0);
    }

    #[test]
    fn what_is_not_read_of_a_slot_goes_with_its_device() {
        let bench = bench();
        for slot in [3, 4] {
            bench.slots.added(slot);
            bench.slots.ask(slot);
        }
        bench.slots.forget(3);
        assert_eq!(
            (read(&bench.slots, HotplugSlots::CHANGED), read(&bench.slots, HotplugSlots::LEAVING)),
            (0x10, 0x10)
        );
    }

    #[test]
    fn each_slot_of_a_write_is_given_back() {
        let bench = bench();
        assert!(bench.slots.write_deferred(HotplugSlots::EJECT, &0x8000_0005_u32.to_le_bytes()).is_none());
        assert_eq!(*bench.ejected.lock().unwrap(), [0, 2, 31]);
    }

    #[test]
    fn the_write_ends_when_every_slot_has_gone() {
        let events = Arc::new(GenericEvents::new(IrqTrigger::unconnected().unwrap()));
        let completers = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&completers);
        let slots = HotplugSlots::new(events, move |_| {
            let (completer, access) = deferred();
            kept.lock().unwrap().push(completer);
            Some(access)
        });
        let access = slots.write_deferred(HotplugSlots::EJECT, &6_u32.to_le_bytes()).unwrap();
        let ended = Arc::new(Mutex::new(false));
        let seen = Arc::clone(&ended);
        access.on_complete(move || *seen.lock().unwrap() = true);
        completers.lock().unwrap().pop().unwrap().complete();
        assert!(!*ended.lock().unwrap());
        completers.lock().unwrap().pop().unwrap().complete();
        assert!(*ended.lock().unwrap());
    }

    #[test]
    fn fault_b1_other_widths_and_other_registers_take_nothing_and_eject_nothing() {
        let bench = bench();
        bench.slots.added(1);
        for length in [0, 1, 2, 8] {
            let mut data = vec![0xff; length];
            bench.slots.read(HotplugSlots::CHANGED, &mut data);
            assert_eq!(data, vec![0; length]);
            bench.slots.write(HotplugSlots::EJECT, &vec![0xff; length]);
        }
        for offset in [HotplugSlots::CHANGED, HotplugSlots::LEAVING, 1, 9] {
            bench.slots.write(offset, &[0xff; 4]);
        }
        assert_eq!(read(&bench.slots, 1), 0);
        assert_eq!((read(&bench.slots, HotplugSlots::CHANGED), bench.ejected.lock().unwrap().len()), (2, 0));
    }
}
