//! `Blob`: a file of statistics as the kernel would give it out, put together by a test.

use std::fs::File;
use std::io::{self, Write};

use kvm_bindings::{KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_UNIT_NONE};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::file::{StatsError, StatsFd};
use super::sample::Sample;

/// One statistic of a [`Blob`].
#[derive(Clone, Debug)]
pub struct Described {
    /// Its name, at most 47 bytes.
    pub name: &'static str,
    /// `KVM_STATS_TYPE_*`, `KVM_STATS_UNIT_*` and `KVM_STATS_BASE_*`.
    pub flags: u32,
    /// The exponent of its scale.
    pub exponent: i16,
    /// Its values.
    pub values: Vec<u64>,
    /// The width of a bucket of a linear histogram.
    pub bucket: u32,
}

impl Default for Described {
    fn default() -> Self {
        let flags = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE;
        Self { name: "unnamed", flags, exponent: 0, values: vec![0], bucket: 0 }
    }
}

/// The order of the values in the data block.
#[derive(Clone, Copy, Debug, Default)]
enum Layout {
    #[default]
    InOrder,
    Reversed,
    /// All at the beginning.
    Overlapping,
}

/// Statistics that a test describes.
#[derive(Clone, Debug, Default)]
pub struct Blob {
    statistics: Vec<Described>,
    layout: Layout,
}

impl Blob {
    /// Bytes of a name, as Linux has them.
    pub const NAME_SIZE: u32 = 48;
    /// Bytes of the header.
    const HEADER: u32 = 24;
    /// Bytes of a descriptor before its name.
    const DESCRIPTOR: u32 = 16;

    /// One more statistic.
    #[must_use]
    pub fn with(mut self, described: Described) -> Self {
        self.statistics.push(described);
        self
    }

    /// One more count.
    #[must_use]
    pub fn count(self, name: &'static str, value: u64) -> Self {
        self.with(Described { name, values: vec![value], ..Described::default() })
    }

    /// Puts the values in the reverse order of their descriptors.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { layout: Layout::Reversed, ..self }
    }

    /// Puts the values of all statistics at one place.
    #[must_use]
    pub fn overlapping(self) -> Self {
        Self { layout: Layout::Overlapping, ..self }
    }

    /// The bytes of the file: header, id, descriptors, values.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let count = self.statistics.len() as u32;
        let descriptors = Self::HEADER + Self::NAME_SIZE;
        let data = descriptors + count * (Self::DESCRIPTOR + Self::NAME_SIZE);
        let mut bytes = Vec::new();
        for field in [0, Self::NAME_SIZE, count, Self::HEADER, descriptors, data] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(padded("kvm-1/vcpu-0"));
        let offsets = self.offsets();
        for (described, offset) in self.statistics.iter().zip(&offsets) {
            bytes.extend(described.flags.to_ne_bytes());
            bytes.extend(described.exponent.to_ne_bytes());
            bytes.extend((described.values.len() as u16).to_ne_bytes());
            bytes.extend((*offset as u32).to_ne_bytes());
            bytes.extend(described.bucket.to_ne_bytes());
            bytes.extend(padded(described.name));
        }
        for (described, offset) in self.statistics.iter().zip(&offsets) {
            let start = data as usize + offset;
            bytes.resize(bytes.len().max(start + described.values.len() * 8), 0);
            for (value, place) in described.values.iter().zip(bytes[start..].chunks_exact_mut(8)) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        bytes
    }

    fn offsets(&self) -> Vec<usize> {
        let lengths = self.statistics.iter().map(|described| described.values.len() * 8);
        let mut end = 0;
        let before = |length: usize| {
            end += length;
            end - length
        };
        match self.layout {
            Layout::InOrder => lengths.map(before).collect(),
            Layout::Reversed => {
                let mut offsets: Vec<_> = lengths.rev().map(before).collect();
                offsets.reverse();
                offsets
            }
            Layout::Overlapping => vec![0; self.statistics.len()],
        }
    }

    /// A file with these bytes.
    pub fn file(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("statistics", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.bytes())?;
        Ok(file)
    }

    /// What is read from that file.
    pub fn sample(&self) -> Result<Sample, StatsError> {
        let file = self.file().map_err(|source| StatsError::Read { part: "file", source })?;
        StatsFd::from_fd(file.into())?.sample()
    }
}

/// `name` with NULs up to the size of a name.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(Blob::NAME_SIZE as usize, 0);
    bytes
}
