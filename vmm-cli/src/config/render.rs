//! Normalised text: a configuration written as TOML that reads back as the same configuration.

use std::fmt::Display;
use std::path::Path;

use toml::Value;
use vmm_core::DisabledExits;

use super::{
    Affinity, CpuConfig, DiskConfig, FsConfig, MemoryConfig, MemoryHotplugConfig, MemorySize, NetConfig,
    Rate, VmConfig, balloon, choice, duration, scheduler,
};

impl VmConfig {
    /// Writes every setting with its value. One that has none is a comment that says what then happens.
    ///
    /// [`parse_toml`](super::parse_toml) reads the text back as an equal configuration, if its paths are absolute
    /// and UTF-8 and its duration is whole milliseconds, as [`VmConfig::load`] makes sure.
    pub fn to_toml(&self) -> String {
        let mut out = Writer(String::new());
        out.section("boot");
        out.path("kernel", self.boot.kernel.as_deref(), "the embedded guest runs");
        out.path("initrd", self.boot.initrd.as_deref(), "there is none");
        out.text("cmdline", &self.boot.cmdline);

        out.section("cpu");
        out.cpu(&self.cpu);

        out.section("memory");
        out.text("size", &self.memory.size.to_string());
        out.text("backing", &self.memory.backing.to_string());
        out.text("huge_pages", &choice::word(&self.memory.huge_pages));
        out.set("prefault", self.memory.prefault);
        out.set("lock", self.memory.lock);
        out.set("dump", self.memory.dump);
        out.text("dirty_log", &choice::word(&self.memory.dirty_log));

        out.section("memory_hotplug");
        out.memory_hotplug(&self.memory_hotplug, &self.memory);

        out.section("machine");
        out.text("on_reset", &choice::word(&self.machine.on_reset));
        out.text("on_triple_fault", &choice::word(&self.machine.on_triple_fault));
        out.text("grace_time", &duration::render(self.machine.grace_time));
        out.text("irqchip", &choice::word(&self.machine.irqchip));
        out.set("pit", self.machine.pit);
        match (self.machine.pci, self.has_pci()) {
            (Some(pci), _) => out.set("pci", pci),
            (None, true) => out.unset("pci", "true, as there is a device for it or a control socket"),
            (None, false) => {
                out.unset("pci", "false, as there is neither a device for it nor a control socket");
            }
        }
        match (self.machine.selftest, self.selftest()) {
            (Some(selftest), _) => out.set("selftest", selftest),
            (None, true) => out.unset("selftest", "true, as the embedded guest runs"),
            (None, false) => out.unset("selftest", "false, as the embedded guest does not run"),
        }

        out.section("entropy");
        out.set("device", self.entropy.device);

        out.section("console");
        out.text("serial", &self.console.serial.to_string());
        match &self.console.virtio {
            Some(mode) => out.text("virtio", &mode.to_string()),
            None => out.unset("virtio", "there is none"),
        }

        out.section("vsock");
        out.set("cid", self.vsock.cid);
        let unset = if self.vsock.vhost { "the kernel has the sockets" } else { "there is no socket device" };
        out.path("path", self.vsock.path.as_deref(), unset);
        out.set("vhost", self.vsock.vhost);

        out.section("balloon");
        out.set("device", self.balloon.device);
        out.text("size", &balloon::render(self.balloon.size));
        out.set("deflate_on_oom", self.balloon.deflate_on_oom);
        out.set("free_page_reporting", self.balloon.free_page_reporting);
        out.text("statistics_interval", &duration::render(self.balloon.statistics_interval));

        out.section("control");
        out.path("socket", self.control.socket.as_deref(), "there is none");

        out.section("confinement");
        out.text("seccomp", &choice::word(&self.confinement.seccomp));

        out.section("log");
        out.text("level", &choice::word(&self.log.level));
        out.text("format", &choice::word(&self.log.format));
        out.path("file", self.log.file.as_deref(), "standard error");

        out.section("stats");
        match &self.stats.output {
            Some(output) => out.text("output", &output.to_string()),
            None => out.unset("output", "no statistics are written"),
        }
        match &self.stats.format {
            Some(format) => out.text("format", &choice::word(format)),
            None => out.unset("format", "table on standard output, json in a file"),
        }
        self.disk.iter().enumerate().for_each(|(place, disk)| out.disk(place, disk));
        self.net.iter().enumerate().for_each(|(place, net)| out.net(place, net));
        self.fs.iter().for_each(|fs| out.fs(fs));
        out.0
    }
}

struct Writer(String);

impl Writer {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0 += &format!("{gap}[{name}]\n");
    }

    fn set(&mut self, key: &str, value: impl Display) {
        self.0 += &format!("{key} = {value}\n");
    }

    fn text(&mut self, key: &str, text: &str) {
        self.set(key, Value::from(text));
    }

    fn path(&mut self, key: &str, path: Option<&Path>, unset: &str) {
        match path {
            Some(path) => self.text(key, &path.to_string_lossy()),
            None => self.unset(key, unset),
        }
    }

    fn words(&mut self, key: &str, words: impl IntoIterator<Item: Into<Value>>) {
        self.set(key, Value::from(words.into_iter().map(Into::into).collect::<Vec<Value>>()));
    }

    fn cpu(&mut self, cpu: &CpuConfig) {
        self.set("count", cpu.count);
        self.text("kick", &choice::word(&cpu.kick));
        match &cpu.affinity {
            Some(Affinity::All(list)) => self.text("affinity", &list.to_string()),
            Some(Affinity::Each(lists)) => self.words("affinity", lists.iter().map(ToString::to_string)),
            None => self.unset("affinity", "every CPU that the monitor may use"),
        }
        self.set("dedicated", cpu.dedicated);
        match (cpu.disable_exits, cpu.exits()) {
            (Some(exits), _) => self.words("disable_exits", exits.names()),
            (None, DisabledExits::NONE) => self.unset("disable_exits", "none"),
            (None, exits) => {
                self.unset(
                    "disable_exits",
                    &format!("{exits}, as far as the host offers them, for dedicated CPUs"),
                );
            }
        }
        match (cpu.halt_poll_ns, cpu.halt_poll()) {
            (Some(time), _) => self.set("halt_poll_ns", time),
            (None, Some(time)) => self.unset("halt_poll_ns", &format!("{time}, for dedicated CPUs")),
            (None, None) => self.unset("halt_poll_ns", "the host's limit"),
        }
        self.set("realtime_hint", cpu.realtime_hint);
        match cpu.scheduler {
            Some(scheduler) => self.text("scheduler", &scheduler::render(scheduler)),
            None => self.unset("scheduler", "as the monitor was started"),
        }
        self.set("monopolize_cpus", cpu.monopolize_cpus);
    }

    fn memory_hotplug(&mut self, plugged: &MemoryHotplugConfig, memory: &MemoryConfig) {
        match plugged.size {
            Some(size) => self.text("size", &size.to_string()),
            None => self.unset("size", "no memory is plugged while the guest runs"),
        }
        match (plugged.block, MemorySize::try_from(plugged.block_of(memory))) {
            (Some(block), _) => self.text("block", &block.to_string()),
            (None, Ok(block)) => self.unset("block", &block.to_string()),
            // There is always one.
            (None, Err(_)) => self.unset("block", "the smallest that can be"),
        }
        match plugged.requested {
            Some(requested) => self.text("requested", &requested.to_string()),
            None => self.unset("requested", "nothing, until somebody asks for it"),
        }
    }

    fn disk(&mut self, place: usize, disk: &DiskConfig) {
        self.0 += "\n[[disk]]\n";
        self.path("path", disk.path.as_deref(), "a back end serves the disk");
        match &disk.format {
            Some(format) => self.text("format", &choice::word(format)),
            None => self.unset("format", "a back end serves the disk"),
        }
        match &disk.id {
            Some(id) => self.text("id", id.as_str()),
            None => self.unset("id", disk.id(place).as_str()),
        }
        self.path("backing", disk.backing.as_deref(), "there is none");
        match &disk.backing_format {
            Some(format) => self.text("backing_format", &choice::word(format)),
            None => self.unset("backing_format", "there is no backing file"),
        }
        self.set("read_only", disk.read_only);
        self.set("direct", disk.direct);
        self.text("engine", &choice::word(&disk.engine));
        match disk.queues {
            Some(queues) => self.set("queues", queues),
            None => self.unset("queues", "one for each vCPU, at most 8"),
        }
        self.rates([("bandwidth", disk.bandwidth), ("operations", disk.operations)]);
        self.path("vhost_user", disk.vhost_user.as_deref(), "the disk has an image");
    }

    fn net(&mut self, place: usize, net: &NetConfig) {
        self.0 += "\n[[net]]\n";
        match &net.tap {
            Some(name) => self.text("tap", name),
            None => self.unset("tap", "the descriptors or the back end say which interface it is"),
        }
        self.set("create", net.create);
        match &net.fd {
            Some(fd) => self.text("fd", &fd.to_string()),
            None => self.unset("fd", "the interface has a name"),
        }
        match &net.id {
            Some(id) => self.text("id", id.as_str()),
            None => self.unset("id", net.id(place).as_str()),
        }
        match &net.mac {
            Some(mac) => self.text("mac", &mac.to_string()),
            None => self.unset("mac", "made up at each start"),
        }
        match net.mtu {
            Some(mtu) => self.set("mtu", mtu),
            None => self.unset("mtu", "that of the interface"),
        }
        match net.queues {
            Some(queues) => self.set("queues", queues),
            None => self.unset("queues", "one, or one for each descriptor"),
        }
        self.set("vhost", net.vhost);
        self.rates([
            ("receive_bandwidth", net.receive_bandwidth),
            ("receive_frames", net.receive_frames),
            ("transmit_bandwidth", net.transmit_bandwidth),
            ("transmit_frames", net.transmit_frames),
        ]);
        self.path("vhost_user", net.vhost_user.as_deref(), "an interface of the host moves the frames");
        self.path("passt", net.passt.as_deref(), "an interface of the host moves the frames");
    }

    fn fs(&mut self, fs: &FsConfig) {
        self.0 += "\n[[fs]]\n";
        self.text("tag", fs.tag.as_str());
        self.text("socket", &fs.socket.to_string_lossy());
    }

    fn rates<const COUNT: usize>(&mut self, rates: [(&str, Option<Rate>); COUNT]) {
        for (key, rate) in rates {
            match rate {
                Some(rate) => self.text(key, &rate.to_string()),
                None => self.unset(key, "unlimited"),
            }
        }
    }

    fn unset(&mut self, key: &str, meaning: &str) {
        self.0 += &format!("# {key} is not set: {meaning}\n");
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use clap::ValueEnum;
    use proptest::prelude::*;
    use vmm_vcpu::Scheduler;

    use super::*;
    use crate::config::{
        BalloonConfig, BootConfig, ConfinementConfig, ConsoleConfig, ControlConfig, CpuList, EntropyConfig,
        LogConfig, MacAddress, MachineConfig, MemoryBacking, SerialMode, StatsConfig, StatsOutput,
        VsockConfig, keys, parse_toml,
    };

    fn absolute_path() -> impl Strategy<Value = PathBuf> {
        "/[^\0]{0,20}".prop_map(PathBuf::from)
    }

    fn optional_path() -> impl Strategy<Value = Option<PathBuf>> {
        prop::option::of(absolute_path())
    }

    fn word<T: ValueEnum + std::fmt::Debug + 'static>() -> impl Strategy<Value = T> {
        prop::sample::select(T::value_variants())
    }

    fn serial() -> impl Strategy<Value = SerialMode> {
        prop_oneof![
            Just(SerialMode::Stdio),
            Just(SerialMode::Null),
            Just(SerialMode::Pty),
            absolute_path().prop_map(SerialMode::File),
            absolute_path().prop_map(SerialMode::Unix),
        ]
    }

    fn affinity() -> impl Strategy<Value = Affinity> {
        let list =
            || prop::collection::hash_set(0_usize..1024, 1..9).prop_map(|cpus| CpuList::new(cpus).unwrap());
        prop_oneof![
            list().prop_map(Affinity::All),
            prop::collection::vec(list(), 1..5).prop_map(Affinity::Each),
        ]
    }

    fn scheduler() -> impl Strategy<Value = Scheduler> {
        prop_oneof![
            Just(Scheduler::Other),
            Just(Scheduler::Batch),
            Just(Scheduler::Idle),
            (1_u8..=99).prop_map(Scheduler::Fifo),
            (1_u8..=99).prop_map(Scheduler::Rr),
        ]
    }

    prop_compose! {
        fn cpu()(
            (count, kick, affinity, dedicated) in (1_u16..=1024, word(), prop::option::of(affinity()), any::<bool>()),
            disable_exits in prop::option::of((0_u32..16).prop_map(DisabledExits::from_mask)),
            (halt_poll_ns, realtime_hint) in (any::<Option<u32>>(), any::<bool>()),
            (scheduler, monopolize_cpus) in (prop::option::of(scheduler()), any::<bool>()),
        ) -> CpuConfig {
            CpuConfig {
                count,
                kick,
                affinity,
                dedicated,
                disable_exits,
                halt_poll_ns,
                realtime_hint,
                scheduler,
                monopolize_cpus,
            }
        }
    }

    prop_compose! {
        fn memory()(
            pages in 256_u64..=1 << 28,
            backing in prop_oneof![
                Just(MemoryBacking::Anonymous),
                Just(MemoryBacking::Memfd),
                absolute_path().prop_map(MemoryBacking::SharedFile),
                absolute_path().prop_map(MemoryBacking::PrivateFile),
            ],
            huge_pages in word(),
            (prefault, lock, dump) in (any::<bool>(), any::<bool>(), any::<bool>()),
            dirty_log in word(),
        ) -> MemoryConfig {
            let size = MemorySize::try_from(pages * 4096).unwrap();
            MemoryConfig { size, backing, huge_pages, prefault, lock, dump, dirty_log }
        }
    }

    fn memory_hotplug() -> impl Strategy<Value = MemoryHotplugConfig> {
        let size =
            || prop::option::of((256_u64..=1 << 28).prop_map(|pages| (pages * 4096).try_into().unwrap()));
        (size(), size(), size()).prop_map(|(size, block, requested)| MemoryHotplugConfig {
            size,
            block,
            requested,
        })
    }

    prop_compose! {
        fn disk()(
            (path, vhost_user) in (optional_path(), optional_path()),
            (format, backing, backing_format) in (prop::option::of(word()), optional_path(), prop::option::of(word())),
            id in prop::option::of("[a-zA-Z0-9_-]{1,20}"),
            (read_only, direct) in (any::<bool>(), any::<bool>()),
            engine in word(),
            queues in prop::option::of(1..=1024_u16),
            rates in prop::array::uniform2(prop::option::of((1..u64::MAX, 1..3_600_000_u64, any::<u64>()))),
        ) -> DiskConfig {
            let rate = |rate: Option<(u64, u64, u64)>| rate.map(|(amount, milliseconds, burst)| {
                Rate { amount, time: Duration::from_millis(milliseconds), burst }
            });
            let [bandwidth, operations] = rates.map(rate);
            let id = id.map(|id| id.parse().unwrap());
            DiskConfig { path, format, id, backing, backing_format, read_only, direct, engine, queues, bandwidth, operations, vhost_user }
        }
    }

    prop_compose! {
        fn net()(
            (tap, create, fd) in (prop::option::of("[a-z]{1,15}"), any::<bool>(), prop::option::of("[0-9]{1,3}")),
            id in prop::option::of("[a-zA-Z0-9_-]{10,20}"),
            mac in prop::option::of(any::<[u8; 5]>().prop_map(MacAddress::made_up)),
            (mtu, queues, vhost) in (prop::option::of(68..=65521_u16), prop::option::of(1..=64_u16), any::<bool>()),
            (vhost_user, passt) in (optional_path(), optional_path()),
            rates in prop::array::uniform4(prop::option::of((1..u64::MAX, 1..3_600_000_u64, any::<u64>()))),
        ) -> NetConfig {
            let rate = |rate: Option<(u64, u64, u64)>| rate.map(|(amount, milliseconds, burst)| {
                Rate { amount, time: Duration::from_millis(milliseconds), burst }
            });
            let [receive_bandwidth, receive_frames, transmit_bandwidth, transmit_frames] = rates.map(rate);
            let (id, fd) = (id.map(|id| id.parse().unwrap()), fd.map(|fd| fd.parse().unwrap()));
            NetConfig {
                tap, create, fd, id, mac, mtu, queues, vhost, vhost_user, passt,
                receive_bandwidth, receive_frames, transmit_bandwidth, transmit_frames,
            }
        }
    }

    fn fs() -> impl Strategy<Value = FsConfig> {
        ("[a-z]{1,36}", absolute_path())
            .prop_map(|(tag, socket)| FsConfig { tag: tag.parse().unwrap(), socket })
    }

    fn balloon() -> impl Strategy<Value = BalloonConfig> {
        let switches = any::<[bool; 3]>();
        (switches, 0..=1_u64 << 28, 0..=3_600_000_u64).prop_map(|(switches, pages, milliseconds)| {
            let [device, deflate_on_oom, free_page_reporting] = switches;
            let statistics_interval = Duration::from_millis(milliseconds);
            BalloonConfig {
                device,
                size: pages * 4096,
                deflate_on_oom,
                free_page_reporting,
                statistics_interval,
            }
        })
    }

    fn stats() -> impl Strategy<Value = StatsConfig> {
        let output = prop_oneof![Just(StatsOutput::Stdout), absolute_path().prop_map(StatsOutput::File)];
        (prop::option::of(output), prop::option::of(word()))
            .prop_map(|(output, format)| StatsConfig { output, format })
    }

    prop_compose! {
        fn config()(
            (kernel, initrd, cmdline) in (optional_path(), optional_path(), "[ -~]{0,40}"),
            (cpu, memory, memory_hotplug) in (cpu(), memory(), memory_hotplug()),
            (on_reset, on_triple_fault, milliseconds) in (word(), word(), 0_u64..=3_600_000),
            (irqchip, pit) in (word(), any::<bool>()),
            (pci, selftest) in any::<(Option<bool>, Option<bool>)>(),
            entropy in any::<bool>(),
            (serial, virtio, socket) in (serial(), prop::option::of(serial()), optional_path()),
            seccomp in word(),
            (cid, vsock, vhost) in (3..u32::MAX, optional_path(), any::<bool>()),
            balloon in balloon(),
            (level, format, file, stats) in (word(), word(), optional_path(), stats()),
            disk in prop::collection::vec(disk(), 0..3),
            net in prop::collection::vec(net(), 0..3),
            fs in prop::collection::vec(fs(), 0..3),
        ) -> VmConfig {
            VmConfig {
                boot: BootConfig { kernel, initrd, cmdline },
                cpu,
                memory,
                memory_hotplug,
                machine: MachineConfig {
                    on_reset,
                    on_triple_fault,
                    grace_time: Duration::from_millis(milliseconds),
                    irqchip,
                    pit,
                    pci,
                    selftest,
                },
                entropy: EntropyConfig { device: entropy },
                console: ConsoleConfig { serial, virtio },
                vsock: VsockConfig { cid, path: vsock, vhost },
                balloon,
                control: ControlConfig { socket },
                confinement: ConfinementConfig { seccomp },
                log: LogConfig { level, format, file },
                stats,
                disk,
                net,
                fs,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_equal(config in config()) {
            let text = config.to_toml();
            match parse_toml(&text, Path::new("/elsewhere/vm.toml")) {
                Ok(read) => prop_assert_eq!(read, config),
                Err(error) => prop_assert!(false, "{}\n{}", error, text),
            }
        }
    }

    #[test]
    fn what_follows_from_dedicated_cpus_is_shown() {
        let text =
            parse_toml("[cpu]\naffinity = '1'\ndedicated = true", Path::new("vm.toml")).unwrap().to_toml();
        for line in [
            "# disable_exits is not set: hlt, pause, as far as the host offers them, for dedicated CPUs\n",
            "# halt_poll_ns is not set: 0, for dedicated CPUs\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn every_default_is_shown() {
        let expected = "\
[boot]
# kernel is not set: the embedded guest runs
# initrd is not set: there is none
cmdline = \"\"

[cpu]
count = 1
kick = \"immediate-exit\"
# affinity is not set: every CPU that the monitor may use
dedicated = false
# disable_exits is not set: none
# halt_poll_ns is not set: the host's limit
realtime_hint = false
# scheduler is not set: as the monitor was started
monopolize_cpus = false

[memory]
size = \"128M\"
backing = \"anonymous\"
huge_pages = \"none\"
prefault = false
lock = false
dump = false
dirty_log = \"auto\"

[memory_hotplug]
# size is not set: no memory is plugged while the guest runs
# block is not set: 2M
# requested is not set: nothing, until somebody asks for it

[machine]
on_reset = \"exit\"
on_triple_fault = \"crash\"
grace_time = \"5s\"
irqchip = \"kernel\"
pit = false
# pci is not set: false, as there is neither a device for it nor a control socket
# selftest is not set: true, as the embedded guest runs

[entropy]
device = false

[console]
serial = \"stdio\"
# virtio is not set: there is none

[vsock]
cid = 3
# path is not set: there is no socket device
vhost = false

[balloon]
device = false
size = \"0\"
deflate_on_oom = true
free_page_reporting = false
statistics_interval = \"0s\"

[control]
# socket is not set: there is none

[confinement]
seccomp = \"on\"

[log]
level = \"warn\"
format = \"text\"
# file is not set: standard error

[stats]
# output is not set: no statistics are written
# format is not set: table on standard output, json in a file
";
        assert_eq!(VmConfig::default().to_toml(), expected);
    }

    #[test]
    fn every_key_is_written() {
        let text = VmConfig::default().to_toml();
        let sections = text.split("\n\n").map(|section| section.trim_start_matches('\n'));
        let written: Vec<Vec<&str>> =
            sections.map(|s| s.lines().map(|line| line.trim_start_matches("# ")).collect()).collect();
        assert_eq!(written.len(), keys::SECTIONS.len());
        for (lines, section) in written.iter().zip(keys::SECTIONS) {
            assert_eq!(lines[0], format!("[{}]", section.name));
            let names: Vec<&str> = lines[1..].iter().filter_map(|line| line.split(' ').next()).collect();
            assert_eq!(names, section.keys.iter().map(|key| key.name).collect::<Vec<_>>());
        }
    }
}
