//! `OtherFiles`: what a machine has of files beside its disks, so that a disk that is added is none of them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::disk::{self, DiskError};
use super::{ConfigError, DiskConfig, VmConfig};

/// What no other files have: the device and the number there, of each file of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskIdentities {
    /// Of its image.
    pub(crate) image: (u64, u64),
    /// Of its backing file.
    pub(crate) backing: Option<(u64, u64)>,
}

/// The files of a configuration but for its disks, as they were when this was made. Of those disks the locks tell.
#[derive(Debug)]
pub(crate) struct OtherFiles(Vec<OtherFile>);

#[derive(Debug)]
struct OtherFile {
    key: &'static str,
    path: PathBuf,
    /// Its device and its number there; `None`: there was no file.
    identity: Option<(u64, u64)>,
    is_written: bool,
}

impl VmConfig {
    /// Looks for the files. Before the machine runs: nothing is looked for later.
    pub(crate) fn other_files(&self) -> OtherFiles {
        let file = |(key, path, is_written): (&'static str, Option<&PathBuf>, bool)| {
            let path = path?.clone();
            Some(OtherFile { key, identity: identity(&path), path, is_written })
        };
        let outputs = self.outputs().map(|(key, path)| (key, path, true));
        let images = self.boot_images().map(|(key, path)| (key, path, false));
        OtherFiles(outputs.into_iter().chain(images).filter_map(file).collect())
    }
}

/// Of a file or a socket: devices take what several write.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.metadata().ok()?;
    let is_file = metadata.is_file() || metadata.file_type().is_socket();
    is_file.then(|| (metadata.dev(), metadata.ino()))
}

/// Checks the settings of a disk for which the configuration had no place.
///
/// # Errors
/// [`ConfigError`] as [`VmConfig::load`].
pub(crate) fn check_settings(disk: &DiskConfig) -> Result<(), ConfigError> {
    if disk.vhost_user.is_some() {
        return Err(DiskError::NotWhileRunning.into());
    }
    Ok(disk.validate_settings()?)
}

impl OtherFiles {
    /// Checks that the files of `disk`, which have these identities, are none of these, as far as one of both is written to.
    ///
    /// # Errors
    /// [`ConfigError`] as [`VmConfig::load`].
    pub(crate) fn check(&self, disk: &DiskConfig, found: &DiskIdentities) -> Result<(), ConfigError> {
        let own = [
            (disk::PATH, disk.path.as_ref(), Some(found.image), !disk.read_only),
            (disk::BACKING, disk.backing.as_ref(), found.backing, false),
        ];
        for (key, path, identity, is_written) in own {
            let Some(path) = path else { continue };
            let is_it = |other: &&OtherFile| {
                (is_written || other.is_written)
                    && (other.path == *path || identity.is_some() && other.identity == identity)
            };
            let Some(other) = self.0.iter().find(is_it) else { continue };
            return Err(match (is_written, other.is_written) {
                (true, true) => ConfigError::SameOutput { key, path: path.clone(), other: other.key },
                (true, false) => ConfigError::OverwritesImage { key, path: path.clone(), image: other.key },
                (false, _) => {
                    ConfigError::OverwritesImage { key: other.key, path: other.path.clone(), image: key }
                }
            });
        }
        Ok(())
    }
}
