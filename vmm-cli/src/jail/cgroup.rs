//! `Cgroup`: a control group (version 2) with limits, made for one jail.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::files::Files;
use crate::messages;

/// The time in which a share of the CPUs is counted, in microseconds.
const PERIOD: u64 = 100_000;

/// Why there is no control group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("--cgroup {name}: a path below the root of the control groups is needed, such as machines/vm1")]
    Name { name: String },
    #[error("--cgroup: this host has no control groups of version 2 (no cgroup2 in /proc/self/mountinfo)")]
    NotMounted,
    #[error(
        "--cgroup: the controller {controller} is not to be had in {parent}; it is one of version 1 here, or the group above has \
         it not in its cgroup.subtree_control"
    )]
    NoController { controller: &'static str, parent: PathBuf },
    #[error(
        "--cgroup: the controller {controller} cannot be given to the groups in {parent}; have it delegated to this user \
         (`sudo chown -R USER {parent}`, Delegate=yes in a unit of systemd), with no process in it"
    )]
    NotDelegated {
        controller: &'static str,
        parent: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("--cgroup: {path} has processes: another machine runs in it; choose another name")]
    InUse { path: PathBuf },
    #[error("--cgroup: cannot make {path}; have the group above delegated to this user, or run it as root")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("--cgroup: cannot write to {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// Whether the arguments are wrong, and not the host.
    pub(super) fn is_of_user(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::InUse { .. })
    }
}

/// What a group may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of memory.
    pub(super) memory: Option<u64>,
    /// Hundredths of a CPU.
    pub(super) cpu: Option<u32>,
    /// Processes and threads.
    pub(super) pids: Option<u32>,
}

impl Limits {
    /// The controllers, with the files and what is written to them.
    fn settings(self) -> impl Iterator<Item = (&'static str, &'static str, String)> {
        let cpu = |percent: u32| format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100);
        let settings = [
            ("memory", "memory.max", self.memory.map(|bytes| bytes.to_string())),
            ("cpu", "cpu.max", self.cpu.map(cpu)),
            ("pids", "pids.max", self.pids.map(|count| count.to_string())),
        ];
        settings.into_iter().filter_map(|(controller, file, value)| Some((controller, file, value?)))
    }
}

/// A group. Dropped, it goes, if nobody is in it.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group `name`, below the root of all groups, with these limits. One that an earlier jail has left behind is
    /// replaced.
    ///
    /// # Errors
    /// Any [`CgroupError`]; there is no group then.
    pub(super) fn make(name: &str, limits: Limits) -> Result<Self, CgroupError> {
        let name = relative(name).ok_or_else(|| CgroupError::Name { name: name.to_owned() })?;
        let root = mount_point(&Files::below("/")).ok_or(CgroupError::NotMounted)?;
        Self::make_below(&root, name, limits)
    }

    fn make_below(root: &Path, name: &Path, limits: Limits) -> Result<Self, CgroupError> {
        let path = root.join(name);
        let parent = path.parent().unwrap_or(root).to_owned();
        for (controller, ..) in limits.settings() {
            hand_on(controller, &parent)?;
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let in_use = |_| CgroupError::InUse { path: path.clone() };
                fs::remove_dir(&path).and_then(|()| fs::create_dir(&path)).map_err(in_use)?;
            }
            made => made.map_err(|source| CgroupError::Make { path: path.clone(), source })?,
        }
        let group = Self { path };
        limits.settings().try_for_each(|(_, file, value)| group.write(file, &value))?;
        Ok(group)
    }

    /// Brings this process into the group, and with it all that it makes.
    pub(super) fn enter(&self) -> Result<(), CgroupError> {
        // 0 is whoever writes.
        self.write("cgroup.procs", "0")
    }

    /// Leaves the group to another process, which drops it.
    pub(super) fn forget(self) {
        std::mem::forget(self);
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::Write { path, source })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            messages::tell(format_args!("vmm-cli: jail: cannot remove {}: {error}\n", self.path.display()));
        }
    }
}

/// Has the groups in `parent` get `controller`.
fn hand_on(controller: &'static str, parent: &Path) -> Result<(), CgroupError> {
    let has = |file: &str| {
        let text = fs::read_to_string(parent.join(file)).unwrap_or_default();
        text.split_whitespace().any(|name| name == controller)
    };
    if has("cgroup.subtree_control") {
        return Ok(());
    }
    if !has("cgroup.controllers") {
        return Err(CgroupError::NoController { controller, parent: parent.to_owned() });
    }
    fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
        .map_err(|source| CgroupError::NotDelegated { controller, parent: parent.to_owned(), source })
}

/// `name` as a path that stays below where it begins.
fn relative(name: &str) -> Option<&Path> {
    let path = Path::new(name.trim_start_matches('/'));
    let mut parts = path.components();
    let is_plain = parts.clone().all(|part| matches!(part, Component::Normal(_)));
    (parts.next().is_some() && is_plain).then_some(path)
}

/// Where the control groups of version 2 are mounted: field 5 of proc_pid_mountinfo(5); the type follows a lone `-`.
fn mount_point(files: &Files) -> Option<PathBuf> {
    let mounts = files.read("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::fixture::Fixture;

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let limits = Limits { memory: Some(1 << 30), cpu: Some(250), pids: Some(64) };
        let settings: Vec<_> = limits.settings().map(|(_, file, value)| format!("{file}={value}")).collect();
        assert_eq!(settings, ["memory.max=1073741824", "cpu.max=250000 100000", "pids.max=64"]);
        assert_eq!(Limits::default().settings().count(), 0);
    }

    #[test]
    fn a_name_stays_below_the_root_of_the_groups() {
        for name in ["vm1", "machines/vm1", "/machines/vm1"] {
            assert!(relative(name).is_some_and(Path::is_relative), "{name}");
        }
        for name in ["", "/", "..", "a/../b", "./a", "a/.."] {
            assert!(relative(name).is_none(), "{name}");
        }
    }

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let found = |text: &str| mount_point(&Fixture::new(&[("/proc/self/mountinfo", text)]).files);
        assert_eq!(found(&format!("{v1}{v2}")), Some("/sys/fs/cgroup".into()));
        assert_eq!(found(v1), None);
    }

    /// Plain directories do as groups, but that files have to be there.
    #[test]
    fn what_a_group_lacks_is_named() {
        let root = tempfile::tempdir().unwrap();
        let limits = Limits { memory: Some(1), ..Limits::default() };
        let make = |limits| Cgroup::make_below(root.path(), Path::new("vm"), limits);
        let error = make(limits).unwrap_err();
        assert!(matches!(&error, CgroupError::NoController { controller: "memory", .. }), "{error}");
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        // The directory of a group is not removed while files are in it, and those of the kernel do not count.
        let group = make(limits).unwrap();
        let written = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(
            (written("cgroup.subtree_control").as_str(), written("vm/memory.max").as_str()),
            ("+memory", "1")
        );
        let error = make(Limits::default()).unwrap_err();
        assert!(matches!(&error, CgroupError::InUse { .. }) && error.is_of_user(), "{error}");
        fs::remove_file(root.path().join("vm/memory.max")).unwrap();
        drop(group);
        assert!(!root.path().join("vm").exists());
        let error = Cgroup::make_below(root.path(), Path::new("none/vm"), Limits::default()).unwrap_err();
        assert!(matches!(&error, CgroupError::Make { .. }) && !error.is_of_user(), "{error}");
    }
}
