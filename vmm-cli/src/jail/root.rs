//! The root directory of the jail: an empty file system with what the plan names, put in the place of the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root, umask};

use super::error::JailError;
use super::identity::Identity;
use super::plan::Plan;
use super::sources::{self, Source};
use super::syscalls;

/// Where a process finds out about processes.
const PROC: &str = "proc";

/// Room for directories and empty files.
const SIZE: &str = "1m";

/// Of every mount that has neither programs nor devices.
const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Makes what `plan` names the only files that this process, in a mount namespace of its own, can see; with `/proc` if it
/// `lists_threads`.
///
/// # Errors
/// Something that is named is not fit for it; the kernel does not do a step.
pub(super) fn enter(plan: &Plan, identity: Identity, lists_threads: bool) -> Result<(), JailError> {
    // Nothing that is mounted here is seen outside.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(JailError::step("private mounts"))?;
    // All that can be wrong with a file is found before anything changes.
    let mut sources = Vec::new();
    for (path, mount) in plan.mounts() {
        if let Some(source) = sources::open(path, mount, identity)? {
            sources.push((path, source));
        }
    }
    let root = file_system("tmpfs", &[("size", SIZE), ("mode", "755")], PLAIN)
        .map_err(JailError::step("a tmpfs"))?;
    attach(&root, CWD, Path::new("/")).map_err(JailError::step("a root directory"))?;
    // Another user has to get through the directories.
    let mask = umask(Mode::empty());
    let filled = fill(&root, plan, &sources, lists_threads);
    umask(mask);
    filled?;
    let read_only = syscalls::add_mount_flags(root.as_fd(), PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY);
    read_only.map_err(JailError::step("a root directory that is only read"))?;
    change_root(&root).map_err(JailError::step("another root directory"))
}

fn fill(
    root: &OwnedFd,
    plan: &Plan,
    sources: &[(&Path, Source)],
    lists_threads: bool,
) -> Result<(), JailError> {
    for directory in plan.directories() {
        make_directory(root, directory)?;
    }
    for (path, source) in sources {
        place(root, plan, path, source)?;
    }
    if lists_threads {
        make_directory(root, Path::new(PROC))?;
        mount_proc(root)?;
    }
    Ok(())
}

/// A new file system that is mounted nowhere yet.
fn file_system(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn attach(tree: &OwnedFd, directory: impl AsFd, path: &Path) -> Result<(), Errno> {
    move_mount(tree, "", directory, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// `path` as seen from the root directory.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn make_directory(root: &OwnedFd, path: &Path) -> Result<(), JailError> {
    match mkdirat(root, relative(path), Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(JailError::step("a directory of the jail")(errno)),
    }
}

/// Mounts `source` at `path`, which is made for it unless it is in a directory that is mounted already.
fn place(root: &OwnedFd, plan: &Plan, path: &Path, source: &Source) -> Result<(), JailError> {
    let failed = JailError::step("a mount point of the jail");
    if !plan.is_inside(path) {
        if source.is_directory {
            make_directory(root, path)?;
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            if let Err(errno) = openat(root, relative(path), flags, Mode::RUSR) {
                return Err(failed(errno));
            }
        }
    }
    // A directory of the host is somebody else's: what is in it may have become a link since it was looked at.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let target = openat2(root, relative(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    target.and_then(|target| move_mount(&source.tree, "", target, "", flags)).map_err(failed)
}

/// Of the processes, only those of the jail; of the rest of `/proc`, nothing.
fn mount_proc(root: &OwnedFd) -> Result<(), JailError> {
    let flags = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mounted = file_system("proc", &[("subset", "pid")], flags);
    let mounted = mounted.and_then(|proc| attach(&proc, root, Path::new(PROC)));
    mounted.map_err(JailError::step(
        "/proc, in which cpu.dedicated (--dedicated) finds the threads of the monitor",
    ))
}

/// Makes `root`, which is mounted over the present root directory, the root directory. The host's is then nowhere, but where it
/// is the initial one of the kernel (rootfs), which cannot go: there it is out of reach.
fn change_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    match pivot_root(".", ".") {
        // The one that was is mounted over the new one now.
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        Err(Errno::INVAL) => chroot(".")?,
        Err(errno) => return Err(errno),
    }
    chdir("/")
}
