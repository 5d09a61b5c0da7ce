//! `LinuxGuest`: a stock kernel under the monitor, with `tests/linux/init` as its first program, and what that reports.

use std::env;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::TestVm;

/// Names the directory of the kernels in the environment: `VERSION/{bzImage,vmlinux,initrd}`.
pub const VMM_LINUX: &str = "VMM_LINUX";
/// Names the versions to run in the environment, with commas between.
pub const VMM_LINUX_KERNELS: &str = "VMM_LINUX_KERNELS";

/// The versions that the environment names.
#[must_use]
pub fn kernel_versions() -> Vec<String> {
    let versions = env::var(VMM_LINUX_KERNELS).unwrap_or_default();
    versions.split(',').filter(|version| !version.is_empty()).map(str::to_owned).collect()
}

/// In which form the kernel is given to the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// As distributions install it.
    BzImage,
    /// The ELF file inside, which has a PVH entry.
    Vmlinux,
}

impl KernelFormat {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::BzImage, Self::Vmlinux];
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage",
            Self::Vmlinux => "vmlinux",
        })
    }
}

/// A Linux guest to be started.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    /// The version of its kernel, one of [`kernel_versions`].
    pub version: String,
    /// The form of its kernel.
    pub format: KernelFormat,
    /// Its CPUs.
    pub cpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
}

impl LinuxGuest {
    /// With one CPU and 256 MiB.
    #[must_use]
    pub fn new(version: &str, format: KernelFormat) -> Self {
        Self { version: version.into(), format, cpus: 1, memory_mib: 256 }
    }

    /// The command line of the monitor. The guest reports, then does `action`, a word of `tests/linux/init`; `words`
    /// are more words of the kernel's command line.
    #[must_use]
    pub fn vm(&self, action: &str, words: &str) -> TestVm {
        let images = images().join(&self.version);
        TestVm::bare()
            .arg("--kernel")
            .arg(images.join(self.format.to_string()))
            .arg("--initrd")
            .arg(images.join("initrd"))
            .args(&format!("--cpus {} --memory {}M", self.cpus, self.memory_mib))
            .cmdline(&format!("console=ttyS0 quiet panic=-1 vmm.do={action} {words}"))
    }

    /// The same, with a disk of which nothing is kept as its root, the first of its disks: it has fio, and what makes and checks
    /// file systems.
    #[must_use]
    pub fn vm_from_disk(&self, action: &str, words: &str) -> TestVm {
        let disk = images().join("disk.ext4");
        let root = format!("vmm.root=/dev/vda {words}");
        self.vm(action, &root).arg(format!("--disk=path={},format=raw,read_only", disk.display()))
    }
}

/// Where the images are.
fn images() -> PathBuf {
    env::var_os(VMM_LINUX).unwrap_or_default().into()
}

/// The lines `vmm: KEY=VALUE` that the guest's first program has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxReport(Vec<(String, String)>);

impl LinuxReport {
    /// The last line of a report; what comes behind it is said by what the guest was told to do.
    pub const END: &str = "vmm: do=";

    /// Reads the guest's console. Lines of the kernel may stand between those of the report.
    #[must_use]
    pub fn read(console: &str) -> Self {
        let lines = console.lines().filter_map(|line| line.strip_prefix("vmm: ")?.split_once('='));
        Self(lines.map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The values of a key that may be there several times.
    pub fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// The guest has not said it.
    pub fn get(&self, key: &str) -> Result<&str> {
        self.all(key).next().with_context(|| format!("no {key} in {self:?}"))
    }

    /// The value of a key, as a number.
    ///
    /// # Errors
    ///
    /// The guest has not said it, or it is none.
    pub fn number(&self, key: &str) -> Result<u64> {
        let value = self.get(key)?;
        value.parse().with_context(|| format!("{key}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_from_between_the_lines_of_the_kernel() {
        let console = "[    0.1] PCI: none\r\nvmm: cpus=2\r\n[    0.2] vmm: cpus=3\r\nvmm: acpi=FACP\r\n\
                       vmm: acpi=APIC\r\nvmm: cmdline=a=b c\r\nvmm: do=poweroff\r\n";
        let report = LinuxReport::read(console);
        assert_eq!(report.number("cpus").unwrap(), 2);
        assert_eq!(report.get("cmdline").unwrap(), "a=b c");
        assert_eq!(report.all("acpi").collect::<Vec<_>>(), ["FACP", "APIC"]);
        assert!(report.get("uptime").is_err() && report.number("do").is_err());
    }
}
