//! The guest that runs when no kernel is named.

/// An ELF image with a PVH note.
pub(crate) static IMAGE: &[u8] = &[];
