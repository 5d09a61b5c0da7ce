//! `GsiTable`: who owns which global system interrupt, and where each leads. Pure bookkeeping, no system calls.

use super::MsiMessage;
use crate::seam::{IrqRoute, IrqTarget};

/// Pins of an I/O APIC: the GSIs from 0 on.
pub const IOAPIC_PINS: u32 = 24;

/// Inputs of the two 8259s, which hear the same lines.
const PIC_INPUTS: u32 = 16;

/// Who emulates the interrupt controllers beside the local APICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// KVM: an I/O APIC and two 8259s.
    #[default]
    Kernel,
    /// This program: an I/O APIC whose pins are message-signalled interrupts for KVM (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
}

/// Why a GSI cannot be given out or routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GsiError {
    /// A line has one owner: an edge-triggered one because a pulse says not whose it is, a level-triggered one because its
    /// owner is who shares it.
    #[error("GSI {gsi} cannot be given to {new}: it belongs to {owner}")]
    Taken {
        /// The number asked for.
        gsi: u32,
        /// Who asks.
        new: &'static str,
        /// Whose it is.
        owner: &'static str,
    },
    /// The I/O APIC has no such pin.
    #[error("GSI {gsi} has no pin on the I/O APIC (0 to 23 have): {new} cannot have it")]
    NoPin {
        /// The number asked for.
        gsi: u32,
        /// Who asks.
        new: &'static str,
    },
    /// All routes that KVM has are in use.
    #[error("no GSI is left for {new}: KVM has {limit} interrupt routes")]
    Full {
        /// Who asks.
        new: &'static str,
        /// `KVM_CAP_IRQ_ROUTING`.
        limit: u32,
    },
    /// A route for a GSI that nobody owns, or that leads to a pin of KVM's.
    #[error("GSI {0} cannot be routed to a message")]
    NotRoutable(u32),
}

/// One GSI that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    owner: Option<&'static str>,
    message: Option<MsiMessage>,
}

/// Owners and routes of all GSIs of a VM.
///
/// GSIs 0–23 are the pins of the I/O APIC. In the kernel they lead to its pins and those of the 8259s whoever owns them;
/// with the split irqchip each leads to the message that the I/O APIC of this program gives it. The GSIs above belong to
/// message-signalled interrupts.
#[derive(Debug)]
pub struct GsiTable {
    irqchip: Irqchip,
    limit: u32,
    /// By GSI; the pins are always there.
    entries: Vec<Option<Entry>>,
    /// GSIs above the pins that are in use.
    allocated: u32,
}

const FREE_PIN: Option<Entry> = Some(Entry { owner: None, message: None });

impl GsiTable {
    /// The table of a VM without devices; KVM takes at most `limit` routes.
    #[must_use]
    pub fn new(irqchip: Irqchip, limit: u32) -> Self {
        Self { irqchip, limit, entries: vec![FREE_PIN; IOAPIC_PINS as usize], allocated: 0 }
    }

    /// Gives pin `gsi` to `new` alone.
    ///
    /// # Errors
    /// There is no such pin, or it is taken.
    pub fn claim_pin(&mut self, gsi: u32, new: &'static str) -> Result<(), GsiError> {
        let pin = self.entries.get_mut(gsi as usize).filter(|_| gsi < IOAPIC_PINS);
        let Some(Some(pin)) = pin else {
            return Err(GsiError::NoPin { gsi, new });
        };
        match pin.owner {
            Some(owner) => Err(GsiError::Taken { gsi, new, owner }),
            None => {
                pin.owner = Some(new);
                Ok(())
            }
        }
    }

    /// Gives the lowest free GSI above the pins to `new`.
    ///
    /// # Errors
    /// With it the table would have more routes than KVM takes.
    pub fn allocate(&mut self, new: &'static str) -> Result<u32, GsiError> {
        if self.allocated >= self.limit.saturating_sub(self.fixed()) {
            return Err(GsiError::Full { new, limit: self.limit });
        }
        let free = self.entries.iter().position(Option::is_none);
        let index = free.unwrap_or(self.entries.len());
        // Fewer GSIs are in use than KVM has routes, and the lowest free one is among the first so many.
        let Ok(gsi) = u32::try_from(index) else {
            return Err(GsiError::Full { new, limit: self.limit });
        };
        let entry = Some(Entry { owner: Some(new), message: None });
        match self.entries.get_mut(index) {
            Some(slot) => *slot = entry,
            None => self.entries.push(entry),
        }
        self.allocated += 1;
        Ok(gsi)
    }

    /// Takes `gsi` back, and the route of one above the pins with it. The route of a pin is the I/O APIC's.
    pub fn release(&mut self, gsi: u32) {
        let Some(slot) = self.entries.get_mut(gsi as usize) else { return };
        match slot {
            Some(pin) if gsi < IOAPIC_PINS => pin.owner = None,
            Some(_) => {
                *slot = None;
                self.allocated -= 1;
            }
            None => {}
        }
    }

    /// Who owns `gsi`.
    #[must_use]
    pub fn owner(&self, gsi: u32) -> Option<&'static str> {
        self.entry(gsi)?.owner
    }

    /// The message that `gsi` leads to.
    #[must_use]
    pub fn message(&self, gsi: u32) -> Option<MsiMessage> {
        self.entry(gsi)?.message
    }

    /// Lets `gsi` lead to `message`, or nowhere. Returns what it led to.
    ///
    /// # Errors
    /// Nobody owns it, or it is a pin of KVM's.
    pub fn set_message(
        &mut self,
        gsi: u32,
        message: Option<MsiMessage>,
    ) -> Result<Option<MsiMessage>, GsiError> {
        let kernels = self.irqchip == Irqchip::Kernel && gsi < IOAPIC_PINS;
        match self.entries.get_mut(gsi as usize).and_then(Option::as_mut) {
            Some(entry) if !kernels => Ok(std::mem::replace(&mut entry.message, message)),
            _ => Err(GsiError::NotRoutable(gsi)),
        }
    }

    /// Every route, as KVM is to have them.
    pub fn routes(&self) -> impl Iterator<Item = IrqRoute> + '_ {
        let pins = if self.irqchip == Irqchip::Kernel { IOAPIC_PINS } else { 0 };
        let ioapic = (0..pins).map(|pin| IrqRoute { gsi: pin, target: IrqTarget::Ioapic { pin } });
        let pic = (0..pins.min(PIC_INPUTS))
            .map(|gsi| IrqRoute { gsi, target: IrqTarget::Pic { second: gsi >= 8, input: gsi % 8 } });
        let messages = (0..).zip(&self.entries).filter_map(|(gsi, entry)| {
            let message = (*entry)?.message?;
            Some(IrqRoute { gsi, target: IrqTarget::Message(message) })
        });
        ioapic.chain(pic).chain(messages)
    }

    /// Routes that are kept for the pins.
    fn fixed(&self) -> u32 {
        match self.irqchip {
            Irqchip::Kernel => IOAPIC_PINS + PIC_INPUTS,
            Irqchip::Split => IOAPIC_PINS,
        }
    }

    fn entry(&self, gsi: u32) -> Option<&Entry> {
        self.entries.get(gsi as usize)?.as_ref()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 4096;

    fn message(data: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data }
    }

    #[test]
    fn a_pin_has_one_owner_until_it_is_released() {
        let mut table = GsiTable::new(Irqchip::Kernel, LIMIT);
        table.claim_pin(4, "serial").unwrap();
        let error = table.claim_pin(4, "rtc").unwrap_err();
        assert_eq!(error.to_string(), "GSI 4 cannot be given to rtc: it belongs to serial");
        assert_eq!(table.owner(4), Some("serial"));
        table.release(4);
        table.claim_pin(4, "rtc").unwrap();
    }

    #[test]
    fn a_pin_the_ioapic_lacks_is_refused() {
        let mut table = GsiTable::new(Irqchip::Split, LIMIT);
        assert_eq!(table.claim_pin(24, "x"), Err(GsiError::NoPin { gsi: 24, new: "x" }));
        let gsi = table.allocate("vector").unwrap();
        assert_eq!((gsi, table.claim_pin(gsi, "x")), (24, Err(GsiError::NoPin { gsi: 24, new: "x" })));
        table.claim_pin(23, "x").unwrap();
    }

    #[test]
    fn every_route_that_kvm_has_can_be_used_and_not_one_more() {
        for (irqchip, fixed) in [(Irqchip::Kernel, 40), (Irqchip::Split, 24)] {
            let mut table = GsiTable::new(irqchip, LIMIT);
            let pins = if irqchip == Irqchip::Split { 0..24 } else { 0..0 };
            let vectors: Vec<_> = (fixed..LIMIT).map(|_| table.allocate("vector").unwrap()).collect();
            for gsi in vectors.into_iter().chain(pins) {
                assert!(gsi < LIMIT);
                table.set_message(gsi, Some(message(gsi))).unwrap();
            }
            assert_eq!(table.routes().count(), LIMIT as usize);
            let error = table.allocate("net").unwrap_err();
            assert_eq!(error.to_string(), "no GSI is left for net: KVM has 4096 interrupt routes");
            table.release(1000);
            assert_eq!(table.allocate("net"), Ok(1000));
        }
    }

    #[test]
    fn the_pins_of_the_kernel_lead_where_kvm_lets_them_lead_by_itself() {
        let table = GsiTable::new(Irqchip::Kernel, LIMIT);
        let routes: Vec<_> = table.routes().collect();
        assert_eq!(routes.len(), 40);
        for route in routes {
            match route.target {
                IrqTarget::Ioapic { pin } => assert_eq!(pin, route.gsi),
                IrqTarget::Pic { second, input } => assert_eq!(u32::from(second) * 8 + input, route.gsi),
                IrqTarget::Message(_) => panic!("{route:?}"),
            }
        }
    }

    #[test]
    fn what_is_nobodys_or_the_kernels_cannot_be_routed() {
        let mut table = GsiTable::new(Irqchip::Kernel, LIMIT);
        for gsi in [0, 23, 24, u32::MAX] {
            assert_eq!(table.set_message(gsi, Some(message(1))), Err(GsiError::NotRoutable(gsi)));
        }
        GsiTable::new(Irqchip::Split, LIMIT).set_message(23, Some(message(1))).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u32),
        Allocate,
        Release(u32),
        Route(u32, Option<u32>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let gsi = prop_oneof![0..32_u32, 20..48_u32];
        prop_oneof![
            gsi.clone().prop_map(Step::Claim),
            Just(Step::Allocate),
            gsi.clone().prop_map(Step::Release),
            (gsi, any::<Option<u32>>()).prop_map(|(gsi, data)| Step::Route(gsi, data)),
        ]
    }

    /// The table as a map: what is in it is owned (a pin of the split irqchip may be routed without an owner).
    #[derive(Default)]
    struct Model {
        owners: BTreeMap<u32, &'static str>,
        messages: BTreeMap<u32, MsiMessage>,
    }

    proptest! {
        #[test]
        fn the_table_does_what_a_map_of_owners_and_one_of_messages_would(
            split in any::<bool>(),
            limit in 40_u32..56,
            steps in prop::collection::vec(step(), 0..80),
        ) {
            let irqchip = if split { Irqchip::Split } else { Irqchip::Kernel };
            let fixed = if split { 24 } else { 40 };
            let (mut table, mut model) = (GsiTable::new(irqchip, limit), Model::default());
            for step in steps {
                match step {
                    Step::Claim(gsi) => {
                        let free = gsi < 24 && !model.owners.contains_key(&gsi);
                        prop_assert_eq!(table.claim_pin(gsi, "pin").is_ok(), free);
                        if free {
                            model.owners.insert(gsi, "pin");
                        }
                    }
                    Step::Allocate => {
                        let used = model.owners.range(24..).count() as u32;
                        let lowest = (24..).find(|gsi| !model.owners.contains_key(gsi)).unwrap();
                        let expected = (fixed + used < limit).then_some(lowest);
                        prop_assert_eq!(table.allocate("vector").ok(), expected);
                        model.owners.extend(expected.map(|gsi| (gsi, "vector")));
                    }
                    Step::Release(gsi) => {
                        table.release(gsi);
                        model.owners.remove(&gsi);
                        if gsi >= 24 {
                            model.messages.remove(&gsi);
                        }
                    }
                    Step::Route(gsi, data) => {
                        let routable = if gsi < 24 { split } else { model.owners.contains_key(&gsi) };
                        let before = table.set_message(gsi, data.map(message));
                        prop_assert_eq!(before.is_ok(), routable);
                        if let Ok(before) = before {
                            prop_assert_eq!(before, model.messages.remove(&gsi));
                            model.messages.extend(data.map(|data| (gsi, message(data))));
                        }
                    }
                }
                for gsi in 0..64 {
                    prop_assert_eq!(table.owner(gsi), model.owners.get(&gsi).copied());
                    prop_assert_eq!(table.message(gsi), model.messages.get(&gsi).copied());
                }
                let routed: BTreeMap<_, _> = table
                    .routes()
                    .filter_map(|route| match route.target {
                        IrqTarget::Message(message) => Some((route.gsi, message)),
                        _ => None,
                    })
                    .collect();
                prop_assert_eq!(&routed, &model.messages);
                prop_assert!(table.routes().count() <= limit as usize);
            }
        }
    }
}
