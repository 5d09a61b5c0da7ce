//! `JailError`: why there is no jail, by whose it is to mend.

use std::io;
use std::path::PathBuf;

use vmm_core::KvmOpenError;

use super::cgroup::CgroupError;
use crate::advice;
use crate::host;
use crate::outcome::Failure;

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    #[error("vmm-cli jail runs `run` and nothing else: `vmm-cli jail -- run CONFIG.toml`")]
    NotRun,
    #[error("{flag}: only root without a user namespace can give up its user for another one; {mend}")]
    NeedsRoot { flag: &'static str, mend: &'static str },
    #[error(
        "console.serial (--serial) or console.virtio (--virtio-console) = pty: a jail with pseudo-terminals would have those of \
         its user, all of them; use \"unix=PATH\""
    )]
    Pty,
    #[error(
        "net.tap (--net) = {tap}: the network namespace of the jail (--network-namespace) does not have the interface; leave the \
         flag out, or hand the interface over as a descriptor (fd=NUMBER)"
    )]
    NoInterface { tap: String },
    #[error(
        "{name}: {path} is in the root directory, all of which would be in the jail; give it a directory of its own"
    )]
    WholeRoot { name: String, path: PathBuf },
    #[error("{name}: cannot open {path}")]
    Open {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{name}: cannot open {path}: {link} is a symbolic link, and a jail follows none{}",
        instead(real)
    )]
    Symlink { name: String, path: PathBuf, link: PathBuf, real: Option<PathBuf> },
    #[error(
        "{name}: {path} has {links} hard links, so that the jail would have a file that is somebody else's too; give it one of \
         its own: `cp --reflink=auto {path} COPY`"
    )]
    HardLink { name: String, path: PathBuf, links: u64 },
    #[error("{name}: {path} is {found}; a jail takes {expected} there")]
    Kind { name: String, path: PathBuf, found: &'static str, expected: &'static str },
    #[error("{name}: {path} cannot be mounted in the jail{}", submounts(source))]
    Mount {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name}: user {uid} of group {gid} may not {purpose} {path}; {mend}")]
    Access {
        name: String,
        path: PathBuf,
        purpose: &'static str,
        uid: u32,
        gid: u32,
        mend: String,
        is_device: bool,
        #[source]
        source: io::Error,
    },
    #[error("KVM cannot be used{}", kvm_advice(.0))]
    Kvm(#[source] KvmOpenError),
    #[error("{what} is not possible here; it needs Linux {since}")]
    System {
        what: &'static str,
        since: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the namespaces of the jail ({what}){}", with(advice))]
    Namespaces {
        what: &'static str,
        advice: Option<String>,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the jail: {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl JailError {
    /// For a step that fails only where something is wrong with this host.
    pub(super) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { what, source: source.into() }
    }
}

fn instead(real: &Option<PathBuf>) -> String {
    real.as_ref().map_or_else(String::new, |real| format!("; name {} instead", real.display()))
}

fn with(advice: &Option<String>) -> String {
    advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"))
}

fn submounts(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => ": other file systems may be mounted below it; choose a directory without",
        _ => "",
    }
}

fn kvm_advice(error: &KvmOpenError) -> String {
    with(&advice::about_kvm(error, host::extension()))
}

impl From<JailError> for Failure {
    fn from(error: JailError) -> Self {
        match error {
            JailError::Cgroup(ref cgroup) if cgroup.is_of_user() => Self::bad_input(error),
            JailError::NotRun
            | JailError::NeedsRoot { .. }
            | JailError::Pty
            | JailError::NoInterface { .. }
            | JailError::WholeRoot { .. }
            | JailError::Open { .. }
            | JailError::Symlink { .. }
            | JailError::HardLink { .. }
            | JailError::Kind { .. }
            | JailError::Access { is_device: false, .. } => Self::bad_input(error),
            JailError::Mount { .. }
            | JailError::Access { is_device: true, .. }
            | JailError::Kvm(_)
            | JailError::System { .. }
            | JailError::Namespaces { .. }
            | JailError::Step { .. }
            | JailError::Cgroup(_) => Self::host_cannot(error),
        }
    }
}
