//! `Qcow2Image`: a small qcow2 image, made from nothing (`docs/interop/qcow2.rst` of QEMU).

use std::fs;
use std::path::Path;

use anyhow::Result;

const CLUSTER: usize = 65536;

/// Where its tables are: the header, the table and the only block of reference counts, and the first table, a cluster each.
const REFCOUNT_TABLE: usize = CLUSTER;
const REFCOUNTS: usize = 2 * CLUSTER;
const FIRST_TABLE: usize = 3 * CLUSTER;
/// Clusters of all of them.
const CLUSTERS: usize = 4;
/// Where the name of the backing file is, in the header's cluster.
const NAME: usize = 512;

/// An image without data.
#[derive(Debug)]
pub struct Qcow2Image(Vec<u8>);

impl Qcow2Image {
    /// Of a disk of so many bytes, 512 MiB at most.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut image = Self(vec![0; CLUSTERS * CLUSTER]);
        image.put(0, b"QFI\xfb");
        image.put(4, &3_u32.to_be_bytes());
        image.put(20, &CLUSTER.ilog2().to_be_bytes());
        image.put(24, &size.to_be_bytes());
        image.put(36, &1_u32.to_be_bytes());
        image.put(40, &(FIRST_TABLE as u64).to_be_bytes());
        image.put(48, &(REFCOUNT_TABLE as u64).to_be_bytes());
        image.put(56, &1_u32.to_be_bytes());
        // Counts of 16 bits; bytes of the header.
        image.put(96, &4_u32.to_be_bytes());
        image.put(100, &104_u32.to_be_bytes());
        image.put(REFCOUNT_TABLE, &(REFCOUNTS as u64).to_be_bytes());
        (0..CLUSTERS).for_each(|cluster| image.put(REFCOUNTS + 2 * cluster, &1_u16.to_be_bytes()));
        image
    }

    /// With the name of a backing file in its header.
    #[must_use]
    pub fn backed_by(mut self, name: &str) -> Self {
        self.put(8, &(NAME as u64).to_be_bytes());
        self.put(16, &u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        self.put(NAME, name.as_bytes());
        self
    }

    /// Writes it to a file.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, &self.0)?)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
