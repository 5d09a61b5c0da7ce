//! Sources: what is mounted in the jail, opened on the host without a symbolic link on the way, and looked at.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
use vmm_core::{KvmOpenError, file_kind};

use super::error::JailError;
use super::identity::Identity;
use super::plan::Mount;
use super::syscalls;
use crate::config::Need;
use crate::run::KVM;

/// A mount that is nowhere yet.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) tree: OwnedFd,
    pub(super) is_directory: bool,
}

/// Opens what is at `path` and makes a mount of it, with the flags that it is to have. `None`: it is not there, and need not be.
/// A file to be written to is made for `identity` where there is none.
///
/// # Errors
/// It is not there, not what it must be, has another name or a symbolic link on its way.
pub(super) fn open(path: &Path, mount: &Mount, identity: Identity) -> Result<Option<Source>, JailError> {
    let file = match find(path, OFlags::PATH) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) if mount.need == Need::Look => return Ok(None),
        Err(Errno::NOENT) if mount.need == Need::Output => make(path, mount, identity)?,
        Err(errno) => return Err(refused(path, mount, errno)),
    };
    let failed = |source| JailError::Open { name: mount.name.clone(), path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    check(path, mount, &metadata)?;
    let failed = |source| JailError::Mount { name: mount.name.clone(), path: path.to_owned(), source };
    let flags =
        OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(&file, "", flags).map_err(|errno| failed(errno.into()))?;
    syscalls::add_mount_flags(tree.as_fd(), flags_of(mount.need, &metadata)).map_err(failed)?;
    Ok(Some(Source { tree, is_directory: metadata.is_dir() }))
}

fn find(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Makes the file at `path`, which is empty and its owner's alone.
fn make(path: &Path, mount: &Mount, identity: Identity) -> Result<File, JailError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let made = openat2(CWD, path, flags, Mode::RUSR | Mode::WUSR, ResolveFlags::NO_SYMLINKS);
    let file = File::from(made.map_err(|errno| refused(path, mount, errno))?);
    if let Some((uid, gid)) = identity.ids() {
        fchown(&file, Some(uid), Some(gid)).map_err(|source| JailError::Open {
            name: mount.name.clone(),
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(file)
}

/// What the mount is not for, whatever is on it.
fn flags_of(need: Need, metadata: &Metadata) -> MountAttrFlags {
    let kind = metadata.file_type();
    let is_node = kind.is_char_device() || kind.is_block_device();
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if !is_node {
        flags |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    if matches!(need, Need::Look | Need::Read) {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    flags
}

/// Checks that what was opened is of a kind that can be needed in this way, and nobody else's.
fn check(path: &Path, mount: &Mount, metadata: &Metadata) -> Result<(), JailError> {
    let kind = metadata.file_type();
    let (is_right, expected) = match mount.need {
        Need::Look => (kind.is_file() || kind.is_dir(), "a file or a directory"),
        Need::Read => (kind.is_file() || kind.is_block_device(), "a regular file or a block device"),
        Need::Write => {
            let is_node = kind.is_block_device() || kind.is_char_device();
            (kind.is_file() || is_node, "a regular file or a device")
        }
        Need::Output => (kind.is_file() || kind.is_char_device(), "a regular file or a character device"),
        Need::Connect => (kind.is_socket(), "a socket"),
        Need::Listen => (kind.is_dir(), "a directory"),
    };
    let (name, path) = (mount.name.clone(), path.to_owned());
    if !is_right {
        return Err(JailError::Kind { name, path, found: file_kind(kind), expected });
    }
    if kind.is_file() && metadata.nlink() > 1 {
        return Err(JailError::HardLink { name, path, links: metadata.nlink() });
    }
    Ok(())
}

fn refused(path: &Path, mount: &Mount, errno: Errno) -> JailError {
    let (name, path) = (mount.name.clone(), path.to_owned());
    match errno {
        Errno::LOOP => match first_link(&path) {
            Some(link) => {
                let real = path.canonicalize().ok();
                JailError::Symlink { name, path, link, real }
            }
            None => JailError::Open { name, path, source: errno.into() },
        },
        Errno::NOSYS => JailError::System { what: "openat2", since: "5.6", source: errno.into() },
        _ if path == Path::new(KVM) => JailError::Kvm(KvmOpenError::Open { path, source: errno.into() }),
        _ => JailError::Open { name, path, source: errno.into() },
    }
}

/// The first part of `path` that is a symbolic link.
fn first_link(path: &Path) -> Option<PathBuf> {
    let mut parts: Vec<_> = path.ancestors().collect();
    parts.reverse();
    parts.into_iter().find(|part| part.is_symlink()).map(Path::to_owned)
}

/// How many files of the directory at `path`, in the jail, nobody has named.
pub(super) fn strangers(path: &Path, is_named: impl Fn(&Path) -> bool) -> io::Result<usize> {
    let mut count = 0;
    for entry in path.read_dir()? {
        count += usize::from(!is_named(&entry?.path()));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A file that exists, looked at for `need`.
    fn looked_at(path: &Path, need: Need) -> Result<(), JailError> {
        let mount = Mount { name: "disk.path (--disk)".into(), need };
        let fd = find(path, OFlags::PATH).map_err(|errno| refused(path, &mount, errno))?;
        check(path, &mount, &File::from(fd).metadata().unwrap())
    }

    fn refusal(path: &Path, need: Need) -> String {
        looked_at(path, need).unwrap_err().to_string()
    }

    /// The directory without symbolic links, whatever the host's directory for such files is.
    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        (directory, path)
    }

    #[test]
    fn a_file_with_a_second_name_is_refused() {
        let (_directory, path) = scratch();
        let (one, other) = (path.join("one"), path.join("other"));
        fs::write(&one, "").unwrap();
        looked_at(&one, Need::Write).unwrap();
        fs::hard_link(&one, &other).unwrap();
        let error = refusal(&one, Need::Write);
        assert!(error.starts_with("disk.path (--disk): ") && error.contains("has 2 hard links"), "{error}");
        assert!(error.contains("cp --reflink=auto"), "{error}");
    }

    #[test]
    fn a_symbolic_link_on_the_way_or_at_the_end_is_named_with_what_to_name_instead() {
        let (_directory, path) = scratch();
        fs::create_dir(path.join("real")).unwrap();
        fs::write(path.join("real/file"), "").unwrap();
        symlink("real", path.join("link")).unwrap();
        symlink("file", path.join("real/alias")).unwrap();
        let real = path.join("real/file");
        looked_at(&real, Need::Read).unwrap();
        for (asked, link) in [("link/file", "link"), ("real/alias", "real/alias")] {
            let error = refusal(&path.join(asked), Need::Read);
            let expected =
                format!("{} is a symbolic link, and a jail follows none", path.join(link).display());
            assert!(error.contains(&expected), "{error}");
            assert!(error.ends_with(&format!("; name {} instead", real.display())), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_or_of_another_kind_is_refused() {
        let (_directory, path) = scratch();
        let error = looked_at(&path.join("none"), Need::Read).unwrap_err();
        let JailError::Open { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
        assert!(
            refusal(&path, Need::Read)
                .ends_with("is a directory; a jail takes a regular file or a block device there")
        );
        let file = path.join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file, Need::Listen).contains("a jail takes a directory there"));
        assert!(refusal(&file, Need::Connect).contains("a jail takes a socket there"));
        assert!(refusal(Path::new("/dev/null"), Need::Read).contains("a character device"));
        looked_at(Path::new("/dev/null"), Need::Output).unwrap();
    }

    #[test]
    fn a_missing_node_of_kvm_is_refused_with_what_makes_one() {
        let mount = Mount { name: "KVM".into(), need: Need::Write };
        let error = refused(Path::new(KVM), &mount, Errno::NOENT).to_string();
        assert!(error.contains("modprobe kvm"), "{error}");
    }

    #[test]
    fn only_nodes_are_devices_and_what_is_read_cannot_be_written_to() {
        let (_directory, path) = scratch();
        let flags = |need, path: &Path| flags_of(need, &path.metadata().unwrap());
        let base = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let (no_devices, read_only) = (MountAttrFlags::MOUNT_ATTR_NODEV, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert_eq!(flags(Need::Write, Path::new("/dev/null")), base);
        assert_eq!(flags(Need::Listen, &path), base | no_devices);
        assert_eq!(flags(Need::Read, &path), base | no_devices | read_only);
        assert_eq!(flags(Need::Look, &path), base | no_devices | read_only);
    }

    #[test]
    fn files_that_nobody_has_named_are_counted() {
        let (_directory, path) = scratch();
        fs::write(path.join("a"), "").unwrap();
        fs::write(path.join("b"), "").unwrap();
        let named = path.join("a");
        assert_eq!(strangers(&path, |file| file == named).unwrap(), 1);
    }
}
