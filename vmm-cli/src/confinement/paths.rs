//! The file system and the network, by Landlock: a confined thread opens no path and no TCP connection. Those that end the process may
//! still remove its sockets.
//!
//! Where the kernel has no Landlock (before 5.13, or not switched on), the tables of system calls stand alone; the log says so.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use vmm_core::thread::Kind;

use super::syscalls;
use crate::config::{Need, VmConfig};

/// The newest version of which this program knows what it would give up.
const KNOWN: ABI = ABI::V6;

/// The rules of this process.
pub(super) struct Paths {
    /// Nothing.
    none: Option<OwnedFd>,
    /// Nothing but the removal of files in directories where this process has sockets.
    removal: Option<OwnedFd>,
}

impl Paths {
    /// The rules for the machine of `config`.
    pub(super) fn new(config: &VmConfig) -> Self {
        let directories: BTreeSet<_> = config
            .places()
            .into_iter()
            .filter(|place| place.need == Need::Listen)
            .filter_map(|place| place.path.parent().map(Path::to_owned))
            .collect();
        let Self { none, .. } = Self::none();
        if none.is_none() {
            tracing::info!(
                "the kernel has no Landlock: threads are confined by their tables of system calls only"
            );
        }
        let removal = if directories.is_empty() { None } else { rules(&directories) };
        Self { none, removal }
    }

    /// The rules that leave nothing.
    pub(super) fn none() -> Self {
        Self { none: rules(&BTreeSet::new()), removal: None }
    }

    /// Confines the calling thread, one of `kind`.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn confine(&self, kind: &Kind) -> std::io::Result<()> {
        let removes = kind.calls().any(|call| call.number == libc::SYS_unlink);
        let rules = if removes { self.removal.as_ref().or(self.none.as_ref()) } else { self.none.as_ref() };
        rules.map_or(Ok(()), |rules| syscalls::restrict_self(rules.as_fd()))
    }
}

/// The same as [`ruleset`], and none where the kernel does not take it.
fn rules(directories: &BTreeSet<PathBuf>) -> Option<OwnedFd> {
    ruleset(directories.iter().map(|path| path as &Path)).unwrap_or_else(|error| {
        tracing::warn!(%error, "no Landlock rules");
        None
    })
}

/// Rules that refuse everything but to remove what is in `directories`. `None`: the kernel has no Landlock.
fn ruleset<'a>(directories: impl Iterator<Item = &'a Path>) -> Result<Option<OwnedFd>, RulesetError> {
    let mut rules: RulesetCreated = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        // Not of signals: the threads of this process kick one another.
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    for directory in directories {
        // One that is not there any more has no socket.
        if let Ok(directory) = PathFd::new(directory) {
            rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
    }
    Ok(rules.into())
}
