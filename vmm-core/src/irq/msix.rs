//! `MsixTable`: the vectors of one function as its driver programs them: a message and a mask each, and one mask over all.
//!
//! PCI Local Bus 3.0, section 6.8.2, without the configuration space around it. Messages that are written to masked vectors
//! reach KVM when the vector is unmasked, those of all vectors that the function mask releases with one ioctl.

use std::fmt;
use std::sync::Arc;

use super::router::{IrqError, Shared};
use super::{IrqTrigger, MsiMessage, MsiVector};
use crate::sync::{Mutex, lock};

/// One row of the table, as the driver has written it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    masked: bool,
}

struct Registers {
    function_masked: bool,
    entries: Box<[Entry]>,
}

impl Registers {
    fn is_open(&self, index: usize) -> bool {
        !self.function_masked && self.entries.get(index).is_some_and(|entry| !entry.masked)
    }
}

/// The table of one function: every vector masked, and the function too. Dropped, its vectors go with one change of the
/// routes.
///
/// A driver that gets an error has no interrupt where it wants one: the caller reports it and has the device reset.
pub struct MsixTable {
    shared: Arc<Shared>,
    vectors: Vec<MsiVector>,
    /// Held while the driver's access is carried out. The first of the locks; triggers do not take it.
    registers: Mutex<Registers>,
}

impl MsixTable {
    pub(super) fn new(shared: Arc<Shared>, vectors: Vec<MsiVector>) -> Self {
        let entries =
            vectors.iter().map(|_| Entry { message: MsiMessage::default(), masked: true }).collect();
        Self { shared, vectors, registers: Mutex::new(Registers { function_masked: true, entries }) }
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The vector `index`, for its trigger, its eventfd and its pending bit.
    #[must_use]
    pub fn vector(&self, index: usize) -> Option<&MsiVector> {
        self.vectors.get(index)
    }

    /// A handle that triggers vector `index`.
    #[must_use]
    pub fn trigger(&self, index: usize) -> Option<IrqTrigger> {
        self.vector(index).map(MsiVector::trigger)
    }

    /// Message and mask of vector `index` as the driver reads them.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<(MsiMessage, bool)> {
        lock(&self.registers).entries.get(index).map(|entry| (entry.message, entry.masked))
    }

    /// The driver writes a message. A masked vector takes it when it is unmasked, at no cost now; one that is not masked
    /// takes it at once, with one ioctl.
    ///
    /// # Errors
    /// There is no such vector, or KVM does not take the route; the old message stays.
    pub fn set_message(&self, index: usize, message: MsiMessage) -> Result<(), IrqError> {
        let mut registers = lock(&self.registers);
        let vector = self.existing(index)?;
        if registers.is_open(index) {
            vector.set_message(message)?;
        }
        if let Some(entry) = registers.entries.get_mut(index) {
            entry.message = message;
        }
        Ok(())
    }

    /// The driver masks or unmasks vector `index`. Unmasking takes one ioctl if the message has changed since the last
    /// time.
    ///
    /// # Errors
    /// There is no such vector, or KVM refuses a route or an irqfd; the mask is as it was.
    pub fn set_mask(&self, index: usize, masked: bool) -> Result<(), IrqError> {
        let mut registers = lock(&self.registers);
        let vector = self.existing(index)?;
        if registers.is_open(index) && masked {
            vector.mask()?;
        }
        let Some(entry) = registers.entries.get_mut(index) else { return Ok(()) };
        let before = std::mem::replace(&mut entry.masked, masked);
        if before
            && registers.is_open(index)
            && let Err(error) = self.open(&registers, &[index])
        {
            if let Some(entry) = registers.entries.get_mut(index) {
                entry.masked = true;
            }
            return Err(error);
        }
        Ok(())
    }

    /// The driver masks the whole function or releases it, and so does whoever turns MSI-X off or on. Releasing takes one
    /// ioctl for all messages that have changed.
    ///
    /// # Errors
    /// KVM refuses the routes or an irqfd; the mask is as it was.
    pub fn set_function_mask(&self, masked: bool) -> Result<(), IrqError> {
        let mut registers = lock(&self.registers);
        if registers.function_masked == masked {
            return Ok(());
        }
        let ready = |entry: &(usize, &Entry)| !entry.1.masked;
        let ready: Vec<_> =
            registers.entries.iter().enumerate().filter(ready).map(|(index, _)| index).collect();
        if masked {
            self.close(&ready)?;
        } else {
            self.open(&registers, &ready)?;
        }
        registers.function_masked = masked;
        Ok(())
    }

    /// The pending bits of vectors `64 * word` and following, the lowest first, as the driver reads them.
    #[must_use]
    pub fn pending(&self, word: usize) -> u64 {
        let vectors = self.vectors.iter().skip(word.saturating_mul(64)).take(64);
        vectors.zip(0..64).fold(0, |bits, (vector, bit)| bits | u64::from(vector.is_pending()) << bit)
    }

    /// Brings the messages of `indices` to KVM and unmasks them: all or none.
    fn open(&self, registers: &Registers, indices: &[usize]) -> Result<(), IrqError> {
        let changes: Vec<_> = self
            .rows(registers, indices)
            .map(|(vector, entry)| (vector.gsi(), Some(entry.message)))
            .collect();
        let undo = self.shared.change(&changes)?;
        for (done, (vector, entry)) in self.rows(registers, indices).enumerate() {
            vector.shared_vector().follow(Some(entry.message));
            if let Err(error) = vector.unmask() {
                for (vector, _) in self.rows(registers, indices).take(done) {
                    undone(vector.mask());
                }
                undone(self.shared.change(&undo).map(drop));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Masks `indices`: all or none.
    fn close(&self, indices: &[usize]) -> Result<(), IrqError> {
        let vectors = || indices.iter().filter_map(|&index| self.vector(index));
        for (done, vector) in vectors().enumerate() {
            if let Err(error) = vector.mask() {
                vectors().take(done).for_each(|vector| undone(vector.unmask()));
                return Err(error);
            }
        }
        Ok(())
    }

    fn rows<'a>(
        &'a self,
        registers: &'a Registers,
        indices: &'a [usize],
    ) -> impl Iterator<Item = (&'a MsiVector, &'a Entry)> {
        indices.iter().filter_map(|&index| self.vector(index).zip(registers.entries.get(index)))
    }

    fn existing(&self, index: usize) -> Result<&MsiVector, IrqError> {
        self.vector(index).ok_or(IrqError::NoVector { index, count: self.len() })
    }
}

/// A step back that fails leaves a vector of this function wrong, and no other.
fn undone(result: Result<(), IrqError>) {
    if let Err(error) = result {
        tracing::error!(%error, "cannot go back to the interrupts before a failed change");
    }
}

impl Drop for MsixTable {
    fn drop(&mut self) {
        // The routes of all at once; each vector then finds its own gone. Logged there if KVM refuses.
        let routes: Vec<_> = self.vectors.iter().map(|vector| (vector.gsi(), None)).collect();
        let _ = self.shared.change(&routes);
    }
}

impl fmt::Debug for MsixTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsixTable").field("vectors", &self.len()).finish_non_exhaustive()
    }
}
