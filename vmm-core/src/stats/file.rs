//! `StatsFd`: the open file of a VM's or a vCPU's statistics.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::sample::Sample;
use super::schema::{Header, Schema, SchemaError};
use crate::{IoctlError, Vm};

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file was not given out.
    #[error(transparent)]
    Ioctl(#[from] IoctlError),
    /// The file cannot be read.
    #[error("cannot read the {part} of the kernel's statistics")]
    Read {
        /// What was being read.
        part: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file is shorter than it says.
    #[error("the kernel's statistics end within their {part}, {length} bytes from byte {offset} on")]
    Short {
        /// What was being read.
        part: &'static str,
        /// Its place in the file.
        offset: u64,
        /// Its length.
        length: usize,
    },
    /// The description is not one.
    #[error("the kernel's statistics are described in a way that makes no sense")]
    Schema(#[from] SchemaError),
}

/// The statistics of one VM or one vCPU. Reading them disturbs nobody: they can be read while the vCPU runs, and as
/// long as this value lives, after the vCPU and the VM were dropped too. It keeps the VM in the kernel.
#[derive(Debug)]
pub struct StatsFd {
    file: File,
    schema: Arc<Schema>,
}

impl StatsFd {
    /// Opens the statistics of `vm`. Needs `KVM_CAP_BINARY_STATS_FD`.
    pub fn open(vm: &Vm) -> Result<Self, StatsError> {
        Self::from_fd(vm.stats_fd()?)
    }

    /// Takes what `KVM_GET_STATS_FD` has returned, and reads the descriptors.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, StatsError> {
        let file = File::from(fd);
        let mut bytes = [0; Header::LENGTH];
        read(&file, "header", 0, &mut bytes)?;
        let header = Header::parse(&bytes)?;
        let mut descriptors = vec![0; header.descriptors_length()];
        read(&file, "descriptors", header.descriptors_offset(), &mut descriptors)?;
        let schema = Arc::new(Schema::parse(&header, &descriptors)?);
        Ok(Self { file, schema })
    }

    /// Which statistics there are.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Uses the schema of `other` in place of an equal one of its own, which saves memory where many vCPUs are watched.
    pub fn share_schema(&mut self, other: &Self) {
        if self.schema == other.schema {
            self.schema = Arc::clone(&other.schema);
        }
    }

    /// Reads the values, with one system call.
    pub fn sample(&self) -> Result<Sample, StatsError> {
        let mut data = vec![0; self.schema.data_length()];
        read(&self.file, "values", self.schema.data_offset(), &mut data)?;
        Ok(Sample::new(&self.schema, &data))
    }
}

/// Fills `bytes` with the `part` of `file` that begins at `offset`.
fn read(file: &File, part: &'static str, offset: u64, bytes: &mut [u8]) -> Result<(), StatsError> {
    file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => StatsError::Short { part, offset, length: bytes.len() },
        _ => StatsError::Read { part, source },
    })
}

#[cfg(test)]
mod tests {
    use super::super::blob::Blob;
    use super::*;

    #[test]
    fn a_sample_has_what_the_file_holds_now() {
        let file = Blob::default().count("exits", 7).file().unwrap();
        let written = file.try_clone().unwrap();
        let stats = StatsFd::from_fd(file.into()).unwrap();
        assert_eq!(stats.sample().unwrap().values("exits"), Some(&[7][..]));
        written.write_all_at(&8_u64.to_ne_bytes(), stats.schema().data_offset()).unwrap();
        assert_eq!(stats.sample().unwrap().values("exits"), Some(&[8][..]));
    }

    #[test]
    fn a_file_that_ends_anywhere_too_early_is_refused_with_the_part_it_ends_in() {
        let blob = Blob::default().count("a", 1).count("b", 2);
        let whole = blob.bytes().len() as u64;
        let mut parts = Vec::new();
        for length in 0..whole {
            let file = blob.file().unwrap();
            file.set_len(length).unwrap();
            let error = StatsFd::from_fd(file.into()).and_then(|stats| stats.sample()).unwrap_err();
            let StatsError::Short { part, .. } = error else { panic!("{length} bytes: {error}") };
            parts.push(part);
        }
        parts.dedup();
        assert_eq!(parts, ["header", "descriptors", "values"]);
    }

    #[test]
    fn what_cannot_be_read_at_an_offset_keeps_the_systems_error() {
        let (reader, _writer) = io::pipe().unwrap();
        let error = StatsFd::from_fd(reader.into()).unwrap_err();
        assert!(
            matches!(&error, StatsError::Read { source, .. } if source.raw_os_error() == Some(libc::ESPIPE)),
            "{error}"
        );
    }

    #[test]
    fn a_schema_is_shared_only_if_it_is_the_same() {
        let open = |blob: Blob| StatsFd::from_fd(blob.file().unwrap().into()).unwrap();
        let first = open(Blob::default().count("a", 1));
        let (mut same, mut other) =
            (open(Blob::default().count("a", 2)), open(Blob::default().count("b", 3)));
        same.share_schema(&first);
        other.share_schema(&first);
        assert!(Arc::ptr_eq(&same.schema, &first.schema));
        assert_eq!(same.sample().unwrap().values("a"), Some(&[2][..]));
        assert_eq!(other.sample().unwrap().values("b"), Some(&[3][..]));
    }
}
