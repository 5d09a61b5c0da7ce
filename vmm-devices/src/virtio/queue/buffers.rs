//! `Buffers`: the readable or the writable part of a chain, as one run of bytes.
//!
//! Where one buffer ends and the next begins means nothing (virtio 1.3, section 2.7.4.1): a header may be in three of them.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};
use vmm_memory::GuestMemory;

/// A piece of guest memory that the driver has lent. Never empty, and in guest RAM when its chain was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its first byte.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub length: u32,
}

/// Buffers cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// They are shorter than that.
    #[error("{wanted} bytes of {length}")]
    Short {
        /// How many bytes were wanted.
        wanted: usize,
        /// How many there are.
        length: u32,
    },
    /// Guest RAM there is gone.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// One part of a chain, or a part of that.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that are not in it.
    skip: u32,
    length: u32,
}

impl<'a> Buffers<'a> {
    /// All of `buffers`, which are `length` bytes together.
    pub(super) fn new(buffers: &'a [Buffer], length: u32) -> Self {
        Self { buffers, skip: 0, length }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first `at` bytes, and the others. Of fewer bytes than that, all and none.
    #[must_use]
    pub fn split_at(self, at: u32) -> (Self, Self) {
        let at = at.min(self.length);
        let head = Self { length: at, ..self };
        let mut tail =
            Self { skip: self.skip.saturating_add(at), length: self.length.saturating_sub(at), ..self };
        while let Some((first, rest)) = tail.buffers.split_first()
            && tail.skip >= first.length
        {
            tail.skip = tail.skip.saturating_sub(first.length);
            tail.buffers = rest;
        }
        (head, tail)
    }

    /// The pieces, none of them empty.
    pub fn iter(self) -> impl Iterator<Item = Buffer> + 'a {
        let (mut skip, mut left) = (self.skip, self.length);
        self.buffers.iter().map_while(move |buffer| {
            let length = buffer.length.saturating_sub(skip).min(left);
            let address = buffer.address.unchecked_add(skip.into());
            skip = 0;
            left = left.saturating_sub(length);
            (length != 0).then_some(Buffer { address, length })
        })
    }

    /// Copies the first `data.len()` bytes to `data`.
    ///
    /// # Errors
    /// There are fewer, or guest RAM is gone.
    pub fn read(self, memory: &GuestMemory, data: &mut [u8]) -> Result<(), AccessError> {
        let mut rest = data;
        for piece in self.first(rest.len())?.iter() {
            let (head, tail) = rest.split_at_mut(rest.len().min(piece.length as usize));
            memory.read_slice(head, piece.address)?;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `data` to the first `data.len()` bytes.
    ///
    /// # Errors
    /// There are fewer, or guest RAM is gone.
    pub fn write(self, memory: &GuestMemory, data: &[u8]) -> Result<(), AccessError> {
        let mut rest = data;
        for piece in self.first(rest.len())?.iter() {
            let (head, tail) = rest.split_at(rest.len().min(piece.length as usize));
            memory.write_slice(head, piece.address)?;
            rest = tail;
        }
        Ok(())
    }

    fn first(self, wanted: usize) -> Result<Self, AccessError> {
        let there = u32::try_from(wanted).ok().filter(|wanted| *wanted <= self.length);
        let wanted = there.ok_or(AccessError::Short { wanted, length: self.length })?;
        Ok(self.split_at(wanted).0)
    }
}
