//! `DiskContents`: the file system that a Linux guest can have as its root: busybox, what makes and checks file systems, fio, and socat.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::libraries;
use crate::process::capture;

/// Programs of the unpacked packages.
const PROGRAMS: [&str; 4] = [FIO, MKE2FS, "sbin/e2fsck", "usr/bin/socat"];
const FIO: &str = "usr/bin/fio";
const MKE2FS: &str = "sbin/mke2fs";
/// By their other names.
const LINKS: [(&str, &str); 2] = [("sbin/mkfs.ext4", "mke2fs"), ("sbin/fsck.ext4", "e2fsck")];
/// Where other file systems go.
const MOUNT_POINTS: [&str; 6] = ["dev", "mnt", "proc", "run", "sys", "tmp"];
/// The loader of dynamically linked programs, by the name that they have it under.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// Where it is among the unpacked packages.
const UNPACKED_LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Besides what is in it.
const FREE_MIB: u64 = 16;

/// What is to be in it.
#[derive(Debug)]
pub struct DiskContents {
    tools: PathBuf,
    busybox: PathBuf,
    /// Files by their path in it.
    files: BTreeMap<PathBuf, PathBuf>,
    /// Of all files.
    bytes: u64,
    /// Texts by their path in it, and whether they are programs.
    texts: Vec<(&'static str, Vec<u8>, bool)>,
}

impl DiskContents {
    /// Of the unpacked packages in `tools`; `init` is executed first, and `jobs` are fio's of the block benchmark.
    pub fn of(busybox: &Path, tools: &Path, init: Vec<u8>, jobs: Vec<u8>) -> Result<Self> {
        // Libraries are found by their absolute paths.
        let tools = std::path::absolute(tools)?;
        let mut files = BTreeMap::from([("bin/busybox".into(), busybox.to_path_buf())]);
        for program in PROGRAMS {
            files.extend(with_libraries(&tools, program)?);
        }
        let sizes = files.values().map(|file| {
            let metadata = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()));
            Ok(metadata?.len())
        });
        let bytes = sizes.sum::<Result<u64>>()?;
        let texts = vec![("sbin/init", init, true), ("etc/block.fio", jobs, false)];
        Ok(Self { tools, busybox: busybox.into(), files, bytes, texts })
    }

    /// Makes the image at `path`, as a whole or not at all.
    pub fn make(&self, path: &Path) -> Result<()> {
        let directory = path.parent().context("an image needs a directory")?;
        fs::create_dir_all(directory)?;
        let scratch = tempfile::Builder::new().prefix("disk-").tempdir_in(directory)?;
        let tree = scratch.path().join("tree");
        self.fill(&tree)?;
        let image = scratch.path().join("image");
        let mib = self.bytes.div_ceil(1 << 20) + FREE_MIB;
        let mut mke2fs = Command::new(self.tools.join(MKE2FS));
        mke2fs.env("LD_LIBRARY_PATH", libraries::below(&self.tools));
        mke2fs.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(&tree).arg(&image);
        capture(mke2fs.arg(format!("{mib}M")))?;
        fs::rename(&image, path).with_context(|| format!("cannot create {}", path.display()))
    }

    fn fill(&self, tree: &Path) -> Result<()> {
        for mount_point in MOUNT_POINTS {
            fs::create_dir_all(tree.join(mount_point))?;
        }
        for (inside, from) in &self.files {
            let to = tree.join(inside);
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        for program in capture(Command::new(&self.busybox).arg("--list"))?.lines() {
            let link = tree.join("bin").join(program);
            if !link.exists() {
                symlink("busybox", link)?;
            }
        }
        for (link, target) in LINKS {
            symlink(target, tree.join(link))?;
        }
        for (inside, text, is_program) in &self.texts {
            let path = tree.join(inside);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&path, text)?;
            let mode = if *is_program { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// A program that the nested host can have too.
#[derive(Clone, Copy, Debug)]
pub enum Tool {
    /// `/usr/bin/fio`.
    Fio,
    /// `/sbin/mke2fs`, which makes what busybox's does not.
    Mke2fs,
    /// `/usr/bin/qemu-storage-daemon`.
    StorageDaemon,
    /// `/usr/lib/qemu/virtiofsd`.
    Virtiofsd,
}

impl Tool {
    /// Whether it is among the back ends, and not among the tools of guests.
    pub fn is_back_end(self) -> bool {
        matches!(self, Self::StorageDaemon | Self::Virtiofsd)
    }
}

/// A program of the unpacked packages in `tools`, its loader and its libraries, by their paths in a file system that is to have them.
pub fn tool(tools: &Path, tool: Tool) -> Result<Vec<(PathBuf, PathBuf)>> {
    let program = match tool {
        Tool::Fio => FIO,
        Tool::Mke2fs => MKE2FS,
        Tool::StorageDaemon => "usr/bin/qemu-storage-daemon",
        Tool::Virtiofsd => "usr/lib/qemu/virtiofsd",
    };
    with_libraries(&std::path::absolute(tools)?, program)
}

/// What of the back ends' packages is a C compiler that makes programs, files and directories.
const COMPILER: [&str; 9] = [
    "usr/include",
    "usr/lib/x86_64-linux-gnu/crt1.o",
    "usr/lib/x86_64-linux-gnu/crti.o",
    "usr/lib/x86_64-linux-gnu/crtn.o",
    "usr/lib/x86_64-linux-gnu/libc.so",
    "usr/lib/x86_64-linux-gnu/libc_nonshared.a",
    "usr/lib/x86_64-linux-gnu/tcc",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];

/// A C compiler of the unpacked packages in `root` with all that it needs, by the paths in a file system of its own.
pub fn compiler(root: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let root = std::path::absolute(root)?;
    let mut files = with_libraries(&root, "usr/bin/tcc")?;
    for path in COMPILER {
        add(&root, Path::new(path), &mut files)?;
    }
    Ok(files)
}

/// Adds a file, or all below a directory.
fn add(root: &Path, path: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    let file = root.join(path);
    if !file.is_dir() {
        files.push((path.into(), file));
        return Ok(());
    }
    for entry in fs::read_dir(&file).with_context(|| format!("cannot read {}", file.display()))? {
        add(root, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

/// A program below `tools`, an absolute path, its loader and its libraries.
fn with_libraries(tools: &Path, program: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let file = tools.join(program);
    let libraries = libraries::of_unpacked(&file, tools)?;
    let mut files = vec![(program.into(), file), (LOADER.into(), tools.join(UNPACKED_LOADER))];
    for library in libraries {
        if let Ok(inside) = library.strip_prefix(tools) {
            files.push((inside.into(), library.clone()));
        }
    }
    Ok(files)
}

/// Of what makes one image differ from another.
impl Hash for DiskContents {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.texts, self.bytes, FREE_MIB).hash(state);
        self.files.keys().for_each(|path| path.hash(state));
    }
}
