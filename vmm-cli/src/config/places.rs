//! Places: every path of the host that a machine opens, and what it needs of it.

use std::path::PathBuf;

use super::{
    BootConfig, ConsoleConfig, ControlConfig, CpuConfig, DiskConfig, FsConfig, HugePages, LogConfig,
    MemoryBacking, MemoryConfig, NetConfig, SerialMode, StatsConfig, StatsOutput, VmConfig, VsockConfig,
};
use super::{disk, fs, keys, memory, net, vsock};
use crate::run::KVM;

const TUN: &str = "/dev/net/tun";
const VHOST_NET: &str = "/dev/vhost-net";
const VHOST_VSOCK: &str = "/dev/vhost-vsock";
const HUGE_PAGE_POOLS: &str = "/sys/kernel/mm/hugepages";
const HOST_CPUS: [&str; 2] = ["/sys/devices/system/cpu/online", "/sys/devices/system/cpu/isolated"];

/// What a machine needs of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// The kernel says something there; nothing is lost where it does not.
    Look,
    /// It is read.
    Read,
    /// It is connected to: a socket of somebody else.
    Connect,
    /// It is written to, and made if it is not there.
    Output,
    /// It is read and written, and is there.
    Write,
    /// A socket is made there, and removed.
    Listen,
}

/// A path, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPlace {
    /// The setting that names it.
    key: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) need: Need,
}

impl HostPlace {
    fn new(key: &'static str, path: impl Into<PathBuf>, need: Need) -> Self {
        Self { key, path: path.into(), need }
    }

    /// What messages call it: the setting with its flag.
    pub(crate) fn name(&self) -> String {
        keys::with_flag(self.key)
    }
}

impl VmConfig {
    /// Every path that a machine of this configuration opens, device nodes included. What its user opens to add a
    /// device is not among them; sockets `PATH_PORT` are beside that of `vsock.path`.
    pub(crate) fn places(&self) -> Vec<HostPlace> {
        // Without `..`: whoever adds a section is asked whether it has paths. Of keys the table knows it, and a test asks.
        let Self {
            boot,
            cpu,
            memory,
            memory_hotplug: _,
            machine: _,
            entropy: _,
            console,
            vsock,
            balloon: _,
            control,
            confinement: _,
            log,
            stats,
            disk,
            net,
            fs,
        } = self;
        let mut places = vec![HostPlace::new("KVM", KVM, Need::Write)];
        places.extend(of_boot(boot));
        places.extend(of_cpu(cpu));
        places.extend(of_memory(memory));
        places.extend(of_consoles(console));
        places.extend(of_vsock(vsock));
        let ControlConfig { socket } = control;
        places.extend(socket.iter().map(|path| HostPlace::new("control.socket", path, Need::Listen)));
        let LogConfig { level: _, format: _, file } = log;
        places.extend(file.iter().map(|path| HostPlace::new("log.file", path, Need::Output)));
        let StatsConfig { output, format: _ } = stats;
        if let Some(StatsOutput::File(path)) = output {
            places.push(HostPlace::new("stats.output", path, Need::Output));
        }
        places.extend(disk.iter().flat_map(of_disk));
        places.extend(net.iter().flat_map(of_net));
        places.extend(fs.iter().map(of_fs));
        places
    }
}

fn of_boot(boot: &BootConfig) -> impl Iterator<Item = HostPlace> {
    let BootConfig { kernel, initrd, cmdline: _ } = boot;
    let images = [("boot.kernel", kernel), ("boot.initrd", initrd)];
    images.into_iter().filter_map(|(key, path)| Some(HostPlace::new(key, path.as_ref()?, Need::Read)))
}

fn of_cpu(cpu: &CpuConfig) -> impl Iterator<Item = HostPlace> {
    let files = cpu.affinity.is_some().then_some(HOST_CPUS).into_iter().flatten();
    files.map(|path| HostPlace::new("cpu.affinity", path, Need::Look))
}

fn of_memory(memory: &MemoryConfig) -> Option<HostPlace> {
    let MemoryConfig { size: _, backing, huge_pages, prefault: _, lock: _, dump: _, dirty_log: _ } = memory;
    match backing {
        MemoryBacking::SharedFile(path) => Some(HostPlace::new(memory::BACKING, path, Need::Write)),
        MemoryBacking::PrivateFile(path) => Some(HostPlace::new(memory::BACKING, path, Need::Read)),
        MemoryBacking::Anonymous | MemoryBacking::Memfd => match huge_pages {
            HugePages::None | HugePages::Transparent => None,
            HugePages::Size2M | HugePages::Size1G => {
                Some(HostPlace::new("memory.huge_pages", HUGE_PAGE_POOLS, Need::Look))
            }
        },
    }
}

fn of_consoles(console: &ConsoleConfig) -> impl Iterator<Item = HostPlace> {
    let ConsoleConfig { serial, virtio } = console;
    let modes = [("console.serial", Some(serial)), ("console.virtio", virtio.as_ref())];
    modes.into_iter().filter_map(|(key, mode)| match mode? {
        SerialMode::File(path) => Some(HostPlace::new(key, path, Need::Output)),
        SerialMode::Unix(path) => Some(HostPlace::new(key, path, Need::Listen)),
        // Whoever has pseudo-terminals has all of them: they are not a path that is named.
        SerialMode::Stdio | SerialMode::Null | SerialMode::Pty => None,
    })
}

fn of_vsock(vsock: &VsockConfig) -> impl Iterator<Item = HostPlace> {
    let VsockConfig { cid: _, path, vhost } = vsock;
    let socket = path.as_ref().map(|path| HostPlace::new(vsock::PATH, path, Need::Listen));
    let device = vhost.then(|| HostPlace::new("vsock.vhost", VHOST_VSOCK, Need::Write));
    socket.into_iter().chain(device)
}

fn of_disk(disk: &DiskConfig) -> impl Iterator<Item = HostPlace> {
    let DiskConfig { path, backing, read_only, vhost_user, .. } = disk;
    let need = if *read_only { Need::Read } else { Need::Write };
    let paths = [(disk::PATH, path, need), (disk::BACKING, backing, Need::Read)];
    let paths = paths.into_iter().chain([(disk::VHOST_USER, vhost_user, Need::Connect)]);
    paths.filter_map(|(key, path, need)| Some(HostPlace::new(key, path.as_ref()?, need)))
}

fn of_net(net: &NetConfig) -> impl Iterator<Item = HostPlace> {
    let NetConfig { tap, vhost, vhost_user, passt, .. } = net;
    let interface = tap.is_some().then(|| HostPlace::new("net.tap", TUN, Need::Write));
    let kernel = vhost.then(|| HostPlace::new("net.vhost", VHOST_NET, Need::Write));
    let sockets = [(net::VHOST_USER, vhost_user), (net::PASST, passt)];
    let sockets = sockets.map(|(key, path)| Some(HostPlace::new(key, path.as_ref()?, Need::Connect)));
    interface.into_iter().chain(kernel).chain(sockets.into_iter().flatten())
}

fn of_fs(fs: &FsConfig) -> HostPlace {
    let FsConfig { tag: _, socket } = fs;
    HostPlace::new(fs::SOCKET, socket, Need::Connect)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::keys::{REPEATED, SECTIONS};
    use super::super::parse_toml;
    use super::*;

    /// Sets everything that has a path.
    const EVERYTHING: &str = "
        [boot]\nkernel = '/a/kernel'\ninitrd = '/a/initrd'
        [cpu]\naffinity = '0'
        [memory]\nbacking = 'shared-file=/a/ram'
        [console]\nserial = 'file=/a/console'\nvirtio = 'unix=/b/console'
        [vsock]\npath = '/b/vsock'
        [control]\nsocket = '/b/control'
        [log]\nfile = '/a/log'
        [stats]\noutput = '/a/stats'
        [[disk]]\npath = '/a/disk'\nformat = 'qcow2'\nbacking = '/a/base'\nbacking_format = 'raw'\nvhost_user = '/a/disk.sock'
        [[disk]]\npath = '/a/iso'\nformat = 'raw'\nread_only = true
        [[net]]\ntap = 'tap0'\nvhost = true\nvhost_user = '/a/net.sock'\npasst = '/a/passt.sock'
        [[fs]]\ntag = 'share'\nsocket = '/a/fs.sock'";

    fn config(text: &str) -> VmConfig {
        parse_toml(text, Path::new("vm.toml")).unwrap()
    }

    #[test]
    fn every_key_that_takes_a_path_has_its_places() {
        let all = SECTIONS.iter().chain(REPEATED).flat_map(|section| {
            section.keys.iter().map(move |key| (format!("{}.{}", section.name, key.name), key.expected))
        });
        let takes_path = |expected: &str| expected.to_ascii_lowercase().contains("path");
        let keys: BTreeSet<_> =
            all.filter(|(_, expected)| takes_path(expected)).map(|(key, _)| key).collect();
        let mut config = config(EVERYTHING);
        let places = config.places();
        let listed: BTreeSet<_> = places.iter().map(|place| place.key.to_owned()).collect();
        let missing: Vec<_> = keys.difference(&listed).collect();
        assert!(
            missing.is_empty(),
            "VmConfig::places does not know {missing:?}, or EVERYTHING does not set it"
        );
        // The same by the paths themselves.
        let paths: BTreeSet<_> = places.iter().map(|place| place.path.clone()).collect();
        let made_absolute: BTreeSet<_> = config.paths_mut().map(|(_, path)| path.clone()).collect();
        assert!(made_absolute.is_subset(&paths), "{made_absolute:?} and {paths:?}");
    }

    #[test]
    fn each_place_is_needed_for_what_is_done_there() {
        let places = config(EVERYTHING).places();
        let need = |path: &str| places.iter().find(|place| place.path == Path::new(path)).unwrap().need;
        for path in ["/a/kernel", "/a/initrd", "/a/base", "/a/iso"] {
            assert_eq!(need(path), Need::Read, "{path}");
        }
        for path in ["/a/ram", "/a/disk", KVM, TUN, VHOST_NET] {
            assert_eq!(need(path), Need::Write, "{path}");
        }
        for path in ["/a/console", "/a/log", "/a/stats"] {
            assert_eq!(need(path), Need::Output, "{path}");
        }
        for path in ["/b/console", "/b/vsock", "/b/control"] {
            assert_eq!(need(path), Need::Listen, "{path}");
        }
        for path in ["/a/disk.sock", "/a/net.sock", "/a/passt.sock", "/a/fs.sock"] {
            assert_eq!(need(path), Need::Connect, "{path}");
        }
        assert_eq!(need(HOST_CPUS[0]), Need::Look);
    }

    #[test]
    fn a_machine_has_the_nodes_that_it_uses_and_no_others() {
        let paths = |text| config(text).places().into_iter().map(|place| place.path).collect::<Vec<_>>();
        let only_kvm = [PathBuf::from(KVM)];
        assert_eq!(paths(""), only_kvm);
        assert_eq!(paths("[[net]]\nfd = 3"), only_kvm);
        assert_eq!(paths("[console]\nserial = 'null'\n[stats]\noutput = '-'"), only_kvm);
        assert_eq!(paths("[memory]\nbacking = 'memfd'"), only_kvm);
        assert_eq!(paths("[vsock]\nvhost = true"), [KVM, VHOST_VSOCK].map(PathBuf::from));
        assert_eq!(paths("[memory]\nhuge_pages = '2M'"), [KVM, HUGE_PAGE_POOLS].map(PathBuf::from));
        assert_eq!(
            paths("[memory]\nbacking = 'private-file=/ram'\nhuge_pages = '2M'"),
            [KVM, "/ram"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_place_is_called_by_its_setting() {
        let places = config(EVERYTHING).places();
        assert_eq!((places[0].name(), places[1].name()), ("KVM".into(), "boot.kernel (--kernel)".into()));
    }
}
