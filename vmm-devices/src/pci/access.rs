//! `AccessWindow`: registers in configuration space through which a BAR is reached that may not be mapped (virtio 1.3,
//! section 4.1.4.9, the capability for configuration access).

use super::configuration::Configuration;

/// Offsets in the capability (section 4.1.4): BAR, offset in it, length, and the data.
const BAR: usize = 4;
const OFFSET: usize = 8;
const LENGTH: usize = 12;
const DATA: usize = 16;
const DATA_LENGTH: usize = 4;

/// Where the capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessWindow {
    at: usize,
}

/// The access that the registers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) bar: usize,
    pub(super) offset: u64,
    /// 1, 2 or 4.
    pub(super) length: usize,
    pub(super) data: [u8; DATA_LENGTH],
}

impl AccessWindow {
    /// Length of the capability with its header.
    pub const LENGTH: u8 = 20;

    /// The window of the capability at `at`.
    #[must_use]
    pub fn new(at: u8) -> Self {
        Self { at: usize::from(at) }
    }

    /// Whether an access to configuration space touches the data.
    pub(super) fn is_touched(self, offset: usize, length: usize) -> bool {
        let start = self.at.saturating_add(DATA);
        offset < start.saturating_add(DATA_LENGTH) && start < offset.saturating_add(length)
    }

    /// What the registers name: `None` if it is not inside a BAR, not of 1, 2 or 4 bytes or not aligned.
    pub(super) fn selected(self, configuration: &Configuration) -> Option<Access> {
        let [bar] = configuration.get(self.at.saturating_add(BAR))?;
        let offset = u32::from_le_bytes(configuration.get(self.at.saturating_add(OFFSET))?);
        let length = u32::from_le_bytes(configuration.get(self.at.saturating_add(LENGTH))?);
        let data = configuration.get(self.at.saturating_add(DATA))?;
        let size = configuration.bar(usize::from(bar))?.size();
        let (offset, end) = (u64::from(offset), u64::from(offset).saturating_add(u64::from(length)));
        let is_good = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(u64::from(length)) && end <= size;
        is_good.then_some(Access { bar: usize::from(bar), offset, length: length as usize, data })
    }

    /// Keeps what was read where software reads it.
    pub(super) fn store(self, configuration: &mut Configuration, data: &[u8]) {
        configuration.put(self.at.saturating_add(DATA), data);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pci::Function;
    use crate::pci::testing::{IDENTITY, Named, TestHost};
    use crate::pci::{Bar, BarWidth};

    /// A function with a window at 0x40 and BAR 1 of 32 bytes.
    fn function() -> (TestHost, Arc<Named>, Arc<Function>) {
        let host = TestHost::new();
        let device = Arc::new(Named { id: 0x5a, ..Named::default() });
        let mut configuration = Configuration::new(IDENTITY);
        configuration.add_bar(1, Bar::registers(32, BarWidth::Bits32).unwrap()).unwrap();
        let at = configuration.add_capability(9, &[0; 18], &[0xff; 18]).unwrap();
        let function = Function::new(
            "test",
            configuration,
            Arc::clone(&device) as _,
            Some(AccessWindow::new(at)),
            host.host(),
        );
        (host, device, Arc::new(function.unwrap()))
    }

    fn select(function: &Arc<Function>, bar: u8, offset: u32, length: u32) {
        assert!(function.write(0x44, &[bar]).is_none());
        assert!(function.write(0x48, &offset.to_le_bytes()).is_none());
        assert!(function.write(0x4c, &length.to_le_bytes()).is_none());
    }

    fn read(function: &Function, offset: usize, length: usize) -> Vec<u8> {
        let mut data = vec![0xff; length];
        function.read(offset, &mut data);
        data
    }

    #[test]
    fn the_bar_is_reached_though_memory_space_is_off() {
        let (_host, device, function) = function();
        select(&function, 1, 28, 2);
        assert_eq!(read(&function, 0x50, 4), [0x5a, 0x5a, 0, 0]);
        assert!(function.write(0x50, &[1, 2, 3, 4]).is_none());
        assert_eq!(*device.writes.lock().unwrap(), [(1, 28, vec![1, 2])]);
    }

    #[test]
    fn fault_b2_an_access_that_is_not_inside_a_bar_reaches_nobody() {
        let (_host, device, function) = function();
        let bad = [
            (1, 32, 4),
            (1, 30, 4),
            (1, 0, 0),
            (1, 0, 3),
            (1, 0, 8),
            (1, u32::MAX - 3, 4),
            (1, 0, u32::MAX),
            (0, 0, 4),
            (255, 0, 4),
        ];
        for (bar, offset, length) in bad {
            select(&function, bar, offset, length);
            assert!(function.write(0x50, &[9, 9, 9, 9]).is_none());
            assert_eq!(read(&function, 0x50, 4), [9; 4], "{bar} {offset} {length}");
        }
        assert!(device.writes.lock().unwrap().is_empty());
    }
}
