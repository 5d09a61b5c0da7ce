//! `GsiTable`: who owns which global system interrupt. Pure bookkeeping, no system calls.

use std::collections::BTreeMap;

/// First GSI that has no pin of the in-kernel irqchip behind it.
const IRQCHIP_PINS: u32 = 24;

/// Why a GSI cannot be given out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GsiError {
    /// An edge-triggered line cannot be shared: one owner's pulse would be taken for the other's.
    #[error("GSI {gsi} belongs to {owner} already")]
    Taken {
        /// The number asked for.
        gsi: u32,
        /// Whose it is.
        owner: &'static str,
    },
    /// The in-kernel irqchip has no such pin.
    #[error("GSI {0} has no pin on the irqchip (0 to 23 have)")]
    NoPin(u32),
}

/// The owners of the irqchip's pins.
#[derive(Debug, Default)]
pub struct GsiTable {
    owners: BTreeMap<u32, &'static str>,
}

impl GsiTable {
    /// Gives pin `gsi` to `owner` alone.
    pub fn claim(&mut self, gsi: u32, owner: &'static str) -> Result<(), GsiError> {
        if gsi >= IRQCHIP_PINS {
            return Err(GsiError::NoPin(gsi));
        }
        match self.owners.get(&gsi) {
            Some(owner) => Err(GsiError::Taken { gsi, owner }),
            None => {
                self.owners.insert(gsi, owner);
                Ok(())
            }
        }
    }

    /// Takes pin `gsi` back.
    pub fn release(&mut self, gsi: u32) {
        self.owners.remove(&gsi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_has_one_owner_until_it_is_released() {
        let mut table = GsiTable::default();
        table.claim(4, "serial").unwrap();
        assert_eq!(table.claim(4, "rtc"), Err(GsiError::Taken { gsi: 4, owner: "serial" }));
        table.release(4);
        table.claim(4, "rtc").unwrap();
    }

    #[test]
    fn a_pin_the_irqchip_lacks_is_refused() {
        assert_eq!(GsiTable::default().claim(24, "x"), Err(GsiError::NoPin(24)));
        GsiTable::default().claim(23, "x").unwrap();
    }
}
