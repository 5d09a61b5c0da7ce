//! Images: kernels and first file systems, made from packages once and kept below one directory.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::disk_image::{self, DiskContents, Tool};
use super::modules;
use super::packages::{Packages, Version};
use super::payload;
use super::qemu::Qemu;
use crate::host::need_all;
use crate::process::{capture, run};

/// Where everything of the nested host is kept.
pub const DIRECTORY: &str = "target/nested";
/// Where the kernels for guests are, below it.
pub const GUESTS: &str = "target/nested/guests";

/// The script that the nested host runs as its first program.
const HOST_INIT: &str = include_str!("init.sh");
/// The source of a program that runs there all the time.
const HOLDER: &str = "xtask/src/nested/hold.S";
/// The script that a Linux guest of the test suites runs as its first program.
const GUEST_INIT: &str = "tests/linux/init";
/// fio's jobs of the block benchmark.
const GUEST_JOBS: &str = "tests/linux/block.fio";
/// What a Linux guest loads: the power button, how it is told of it, the way it tells of a panic, the drivers of virtio
/// devices and of file systems of the host, and the file system of its disk with the sums that this asks for by name.
const GUEST_MODULES: [&str; 15] = [
    "button",
    "evdev",
    "pvpanic-mmio",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_mem",
    "virtio_mmio",
    "virtio_net",
    "virtio_pci",
    "virtio-rng",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "crc32c_generic",
    "ext4",
];
/// What the nested host loads: its ports, and the hypervisor of the CPU that is emulated.
const HOST_MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "kvm-amd"];

/// Programs that images are made with, each with its Debian package.
const MAKERS: [(&str, &str); 5] =
    [("apt-get", "apt"), ("dpkg", "dpkg"), ("xz", "xz-utils"), ("zstd", "zstd"), ("lz4", "lz4")];
/// Programs that the nested host runs with besides.
const RUNNERS: [(&str, &str); 3] = [("gcc", "gcc"), ("ldd", "libc-bin"), ("setpriv", "util-linux")];

/// What the nested host starts with: the emulator, the kernel and the first file system.
#[derive(Debug)]
pub struct HostImages {
    pub qemu: Qemu,
    pub kernel: PathBuf,
    pub base: PathBuf,
}

/// Makes, where they are missing, the images of a nested host with `modules` beside those of KVM.
///
/// Runs at the same time wait for each other.
pub fn host(version: Version, modules: &[String]) -> Result<HostImages> {
    need_all(&[&RUNNERS[..], &MAKERS].concat())?;
    let (_lock, packages) = lock()?;
    let kernel = guest_in(&packages, version)?.join("vmlinux");
    let mut names = HOST_MODULES.to_vec();
    names.extend(modules.iter().map(String::as_str));
    let package = packages.kernel(version)?;
    let source = fs::read(HOLDER).with_context(|| format!("cannot read {HOLDER}"))?;
    let inputs = hash(&(HOST_INIT, source, release(&package)?, &names));
    let base = Path::new(DIRECTORY).join(format!("base-{}-{inputs:016x}.cpio", version.name()));
    if !base.exists() {
        let mut archive = system(&packages, "/init", HOST_INIT.as_bytes())?;
        let mut order = String::new();
        for module in modules::load(&package, &names)? {
            order += &format!("{}\n", module.name);
            archive.file(&module_path(&module.name), 0o644, &module.content)?;
        }
        archive.file(Path::new("/etc/nested/modules"), 0o644, order.as_bytes())?;
        archive.file(Path::new("/etc/nested/hold"), 0o755, &holder()?)?;
        write(&base, &archive.finish()?)?;
    }
    Ok(HostImages { qemu: Qemu::find(&packages)?, kernel, base })
}

/// Makes, where they are missing, `bzImage`, `vmlinux` and `initrd` for Linux guests; the directory they are in.
pub fn guest(version: Version) -> Result<PathBuf> {
    need_all(&MAKERS)?;
    let (_lock, packages) = lock()?;
    guest_in(&packages, version)
}

fn guest_in(packages: &Packages, version: Version) -> Result<PathBuf> {
    let directory = Path::new(GUESTS).join(version.name());
    let package = packages.kernel(version)?;
    let init = fs::read(GUEST_INIT).with_context(|| format!("cannot read {GUEST_INIT}"))?;
    let release = release(&package)?;
    let stamp = directory.join("stamp");
    let inputs = format!("{release} {:016x} {}\n", hash(&init), GUEST_MODULES.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == inputs) {
        return Ok(directory);
    }
    let image = package.join(format!("boot/vmlinuz-{release}"));
    let image = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    write(&directory.join("vmlinux"), &payload::unpack(&image)?)?;
    write(&directory.join("bzImage"), &image)?;
    let mut archive = system(packages, "/init", &init)?;
    for module in modules::load(&package, &GUEST_MODULES)? {
        archive.file(&module_path(&module.name), 0o644, &module.content)?;
    }
    write(&directory.join("initrd"), &archive.finish()?)?;
    write(&stamp, inputs.as_bytes())?;
    Ok(directory)
}

/// Makes, where it is missing, the disk from which any Linux guest can start; the file.
pub fn guest_disk() -> Result<PathBuf> {
    need_all(&[&RUNNERS[..], &MAKERS].concat())?;
    let (_lock, packages) = lock()?;
    let read = |path: &str| fs::read(path).with_context(|| format!("cannot read {path}"));
    let contents =
        DiskContents::of(&packages.busybox()?, &packages.tools()?, read(GUEST_INIT)?, read(GUEST_JOBS)?)?;
    let (image, stamp) = (Path::new(GUESTS).join("disk.ext4"), Path::new(GUESTS).join("disk.stamp"));
    let inputs = format!("{:016x}\n", hash(&contents));
    if !image.exists() || !fs::read_to_string(&stamp).is_ok_and(|made| made == inputs) {
        contents.make(&image)?;
        write(&stamp, inputs.as_bytes())?;
    }
    Ok(image)
}

/// A program and what it needs, by the paths that they are to have.
pub fn tool(tool: Tool) -> Result<Vec<(PathBuf, PathBuf)>> {
    need_all(&[&RUNNERS[..], &MAKERS].concat())?;
    let (_lock, packages) = lock()?;
    let root = if tool.is_back_end() { packages.back_ends() } else { packages.tools() };
    disk_image::tool(&root?, tool)
}

/// A small C compiler, by the paths that its files are to have in a file system of their own.
pub fn compiler() -> Result<Vec<(PathBuf, PathBuf)>> {
    need_all(&[&RUNNERS[..], &MAKERS].concat())?;
    let (_lock, packages) = lock()?;
    disk_image::compiler(&packages.back_ends()?)
}

/// The cache, which nobody else changes while the file is held.
fn lock() -> Result<(fs::File, Packages)> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot create {DIRECTORY}"))?;
    let packages = Packages::new(&Path::new(DIRECTORY).join("packages"))?;
    let lock = packages.lock()?;
    Ok((lock, packages))
}

/// Busybox with a link for each of its programs, and `init` at `path`.
fn system(packages: &Packages, path: &str, init: &[u8]) -> Result<Archive<Vec<u8>>> {
    let busybox = packages.busybox()?;
    let mut archive = Archive::new(Vec::new());
    for directory in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
        archive.directory(Path::new(directory))?;
    }
    archive.copy(&busybox, Path::new("/bin/busybox"))?;
    for program in capture(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        archive.link(&Path::new("/bin").join(program), OsStr::new("busybox"))?;
    }
    archive.link(Path::new("/usr/bin/env"), OsStr::new("/bin/busybox"))?;
    archive.file(Path::new("/etc/passwd"), 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file(Path::new("/etc/group"), 0o644, b"root:x:0:\n")?;
    archive.file(Path::new(path), 0o755, init)?;
    Ok(archive)
}

/// The program of [`HOLDER`].
fn holder() -> Result<Vec<u8>> {
    let output = tempfile::NamedTempFile::new()?;
    run(Command::new("gcc").args(["-nostdlib", "-static", HOLDER, "-o"]).arg(output.path()))?;
    Ok(fs::read(output.path())?)
}

fn module_path(name: &str) -> PathBuf {
    format!("/lib/modules/{name}.ko").into()
}

/// The release of the kernel in a package, as `uname -r` says it.
fn release(package: &Path) -> Result<String> {
    let directory = package.join("lib/modules");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    match (names.pop().and_then(|name| name.into_string().ok()), names.pop()) {
        (Some(name), None) => Ok(name),
        _ => bail!("{} does not have the modules of one kernel", directory.display()),
    }
}

/// Writes a file that is there as a whole or not at all.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let directory = path.parent().context("no directory")?;
        fs::create_dir_all(directory)?;
        let mut file =
            tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o644)).tempfile_in(directory)?;
        file.write_all(content)?;
        file.persist(path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn hash(inputs: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    hasher.finish()
}
