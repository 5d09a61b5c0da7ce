//! Packages: the Debian packages of the nested host, fetched with apt once, unpacked, and kept.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::apt::Apt;
use crate::process::{capture, run};

/// Names another directory for the unpacked packages, one that outlives the checkout.
pub const DIRECTORY_VARIABLE: &str = "VMM_NESTED_PACKAGES";

/// The packages of [`Packages::tools`].
const TOOLS: [&str; 3] = ["e2fsprogs", "fio", "socat"];

/// The packages of [`Packages::back_ends`].
const BACK_ENDS: [&str; 3] = ["libc6-dev", "qemu-system-common", "tcc"];

/// A kernel series that there is a package of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Version {
    /// Long-term kernel of Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Long-term kernel of Debian 13, backported to 12.
    #[value(name = "6.12")]
    V6_12,
}

impl Version {
    /// As it is written, `6.12`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// The directory of the unpacked packages. Whoever calls a method that may fetch one holds the cache's lock.
#[derive(Debug)]
pub struct Packages {
    directory: PathBuf,
}

impl Packages {
    /// In the directory that the environment names, or else in `default`.
    pub fn new(default: &Path) -> Result<Self> {
        let directory = std::env::var_os(DIRECTORY_VARIABLE)
            .filter(|directory| !directory.is_empty())
            .map_or_else(|| default.into(), PathBuf::from);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Waits until nobody else changes the directory; nobody does while the file is held.
    pub fn lock(&self) -> Result<File> {
        let path = self.directory.join("lock");
        let lock = || {
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock().map(|()| file)
        };
        lock().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// The unpacked kernel package of the series, fetched if it is not there.
    pub fn kernel(&self, version: Version) -> Result<PathBuf> {
        self.unpacked(&format!("linux-{}", version.name()), || kernel_package(version))
    }

    /// The statically linked busybox.
    pub fn busybox(&self) -> Result<PathBuf> {
        Ok(self.unpacked("busybox", || Ok("busybox-static".into()))?.join("bin/busybox"))
    }

    /// Programs for file systems, disks and sockets, with all that they need.
    pub fn tools(&self) -> Result<PathBuf> {
        // By another name than with fewer of them: what is there is not renewed.
        self.complete("guest-tools", &TOOLS)
    }

    /// Vhost-user back ends, and a small C compiler with the library's headers, with all that they need.
    pub fn back_ends(&self) -> Result<PathBuf> {
        self.complete("back-ends", &BACK_ENDS)
    }

    /// The directory `name` with these packages and all that they need.
    fn complete(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        self.unpacked_by(name, |scratch, root| {
            eprintln!("fetching {}", packages.join(", "));
            let apt = Apt::new(scratch)?.with_nothing_installed()?;
            apt.unpack(packages, root).or_else(|_| {
                update()?;
                apt.unpack(packages, root)
            })
        })
    }

    /// The directory `name`; if it is not there, `make` fills a directory, its second argument, that becomes it. The first
    /// argument is one for what is left over.
    pub fn unpacked_by(&self, name: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        let unpacked = self.directory.join(name);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        // On the same file system, so that it becomes complete at once.
        let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(&self.directory)?;
        // apt works as a user of its own, where it can.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        let root = scratch.path().join("root");
        make(scratch.path(), &root)?;
        fs::rename(root, &unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
        Ok(unpacked)
    }

    /// The directory `name`; if it is not there, the package that `package` finds is fetched and unpacked to it.
    fn unpacked(&self, name: &str, package: impl FnOnce() -> Result<String>) -> Result<PathBuf> {
        self.unpacked_by(name, |scratch, root| {
            fetch(&package()?, scratch, root).with_context(|| format!("package of {name}"))
        })
    }
}

/// Fetches a package to `directory` and unpacks it to `root`.
fn fetch(package: &str, directory: &Path, root: &Path) -> Result<()> {
    // Not standard output, which belongs to the command that runs in the nested host.
    eprintln!("fetching {package}");
    capture(Command::new("apt-get").args(["--quiet", "download", package]).current_dir(directory))?;
    let mut files = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let (Some(file), None) = (files.pop(), files.pop()) else {
        bail!("`apt-get download {package}` did not leave one file");
    };
    run(Command::new("dpkg").arg("--extract").arg(file).arg(root))
}

/// The package behind the meta package of a series.
///
/// The meta package without a number is the release's own series, one with a number a backported one.
fn kernel_package(version: Version) -> Result<String> {
    let series = version.name();
    let metas = [format!("linux-image-{series}-cloud-amd64"), "linux-image-cloud-amd64".into()];
    let find = || metas.iter().find_map(|meta| dependency(meta, series));
    if let Some(package) = find() {
        return Ok(package);
    }
    update().with_context(|| format!("no package for kernel {series} is known: sudo apt-get update"))?;
    find().with_context(|| {
        format!(
            "{} depend on no kernel {series}: are Debian's security updates among apt's sources?",
            metas.join(" and ")
        )
    })
}

/// Fetches the system's lists of packages, which a fresh container has not.
fn update() -> Result<()> {
    run(Command::new("apt-get").args(["update", "--quiet"]).stdout(std::io::stderr()))
}

/// The image of this series that the meta package depends on.
fn dependency(meta: &str, series: &str) -> Option<String> {
    image(&capture(Command::new("apt-cache").args(["depends", "--important", meta])).ok()?, series)
}

/// Reads `  Depends: linux-image-6.1.0-1-cloud-amd64`.
fn image(depends: &str, series: &str) -> Option<String> {
    let start = format!("linux-image-{series}.");
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.filter(|package| package.starts_with(&start)).map(str::to_owned).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_of_the_series_is_found_and_no_other() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.1+deb13-cloud-amd64\n";
        assert_eq!(image(depends, "6.12").as_deref(), Some("linux-image-6.12.1+deb13-cloud-amd64"));
        assert_eq!(image(depends, "6.1"), None);
    }

    #[test]
    fn what_is_unpacked_is_not_fetched_again_and_a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let packages = Packages { directory: directory.path().to_owned() };
        assert!(packages.unpacked("a", || bail!("no network")).is_err());
        assert_eq!(fs::read_dir(&packages.directory).unwrap().count(), 0);
        fs::create_dir(packages.directory.join("a")).unwrap();
        assert_eq!(packages.unpacked("a", || bail!("no network")).unwrap(), packages.directory.join("a"));
    }
}
