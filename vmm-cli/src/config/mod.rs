//! Configuration: one structure for file and flags, checked once and then trusted.

mod affinity;
pub(crate) mod balloon;
pub(crate) mod choice;
pub(crate) mod cpu;
pub(crate) mod device_id;
pub(crate) mod disk;
pub(crate) mod duration;
mod error;
mod file;
mod files;
mod fs;
mod keys;
mod memory;
mod memory_hotplug;
pub(crate) mod net;
mod parse;
mod places;
mod render;
pub(crate) mod scheduler;
mod serial;
mod settings;
mod size;
mod stats;
#[cfg(test)]
mod testing;
pub(crate) mod value;
mod vsock;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use affinity::{Affinity, CpuList};
pub use balloon::{BalloonConfig, BalloonConfigError};
pub use choice::{Irqchip, Kick, LogFormat, LogLevel, OnReset, OnTripleFault, Seccomp, StatsFormat};
pub use cpu::{CpuConfig, CpuError};
pub use device_id::DeviceId;
pub use disk::{DiskConfig, DiskEngine, DiskError, DiskFormat, Rate};
pub use error::{ConfigError, Place};
pub use file::{FileError, open_regular};
pub(crate) use files::{DiskIdentities, OtherFiles, check_settings};
pub use fs::{FsConfig, FsError, Tag};
pub use keys::Hint;
pub use memory::{DirtyLogKind, HugePages, MemoryBacking, MemoryConfig, MemoryError};
pub use memory_hotplug::{MemoryHotplugConfig, MemoryHotplugError};
pub use net::{Descriptors, MacAddress, NetConfig, NetError};
pub use parse::parse_toml;
pub(crate) use places::{HostPlace, Need};
pub use serial::SerialMode;
pub use settings::SettingsError;
pub use size::{MemorySize, parse_bytes};
pub use stats::StatsOutput;
pub use value::ValueError;
pub use vsock::{VsockConfig, VsockError};

use crate::args::VmArgs;
use crate::listener::MAX_PATH as MAX_SOCKET_PATH;

/// Largest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most vCPUs with the irqchip in the kernel: xAPIC identifiers end at 254, 255 is the broadcast.
const KERNEL_IRQCHIP_CPUS: u16 = 254;

/// One virtual machine. [`VmConfig::load`] gives one whose every value is in range, whose paths are absolute and
/// whose boot images could be opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// What the guest starts with.
    pub boot: BootConfig,
    /// Its processors.
    pub cpu: CpuConfig,
    /// Its RAM.
    pub memory: MemoryConfig,
    /// RAM that is plugged while it runs.
    pub memory_hotplug: MemoryHotplugConfig,
    /// Its platform and the ways it ends.
    pub machine: MachineConfig,
    /// Its entropy device.
    pub entropy: EntropyConfig,
    /// Its serial port and its virtio console.
    pub console: ConsoleConfig,
    /// Its socket device.
    pub vsock: VsockConfig,
    /// Its balloon.
    pub balloon: BalloonConfig,
    /// How it is controlled from outside.
    pub control: ControlConfig,
    /// What the process may not do.
    pub confinement: ConfinementConfig,
    /// The log of this process.
    pub log: LogConfig,
    /// What is written about a run.
    pub stats: StatsConfig,
    /// Its disks, in the order in which the guest has them.
    pub disk: Vec<DiskConfig>,
    /// Its network devices, in the order in which the guest has them.
    pub net: Vec<NetConfig>,
    /// Its file systems of the host, in the order in which the guest has them.
    pub fs: Vec<FsConfig>,
}

/// The section `[boot]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootConfig {
    /// Guest image; `None` is the guest embedded in the binary.
    #[serde(deserialize_with = "value::path")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[serde(deserialize_with = "value::path")]
    pub initrd: Option<PathBuf>,
    /// Command line: printable ASCII, at most 2047 bytes.
    #[serde(deserialize_with = "value::cmdline")]
    pub cmdline: String,
}

/// The section `[machine]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    /// What happens when the guest resets the machine.
    #[serde(deserialize_with = "choice::deserialize")]
    pub on_reset: OnReset,
    /// What a triple fault counts as.
    #[serde(deserialize_with = "choice::deserialize")]
    pub on_triple_fault: OnTripleFault,
    /// How long an orderly stop may take before it is forced; at most one hour.
    #[serde(deserialize_with = "duration::deserialize")]
    pub grace_time: Duration,
    /// Who emulates the interrupt controllers.
    #[serde(deserialize_with = "choice::deserialize")]
    pub irqchip: Irqchip,
    /// Whether there is an interval timer (i8254); not with [`Irqchip::Split`].
    pub pit: bool,
    /// Whether there is a PCI bus; `None` leaves it to [`VmConfig::has_pci`].
    pub pci: Option<bool>,
    /// Whether there are devices for the self-test of the embedded guest; `None` leaves it to
    /// [`VmConfig::selftest`].
    pub selftest: Option<bool>,
}

/// The section `[entropy]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyConfig {
    /// Whether there is an entropy device.
    pub device: bool,
}

/// The section `[console]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the serial port ends on the host.
    #[serde(deserialize_with = "value::from_text")]
    pub serial: SerialMode,
    /// Where the virtio console ends on the host; `None`: there is none.
    #[serde(deserialize_with = "value::some_from_text")]
    pub virtio: Option<SerialMode>,
}

/// The section `[control]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// The path of the control socket; `None`: there is none.
    #[serde(deserialize_with = "value::path")]
    pub socket: Option<PathBuf>,
}

/// The section `[confinement]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfinementConfig {
    /// Whether each thread has a table of system calls.
    #[serde(deserialize_with = "choice::deserialize")]
    pub seccomp: Seccomp,
}

/// The section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// The least important messages that are logged.
    #[serde(deserialize_with = "choice::deserialize")]
    pub level: LogLevel,
    /// Their form.
    #[serde(deserialize_with = "choice::deserialize")]
    pub format: LogFormat,
    /// The file they are appended to; `None` is standard error.
    #[serde(deserialize_with = "value::path")]
    pub file: Option<PathBuf>,
}

/// The section `[stats]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatsConfig {
    /// Where the statistics go when the machine has ended; `None`: nowhere.
    #[serde(deserialize_with = "value::some_from_text")]
    pub output: Option<StatsOutput>,
    /// Their form; `None` leaves it to [`StatsConfig::format`].
    #[serde(deserialize_with = "choice::deserialize_some")]
    pub format: Option<StatsFormat>,
}

impl StatsConfig {
    /// The form of the statistics: as configured, else a table on standard output and JSON in a file.
    pub fn format(&self) -> StatsFormat {
        self.format.unwrap_or(match self.output {
            Some(StatsOutput::Stdout) => StatsFormat::Table,
            Some(StatsOutput::File(_)) | None => StatsFormat::Json,
        })
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            on_reset: OnReset::default(),
            on_triple_fault: OnTripleFault::default(),
            grace_time: Duration::from_secs(5),
            irqchip: Irqchip::default(),
            pit: false,
            pci: None,
            selftest: None,
        }
    }
}

impl VmConfig {
    /// Reads the file that `args` names, puts the flags over it, makes the paths absolute (those of the file are
    /// relative to its directory, those of flags to the current one) and opens the boot images once.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the place in the file, or the key and its flag.
    pub fn load(args: &VmArgs) -> Result<Self, ConfigError> {
        let mut config = match &args.config {
            Some(path) => parse_toml(&read_text(path)?, path)?,
            None => Self::default(),
        };
        config.apply(args);
        config.resolve_paths()?;
        config.validate()?;
        Ok(config)
    }

    /// Whether the devices of the self-test are there: as configured, else exactly when the embedded guest runs.
    pub fn selftest(&self) -> bool {
        self.machine.selftest.unwrap_or(self.boot.kernel.is_none())
    }

    /// Whether there is a PCI bus: as configured, else where something is on it or may be added. A bus that nobody uses
    /// costs each boot the time to look for devices.
    pub fn has_pci(&self) -> bool {
        let has_several = !self.disk.is_empty() || !self.net.is_empty() || !self.fs.is_empty();
        let has_one = self.entropy.device || self.console.virtio.is_some() || self.vsock.has_device();
        let has_devices = has_several || has_one || self.memory_hotplug.size.is_some() || self.balloon.device;
        self.machine.pci.unwrap_or(has_devices || self.control.socket.is_some())
    }

    /// Whether somebody may ask what the kernel counts: each vCPU then takes one more descriptor.
    pub fn keeps_kernel_stats(&self) -> bool {
        self.stats.output.is_some() || self.control.socket.is_some()
    }

    fn apply(&mut self, args: &VmArgs) {
        fn set<T: Clone>(setting: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        fn set_optional<T: Clone>(setting: &mut Option<T>, flag: Option<&T>) {
            if flag.is_some() {
                *setting = flag.cloned();
            }
        }
        set_optional(&mut self.boot.kernel, args.kernel.as_ref());
        set_optional(&mut self.boot.initrd, args.initrd.as_ref());
        set(&mut self.boot.cmdline, args.cmdline.as_ref());
        set(&mut self.cpu.count, args.cpus.as_ref());
        set(&mut self.cpu.kick, args.kick.as_ref());
        set_optional(&mut self.cpu.affinity, args.affinity.as_ref());
        set(&mut self.cpu.dedicated, args.dedicated.as_ref());
        set_optional(&mut self.cpu.disable_exits, args.disable_exits.as_ref());
        set_optional(&mut self.cpu.halt_poll_ns, args.halt_poll_ns.as_ref());
        set(&mut self.cpu.realtime_hint, args.realtime_hint.as_ref());
        set_optional(&mut self.cpu.scheduler, args.scheduler.as_ref());
        set(&mut self.cpu.monopolize_cpus, args.monopolize_cpus.as_ref());
        set(&mut self.memory.size, args.memory.as_ref());
        set(&mut self.memory.backing, args.memory_backing.as_ref());
        set(&mut self.memory.huge_pages, args.huge_pages.as_ref());
        set(&mut self.memory.prefault, args.prefault.as_ref());
        set(&mut self.memory.lock, args.lock_memory.as_ref());
        set(&mut self.memory.dump, args.dump_memory.as_ref());
        set(&mut self.memory.dirty_log, args.dirty_log.as_ref());
        set(&mut self.memory_hotplug, args.memory_hotplug.as_ref());
        set(&mut self.machine.on_reset, args.on_reset.as_ref());
        set(&mut self.machine.on_triple_fault, args.on_triple_fault.as_ref());
        set(&mut self.machine.grace_time, args.grace_time.as_ref());
        set(&mut self.machine.irqchip, args.irqchip.as_ref());
        set(&mut self.machine.pit, args.pit.as_ref());
        set_optional(&mut self.machine.pci, args.pci.as_ref());
        set_optional(&mut self.machine.selftest, args.selftest.as_ref());
        set(&mut self.entropy.device, args.entropy.as_ref());
        set(&mut self.console.serial, args.serial.as_ref());
        set_optional(&mut self.console.virtio, args.virtio_console.as_ref());
        set(&mut self.vsock, args.vsock.as_ref());
        set(&mut self.balloon, args.balloon.as_ref());
        set_optional(&mut self.control.socket, args.api_sock.as_ref());
        set(&mut self.confinement.seccomp, args.seccomp.as_ref());
        set(&mut self.log.level, args.log_level.as_ref());
        set(&mut self.log.format, args.log_format.as_ref());
        set_optional(&mut self.log.file, args.log_file.as_ref());
        set_optional(&mut self.stats.output, args.stats.as_ref());
        set_optional(&mut self.stats.format, args.stats_format.as_ref());
        if !args.disk.is_empty() {
            self.disk.clone_from(&args.disk);
        }
        if !args.net.is_empty() {
            self.net.clone_from(&args.net);
        }
        if !args.fs.is_empty() {
            self.fs.clone_from(&args.fs);
        }
    }

    fn resolve_paths(&mut self) -> Result<(), ConfigError> {
        for (key, path) in self.paths_mut() {
            *path = std::path::absolute(&*path).map_err(|source| ConfigError::NotAbsolute {
                key,
                path: path.clone(),
                source,
            })?;
            if path.to_str().is_none() {
                return Err(ConfigError::PathNotUtf8 { key, path: path.clone() });
            }
        }
        Ok(())
    }

    /// Checks what no single value shows.
    fn validate(&self) -> Result<(), ConfigError> {
        self.cpu.validate()?;
        self.validate_irqchip()?;
        let images = self.boot_images();
        for (key, image) in images {
            if let Some(path) = image {
                open_regular(path).map_err(|source| ConfigError::Image { key, source })?;
            }
        }
        self.memory.validate()?;
        self.memory_hotplug.validate(&self.memory)?;
        self.vsock.validate()?;
        self.balloon.validate(self.memory.size)?;
        self.validate_disk_ids()?;
        net::validate(&self.net, &self.disk)?;
        fs::validate(self)?;
        self.validate_consoles()?;
        self.validate_files(&images)?;
        self.validate_sockets()
    }

    /// What is only read, but for disks.
    fn boot_images(&self) -> [(&'static str, Option<&PathBuf>); 3] {
        [
            ("boot.kernel", self.boot.kernel.as_ref()),
            ("boot.initrd", self.boot.initrd.as_ref()),
            (memory::BACKING, self.memory.backing.path()),
        ]
    }

    /// Checks the disks, and that nothing that is written to is `images` or something else.
    fn validate_files(&self, images: &[(&'static str, Option<&PathBuf>)]) -> Result<(), ConfigError> {
        self.disk.iter().try_for_each(DiskConfig::validate)?;
        let read_only =
            self.disk.iter().filter(|disk| disk.read_only).map(|disk| (disk::PATH, disk.path.as_ref()));
        let backing = self.disk.iter().map(|disk| (disk::BACKING, disk.backing.as_ref()));
        let images: Vec<_> = images.iter().copied().chain(read_only).chain(backing).collect();
        self.validate_outputs(&images)
    }

    /// Checks that no two disks have the same name, given or not.
    fn validate_disk_ids(&self) -> Result<(), DiskError> {
        let mut seen = HashSet::new();
        let ids = self.disk.iter().enumerate().map(|(place, disk)| disk.id(place));
        let twice = ids.into_iter().find(|id| !seen.insert(id.clone()));
        twice.map_or(Ok(()), |id| Err(DiskError::SameId { id }))
    }

    /// Checks that standard input and output have one owner.
    fn validate_consoles(&self) -> Result<(), ConfigError> {
        if self.console.virtio == Some(SerialMode::Stdio) && self.console.serial == SerialMode::Stdio {
            return Err(ConfigError::SharedTerminal { key: "console.virtio", other: "console.serial" });
        }
        Ok(())
    }

    fn validate_sockets(&self) -> Result<(), ConfigError> {
        let sockets = [
            ("console.serial", self.console.serial.socket(), MAX_SOCKET_PATH),
            ("console.virtio", self.console.virtio.as_ref().and_then(SerialMode::socket), MAX_SOCKET_PATH),
            (vsock::PATH, self.vsock.path.as_ref(), vsock::MAX_PATH),
            ("control.socket", self.control.socket.as_ref(), MAX_SOCKET_PATH),
        ];
        for (key, socket, limit) in sockets {
            let Some(path) = socket else { continue };
            let length = path.as_os_str().len();
            if length > limit {
                let path = path.clone();
                return Err(ConfigError::SocketPathTooLong { key, path, length, limit });
            }
        }
        // These are connected to, by whoever is in the directory.
        let streams = self.net.iter().filter_map(|net| Some((net::PASST, net.passt.as_ref()?)));
        for (key, path) in self.back_ends().chain(streams) {
            let (length, limit) = (path.file_name().map_or(0, OsStr::len), MAX_SOCKET_PATH);
            if length > limit {
                let path = path.clone();
                return Err(ConfigError::SocketNameTooLong { key, path, length, limit });
            }
        }
        Ok(())
    }

    fn validate_irqchip(&self) -> Result<(), ConfigError> {
        let count = self.cpu.count;
        match self.machine.irqchip {
            Irqchip::Kernel if count > KERNEL_IRQCHIP_CPUS => {
                Err(ConfigError::NeedsSplitIrqchip { key: "cpu.count", count, limit: KERNEL_IRQCHIP_CPUS })
            }
            Irqchip::Split if self.machine.pit => Err(ConfigError::NoTimer { key: "machine.pit" }),
            Irqchip::Kernel | Irqchip::Split => Ok(()),
        }
    }

    /// What is written to, but for disks.
    fn outputs(&self) -> [(&'static str, Option<&PathBuf>); 7] {
        let stats = self.stats.output.as_ref().and_then(StatsOutput::path);
        [
            (memory::BACKING, self.memory.backing.shared_path()),
            ("console.serial", self.console.serial.path()),
            ("console.virtio", self.console.virtio.as_ref().and_then(SerialMode::path)),
            (vsock::PATH, self.vsock.path.as_ref()),
            ("control.socket", self.control.socket.as_ref()),
            ("log.file", self.log.file.as_ref()),
            ("stats.output", stats),
        ]
    }

    /// Checks that no output, a file or a socket, is an image or another output.
    fn validate_outputs(&self, images: &[(&'static str, Option<&PathBuf>)]) -> Result<(), ConfigError> {
        let outputs = self.outputs();
        let disks =
            self.disk.iter().filter(|disk| !disk.read_only).map(|disk| (disk::PATH, disk.path.as_ref()));
        let outputs = outputs.into_iter().chain(disks);
        let outputs: Vec<_> = outputs.filter_map(|(key, path)| Some((key, path?))).collect();
        for (index, &(key, path)) in outputs.iter().enumerate() {
            let same = |&&(image, other): &&(&str, Option<&PathBuf>)| {
                image != key && other.is_some_and(|image| is_same_file(image, path))
            };
            if let Some(&(image, _)) = images.iter().find(same) {
                return Err(ConfigError::OverwritesImage { key, path: path.clone(), image });
            }
            let other = outputs.iter().take(index).find(|(_, other)| is_same_output(other, path));
            if let Some(&(other, _)) = other {
                return Err(ConfigError::SameOutput { key, path: path.clone(), other });
            }
        }
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let paths = [
            ("boot.kernel", self.boot.kernel.as_mut()),
            ("boot.initrd", self.boot.initrd.as_mut()),
            (memory::BACKING, self.memory.backing.path_mut()),
            ("console.serial", self.console.serial.path_mut()),
            ("console.virtio", self.console.virtio.as_mut().and_then(SerialMode::path_mut)),
            (vsock::PATH, self.vsock.path.as_mut()),
            ("control.socket", self.control.socket.as_mut()),
            ("log.file", self.log.file.as_mut()),
            ("stats.output", self.stats.output.as_mut().and_then(StatsOutput::path_mut)),
        ];
        let disks = self.disk.iter_mut().flat_map(DiskConfig::paths_mut);
        let nets = self.net.iter_mut().flat_map(|net| {
            let sockets = [(net::VHOST_USER, net.vhost_user.as_mut()), (net::PASST, net.passt.as_mut())];
            sockets.into_iter().filter_map(|(key, path)| Some((key, path?)))
        });
        let fs = self.fs.iter_mut().map(|fs| (fs::SOCKET, &mut fs.socket));
        let single = paths.into_iter().filter_map(|(key, path)| path.map(|path| (key, path)));
        single.chain(disks).chain(nets).chain(fs)
    }

    /// The sockets of vhost-user back ends, with their keys.
    fn back_ends(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let disks = self.disk.iter().filter_map(|disk| Some((disk::VHOST_USER, disk.vhost_user.as_ref()?)));
        let nets = self.net.iter().filter_map(|net| Some((net::VHOST_USER, net.vhost_user.as_ref()?)));
        let fs = self.fs.iter().map(|fs| (fs::SOCKET, &fs.socket));
        disks.chain(nets).chain(fs)
    }
}

/// Whether both paths lead to the same file now.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Whether what is written to both paths would come to one file. Devices take what several write.
fn is_same_output(one: &Path, other: &Path) -> bool {
    let is_file = |path: &Path| {
        path.metadata().map_or(true, |metadata| metadata.is_file() || metadata.file_type().is_socket())
    };
    is_file(one) && (one == other || is_same_file(one, other))
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    String::from_utf8(file::read_regular(path, MAX_FILE)?).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        ConfigError::NotUtf8 { at: Place::new(path, &text, Some(valid..valid)) }
    })
}

#[cfg(test)]
mod tests;
