//! `Msix`: the MSI-X capability of a function: its registers over a table of vectors (PCI Local Bus 3.0, section 6.8.2).

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_core::irq::{IrqError, IrqTrigger, MsiMessage, MsixTable};
use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

/// Message control, after the header of the capability.
pub(super) const CONTROL: usize = 2;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a row of the table.
const ROW: u64 = 16;
/// In a row's vector control.
const VECTOR_MASK: u32 = 1;

/// The registers of one function. Triggers take no lock.
///
/// Rows and pending bits are read and written by aligned accesses of 4 or 8 bytes; of others the specification says nothing,
/// and here they read as zero and change nothing.
pub struct Msix {
    table: MsixTable,
    triggers: Box<[IrqTrigger]>,
    is_enabled: AtomicBool,
    /// Held while vectors are opened and closed by either; comes before the table's lock.
    open: Mutex<Open>,
    /// Held while a row is read, changed and written; comes before the table's lock.
    rows: Mutex<()>,
}

/// What all vectors depend on.
#[derive(Clone, Copy)]
struct Open {
    /// Message control.
    control: u16,
    /// Without it a function sends no message (section 6.2.2): what is triggered stays pending.
    is_bus_master: bool,
}

impl Msix {
    /// Capability id.
    pub const CAPABILITY: u8 = 0x11;

    /// The registers over `table`, MSI-X off, and of a function that is no bus master.
    #[must_use]
    pub fn new(table: MsixTable) -> Self {
        let triggers = (0..table.len()).filter_map(|vector| table.trigger(vector)).collect();
        Self {
            table,
            triggers,
            is_enabled: AtomicBool::new(false),
            open: Mutex::new(Open { control: 0, is_bus_master: false }),
            rows: Mutex::new(()),
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.triggers.len()
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_length(&self) -> u64 {
        (self.vectors() as u64).saturating_mul(ROW)
    }

    /// Bytes of the pending bits.
    #[must_use]
    pub fn pending_length(&self) -> u64 {
        (self.vectors() as u64).div_ceil(64).saturating_mul(8)
    }

    /// What follows the capability's header, and the bits of it that software may write: table and pending bits are at these
    /// offsets, multiples of 8, in BAR `bar`.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let size = u16::try_from(self.vectors().saturating_sub(1)).unwrap_or(u16::MAX) & 0x7ff;
        let place = |offset: u32| (offset & !7 | u32::from(bar)).to_le_bytes();
        let ([c0, c1], [t0, t1, t2, t3], [p0, p1, p2, p3]) =
            (size.to_le_bytes(), place(table), place(pending));
        let [w0, w1] = (ENABLE | FUNCTION_MASK).to_le_bytes();
        ([c0, c1, t0, t1, t2, t3, p0, p1, p2, p3], [w0, w1, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Triggers `vector`, if there is one. False: MSI-X is off, and nothing is triggered.
    pub fn trigger(&self, vector: u16) -> bool {
        let is_enabled = self.is_enabled.load(Ordering::Acquire);
        if is_enabled && let Some(trigger) = self.triggers.get(usize::from(vector)) {
            trigger.trigger();
        }
        is_enabled
    }

    /// What triggers `vector` when the kernel signals it; `None`: MSI-X is off, there is no such vector, or it is not one for the kernel.
    /// While the vector is masked, signals wait in it.
    pub fn eventfd(&self, vector: u16) -> Option<EventFd> {
        let vector = self.table.vector(vector.into()).filter(|_| self.is_enabled.load(Ordering::Acquire))?;
        vector.eventfd()?.try_clone().ok()
    }

    /// Software has written message control.
    ///
    /// # Errors
    /// KVM refuses; mask and enable are as they were.
    pub(super) fn set_control(&self, control: u16) -> Result<(), IrqError> {
        let mut open = lock(&self.open);
        self.set_open(&mut open, |open| Open { control, ..open })
    }

    /// The function may send messages from now on, or may not.
    ///
    /// # Errors
    /// As of message control.
    pub(super) fn set_bus_master(&self, is_bus_master: bool) -> Result<(), IrqError> {
        let mut open = lock(&self.open);
        self.set_open(&mut open, |open| Open { is_bus_master, ..open })
    }

    fn set_open(&self, open: &mut Open, change: impl FnOnce(Open) -> Open) -> Result<(), IrqError> {
        let new = change(*open);
        let enable = new.control & ENABLE != 0;
        let mask = new.control & FUNCTION_MASK != 0 || !new.is_bus_master;
        // Before vectors are open and after they are closed: who sees it off may say it in another way, and nobody would
        // look there while it is on.
        let before = self.is_enabled.fetch_or(enable, Ordering::AcqRel);
        let done = self.table.set_function_mask(!enable || mask);
        let is_enabled = if done.is_ok() { enable } else { before };
        self.is_enabled.store(is_enabled, Ordering::Release);
        if done.is_ok() {
            *open = new;
        }
        done
    }

    /// Software reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((index, at)) = row(offset, data.len()) else { return };
        if let Some((message, is_masked)) = self.table.entry(index) {
            let bytes = row_bytes(message, is_masked);
            for (byte, register) in data.iter_mut().zip(bytes.iter().skip(at)) {
                *byte = *register;
            }
        }
    }

    /// Software writes the table.
    ///
    /// # Errors
    /// KVM refuses the route; the row is as it was, or has the new message and its old mask.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> Result<(), IrqError> {
        let Some((index, at)) = row(offset, data.len()) else { return Ok(()) };
        let _row = lock(&self.rows);
        let Some((message, is_masked)) = self.table.entry(index) else { return Ok(()) };
        let mut bytes = row_bytes(message, is_masked);
        for (register, byte) in bytes.iter_mut().skip(at).zip(data) {
            *register = *byte;
        }
        let (message, mask) = row_values(bytes);
        // A message costs nothing while its vector is masked.
        if mask {
            self.table.set_mask(index, true)?;
            self.table.set_message(index, message)
        } else {
            self.table.set_message(index, message)?;
            self.table.set_mask(index, false)
        }
    }

    /// Software reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_aligned(offset, data.len()) {
            return;
        }
        let Ok(word) = usize::try_from(offset / 8) else { return };
        let bits = self.table.pending(word).to_le_bytes();
        for (byte, bits) in data.iter_mut().zip(bits.iter().skip((offset & 7) as usize)) {
            *byte = *bits;
        }
    }

    /// Forgets what is pending, as a reset of the device does.
    pub fn clear_pending(&self) {
        for vector in (0..self.vectors()).filter_map(|index| self.table.vector(index)) {
            vector.clear_pending();
        }
    }
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix")
            .field("table", &self.table)
            .field("is_enabled", &self.is_enabled)
            .finish_non_exhaustive()
    }
}

fn is_aligned(offset: u64, length: usize) -> bool {
    matches!(length, 4 | 8) && offset.is_multiple_of(length as u64)
}

/// The row of an access, and where in it.
fn row(offset: u64, length: usize) -> Option<(usize, usize)> {
    let index = usize::try_from(offset / ROW).ok()?;
    is_aligned(offset, length).then_some((index, (offset & (ROW - 1)) as usize))
}

fn row_bytes(message: MsiMessage, is_masked: bool) -> [u8; 16] {
    let control = if is_masked { VECTOR_MASK } else { 0 };
    let row = u128::from(message.address) | u128::from(message.data) << 64 | u128::from(control) << 96;
    row.to_le_bytes()
}

fn row_values(bytes: [u8; 16]) -> (MsiMessage, bool) {
    let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, c0, ..] = bytes;
    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let data = u32::from_le_bytes([d0, d1, d2, d3]);
    (MsiMessage { address, data }, u32::from(c0) & VECTOR_MASK != 0)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use vmm_core::fake::{FakeCall, FakeVm};
    use vmm_core::irq::{IrqOptions, IrqRouter, TriggeredBy};

    use super::*;

    fn msix(vectors: usize) -> (Arc<FakeVm>, Msix) {
        let vm = Arc::new(FakeVm::default());
        let router = IrqRouter::new(Arc::clone(&vm) as _, IrqOptions::all());
        let table = router.msix_table("test", vectors, TriggeredBy::UserSpace).unwrap();
        let msix = Msix::new(table);
        msix.set_bus_master(true).unwrap();
        (vm, msix)
    }

    fn load(msix: &Msix, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        msix.read_table(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn pending(msix: &Msix, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        msix.read_pending(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn program(msix: &Msix, index: u64, data: u32) {
        for (offset, value) in [(0, 0xfee0_1000), (4, 0), (8, data), (12, 0)] {
            msix.write_table(16 * index + offset, &u32::to_le_bytes(value)).unwrap();
        }
    }

    #[test]
    fn rows_read_back_as_they_were_written_by_words_and_by_double_words() {
        let (_, msix) = msix(3);
        assert_eq!((0..4).map(|word| load(&msix, 16 + 4 * word)).collect::<Vec<_>>(), [0, 0, 0, 1]);
        program(&msix, 1, 0x51);
        assert_eq!(
            (0..4).map(|word| load(&msix, 16 + 4 * word)).collect::<Vec<_>>(),
            [0xfee0_1000, 0, 0x51, 0]
        );
        msix.write_table(40, &0x1_0000_0052u64.to_le_bytes()).unwrap();
        let mut row = [0; 8];
        msix.read_table(40, &mut row);
        assert_eq!(u64::from_le_bytes(row), 0x1_0000_0052);
        assert_eq!(load(&msix, 0x51), 0);
    }

    #[test]
    fn a_vector_is_delivered_only_while_the_function_and_the_row_are_open() {
        let (vm, msix) = msix(2);
        assert!(!msix.trigger(0), "MSI-X is off");
        assert_eq!(pending(&msix, 0), 0);
        msix.set_control(0xc000).unwrap();
        program(&msix, 0, 0x41);
        assert!(msix.trigger(0) && msix.trigger(1));
        assert_eq!(pending(&msix, 0), 0b11);
        msix.set_control(0x8000).unwrap();
        let routed = vm.routes();
        assert_eq!(routed, [(routed[0].0, MsiMessage { address: 0xfee0_1000, data: 0x41 })]);
        assert_eq!((vm.signals(routed[0].0), pending(&msix, 0)), (1, 0b10));
        msix.clear_pending();
        assert_eq!(pending(&msix, 0), 0);
        assert!(msix.trigger(9), "a vector that is not there is nobody's");
        msix.set_control(0).unwrap();
        assert!(!msix.trigger(0));
    }

    #[test]
    fn a_function_that_is_no_bus_master_sends_its_messages_when_it_is() {
        let (vm, msix) = msix(1);
        msix.set_bus_master(false).unwrap();
        msix.set_control(0x8000).unwrap();
        program(&msix, 0, 0x41);
        assert!(msix.trigger(0));
        assert_eq!((vm.routes(), pending(&msix, 0)), (vec![], 1));
        msix.set_bus_master(true).unwrap();
        assert_eq!((vm.signals(vm.routes()[0].0), pending(&msix, 0)), (1, 0));
        msix.set_bus_master(false).unwrap();
        assert!(msix.trigger(0));
        assert_eq!(pending(&msix, 0), 1);
    }

    #[test]
    fn the_capability_names_size_and_places_and_lets_two_bits_be_written() {
        let (_, msix) = msix(5);
        let (body, writable) = msix.capability(2, 0x8000, 0xc000);
        assert_eq!(body, [4, 0, 2, 0x80, 0, 0, 2, 0xc0, 0, 0]);
        assert_eq!(writable, [0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((msix.table_length(), msix.pending_length()), (80, 8));
    }

    #[test]
    fn fault_b5_odd_short_and_far_accesses_to_the_table_change_nothing() {
        let (vm, msix) = msix(2);
        program(&msix, 0, 0x41);
        let before: Vec<_> = (0..8).map(|word| load(&msix, 4 * word)).collect();
        let calls = vm.calls().len();
        for (offset, length) in [
            (0, 1),
            (1, 1),
            (8, 2),
            (2, 4),
            (4, 8),
            (12, 8),
            (0, 3),
            (0, 0),
            (32, 4),
            (u64::MAX - 3, 4),
            (u64::MAX, 8),
        ] {
            msix.write_table(offset, &vec![0xff; length]).unwrap();
            let mut data = vec![0xff; length];
            msix.read_table(offset, &mut data);
            assert_eq!(data, vec![0; length], "{offset:#x} {length}");
            data.fill(0xff);
            msix.read_pending(offset | 1 << 32, &mut data);
            assert_eq!(data, vec![0; length], "{offset:#x} {length}");
        }
        assert_eq!((0..8).map(|word| load(&msix, 4 * word)).collect::<Vec<_>>(), before);
        assert_eq!(vm.calls().len(), calls);
    }

    #[test]
    fn a_route_that_the_host_refuses_leaves_the_function_masked() {
        let (vm, msix) = msix(1);
        program(&msix, 0, 0x41);
        vm.fail_call(vm.calls().len(), libc::EINVAL);
        assert!(msix.set_control(0x8000).is_err());
        assert!(!msix.trigger(0));
        msix.set_control(0x8000).unwrap();
        assert!(msix.trigger(0));
        assert!(vm.calls().iter().any(|call| matches!(call, FakeCall::SetRoutes(1))));
    }
}
