//! The header of a qcow2 image, checked before anything else looks at it: what it asks for is bounded, and what it names is known.
//!
//! The format is described in `docs/interop/qcow2.rst` of QEMU.

use std::fs::File;
use std::io;

use rustix::io::{Errno, pread};

const MAGIC: u32 = 0x5146_49fb;

/// Bytes of the header of version 2, and of version 3 as far as every image has it.
const SHORT: usize = 72;
const LONG: usize = 104;

/// Bits of the size of a cluster: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Most bytes of the tables that are kept in memory as a whole, as QEMU has them: the first table, and that of reference counts.
const MOST_L1: u64 = 32 << 20;
const MOST_REFCOUNTS: u64 = 8 << 20;

/// Longest name of a backing file.
const LONGEST_NAME: usize = 1023;

/// Bytes of a name in the table of features.
const FEATURE: usize = 48;

/// Extensions of the header.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;

/// Features without which an image must not be used.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("it does not begin as a qcow2 image does: its format is another")]
    NotQcow2,
    #[error("it ends within its header")]
    Short,
    #[error("version {0} of the format is not known; 2 and 3 are")]
    Version(u32),
    #[error("{field} = {value} is not possible")]
    Field { field: &'static str, value: u64 },
    #[error("it is encrypted")]
    Encrypted,
    #[error(
        "its data is in another file, which is not supported; `qemu-img convert -O qcow2` makes one file of both"
    )]
    DataFile,
    #[error("it was not closed in order; `qemu-img check -r all` mends it")]
    Dirty,
    #[error("it is marked as corrupt; `qemu-img check -r all` may mend it")]
    Corrupt,
    #[error(
        "it needs features that are not supported (incompatible_features = {0:#x}); `qemu-img convert -O qcow2` \
         leaves them out"
    )]
    Features(u64),
    #[error("{0} is no text")]
    NotText(&'static str),
    #[error("it does not count the references to its own header; `qemu-img check -r all` mends it")]
    Uncounted,
    #[error("two entries of its refcount table are {0:#x}; `qemu-img check -r all` may mend it")]
    CountedTwice(u64),
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

/// What counts of a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The name of its backing file.
    pub(super) backing: Option<String>,
    /// The format of that, if it is said.
    pub(super) backing_format: Option<String>,
}

impl Header {
    /// Reads and checks the header of `file`.
    pub(super) fn read(file: &File) -> Result<Self, HeaderError> {
        let mut bytes = [0; LONG];
        let there = read_at(file, &mut bytes, 0).map_err(HeaderError::Read)?;
        let fields = Fields(&bytes);
        if there < 4 || fields.u32(0) != MAGIC {
            return Err(HeaderError::NotQcow2);
        }
        let version = fields.u32(4);
        let (length, long) = match version {
            2 => (SHORT, false),
            3 => (LONG, true),
            other => return Err(HeaderError::Version(other)),
        };
        if there < length {
            return Err(HeaderError::Short);
        }
        let cluster = fields.check()?;
        check_counts(file, &fields, cluster)?;
        if long {
            check_features(fields.u64(72))?;
            let length = fields.u32(100);
            let possible = u64::from(length) >= LONG as u64 && u64::from(length) <= cluster as u64;
            possible
                .then_some(())
                .ok_or(HeaderError::Field { field: "header_length", value: length.into() })?;
        }
        // What the header names is in the first cluster.
        let mut first = vec![0; cluster];
        let there = read_at(file, &mut first, 0).map_err(HeaderError::Read)?;
        first.truncate(there);
        let backing = backing(&first, fields.u64(8), fields.u32(16))?;
        let backing_format = if long { extensions(&first, fields.u32(100) as usize)? } else { None };
        Ok(Self { backing, backing_format })
    }
}

/// The fields of a header.
struct Fields<'a>(&'a [u8; LONG]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32_at(self.0, at).unwrap_or(0)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at.saturating_add(4)))
    }

    /// Checks what every version has; returns the bytes of a cluster.
    fn check(&self) -> Result<usize, HeaderError> {
        let bits = self.u32(20);
        let refuse = |field, value| Err(HeaderError::Field { field, value });
        if !CLUSTER_BITS.contains(&bits) {
            return refuse("cluster_bits", bits.into());
        }
        let cluster = 1_u64 << bits;
        let (size, l1, refcounts) = (self.u64(24), self.u32(36), self.u32(56));
        if i64::try_from(size).is_err() {
            return refuse("size", size);
        }
        if self.u32(32) != 0 {
            return Err(HeaderError::Encrypted);
        }
        if u64::from(l1).saturating_mul(8) > MOST_L1 {
            return refuse("l1_size", l1.into());
        }
        if u64::from(refcounts).saturating_mul(cluster) > MOST_REFCOUNTS {
            return refuse("refcount_table_clusters", refcounts.into());
        }
        for (field, at) in [("l1_table_offset", 40), ("refcount_table_offset", 48)] {
            let offset = self.u64(at);
            if !offset.is_multiple_of(cluster) || i64::try_from(offset).is_err() {
                return refuse(field, offset);
            }
        }
        usize::try_from(cluster).or(refuse("cluster_bits", bits.into()))
    }
}

/// Checks that there is a block of reference counts for the beginning of the file: without one, imago would put it there, and not
/// find it again for ever. And that each block is for one part of the file only: in a small file whose blocks are all the same full
/// one, imago would look for a free cluster for hours.
fn check_counts(file: &File, fields: &Fields<'_>, cluster: usize) -> Result<(), HeaderError> {
    const ENTRY: usize = 8;
    let (offset, clusters) = (fields.u64(48), fields.u32(56) as usize);
    // Its bytes are bounded already.
    let mut table = vec![0; clusters.saturating_mul(cluster)];
    let there = read_at(file, &mut table, offset).map_err(HeaderError::Read)?;
    table.truncate(there);
    let entries = table.as_chunks::<ENTRY>().0.iter().map(|entry| u64::from_be_bytes(*entry));
    let mut blocks: Vec<_> = entries.collect();
    if offset == 0 || blocks.first().is_none_or(|first| *first == 0) {
        return Err(HeaderError::Uncounted);
    }
    blocks.retain(|block| *block != 0);
    if let Some(&value) = blocks.iter().find(|block| !block.is_multiple_of(cluster as u64)) {
        return Err(HeaderError::Field { field: "an entry of the refcount table", value });
    }
    blocks.sort_unstable();
    match blocks.iter().zip(blocks.iter().skip(1)).find(|(one, next)| one == next) {
        Some((twice, _)) => Err(HeaderError::CountedTwice(*twice)),
        None => Ok(()),
    }
}

fn check_features(features: u64) -> Result<(), HeaderError> {
    match features {
        0 => Ok(()),
        _ if features & DATA_FILE != 0 => Err(HeaderError::DataFile),
        _ if features & CORRUPT != 0 => Err(HeaderError::Corrupt),
        _ if features & DIRTY != 0 => Err(HeaderError::Dirty),
        _ => Err(HeaderError::Features(features)),
    }
}

/// The name of the backing file, if there is one.
fn backing(first: &[u8], offset: u64, length: u32) -> Result<Option<String>, HeaderError> {
    if offset == 0 {
        return Ok(None);
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LONGEST_NAME {
        return Err(HeaderError::Field { field: "backing_file_size", value: length as u64 });
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = first.get(start..).and_then(|rest| rest.get(..length));
    let name = name.ok_or(HeaderError::Field { field: "backing_file_offset", value: offset })?;
    text(name, "the name of its backing file").map(Some)
}

/// Goes through the extensions from `at` on; returns the format of the backing file, if it is said.
fn extensions(first: &[u8], mut at: usize) -> Result<Option<String>, HeaderError> {
    let mut format = None;
    loop {
        let beyond = HeaderError::Field { field: "a header extension", value: at as u64 };
        let (Some(kind), Some(length)) = (u32_at(first, at), u32_at(first, at.saturating_add(4))) else {
            return Err(beyond);
        };
        if kind == END {
            return Ok(format);
        }
        let start = at.saturating_add(8);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = first.get(start..).and_then(|rest| rest.get(..length)).ok_or(beyond)?;
        match kind {
            BACKING_FORMAT => format = Some(text(data, "the format of its backing file")?),
            FEATURE_NAMES if !length.is_multiple_of(FEATURE) => {
                return Err(HeaderError::Field {
                    field: "length of the feature name table",
                    value: length as u64,
                });
            }
            _ => {}
        }
        at = start.saturating_add(length.checked_next_multiple_of(8).unwrap_or(usize::MAX));
    }
}

fn text(bytes: &[u8], what: &'static str) -> Result<String, HeaderError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| HeaderError::NotText(what))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

/// Reads until the buffer is full or the file ends; returns how much was read.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(file, rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}
