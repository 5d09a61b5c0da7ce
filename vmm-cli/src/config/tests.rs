//! Configuration as a whole: file and flags together, their errors, the reference page and the examples.

mod balloon;
mod disk;
mod memory;
mod memory_hotplug;
mod vsock;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use clap::{CommandFactory, Parser};
use proptest::prelude::*;
use vmm_core::DisabledExits;
use vmm_vcpu::Scheduler;

use super::testing::Scratch;
use super::*;
use crate::args::{Args, Command};

const PAGE: &str = include_str!("../../../docs/configuration.md");

/// A value for every key, none of them the default.
const FULL: &str = r#"
[boot]
kernel = "images/vmlinux"
initrd = "/abs/initrd"
cmdline = "console=ttyS0 \"quoted\""
[cpu]
count = 2
kick = "signal-mask"
affinity = ["2", "4"]
dedicated = true
disable_exits = ["hlt", "mwait"]
halt_poll_ns = 50000
realtime_hint = true
scheduler = "fifo:10"
monopolize_cpus = true
[memory]
size = "1TiB"
backing = "private-file=images/ram"
huge_pages = "1G"
prefault = true
lock = true
dump = true
dirty_log = "ring"
[memory_hotplug]
size = "8G"
block = "1G"
requested = 1073741824
[machine]
on_reset = "restart"
on_triple_fault = "reset"
grace_time = "250ms"
irqchip = "split"
pit = true
pci = false
selftest = false
[entropy]
device = true
[console]
serial = "unix=sock"
virtio = "file=out"
[vsock]
cid = 7
path = "vsock.sock"
[balloon]
device = true
size = "64M"
deflate_on_oom = false
free_page_reporting = true
statistics_interval = "2s"
[control]
socket = "control.sock"
[confinement]
seccomp = "on"
[log]
level = "trace"
format = "json"
file = "../vm.log"
[stats]
output = "stats.txt"
format = "table"
"#;

fn parse(text: &str) -> Result<VmConfig, ConfigError> {
    parse_toml(text, Path::new("dir/vm.toml"))
}

fn load(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<VmConfig, ConfigError> {
    let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
    let Command::Run(args) =
        Args::parse_from(["vmm-cli".into(), "run".into()].into_iter().chain(args)).command
    else {
        panic!("`run` gave another command");
    };
    VmConfig::load(&args)
}

/// The message with its chain of sources.
fn message(error: ConfigError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// The default of `section.key` as TOML writes it, if it has a value.
fn default_of(section: &str, key: &str) -> Option<toml::Value> {
    let defaults: toml::Table = VmConfig::default().to_toml().parse().unwrap();
    defaults[section].get(key).cloned()
}

/// A table `section`, of which there may be several, with what is required and nothing else.
fn least(section: &str) -> &'static str {
    match section {
        "disk" => disk::LEAST,
        "net" => "[[net]]\ntap = 'tap0'\n",
        "fs" => "[[fs]]\ntag = 'share'\nsocket = 'fs.sock'\n",
        _ => panic!("{section}"),
    }
}

/// The default of a key of such a table, if it has a value.
fn default_of_repeated(section: &str, key: &str) -> Option<toml::Value> {
    let written: toml::Table = parse(least(section)).unwrap().to_toml().parse().unwrap();
    written[section][0].get(key).cloned()
}

#[test]
fn an_empty_file_and_no_file_are_the_default() {
    assert_eq!(parse("").unwrap(), VmConfig::default());
    assert_eq!(
        parse(
            "[boot]\n[cpu]\n[memory]\n[memory_hotplug]\n[machine]\n[entropy]\n[console]\n[vsock]\n[balloon]\n[control]\n[confinement]\n[log]\n[stats]\n"
        )
        .unwrap(),
        VmConfig::default()
    );
    assert_eq!(load([""; 0]).unwrap(), VmConfig::default());
}

#[test]
fn every_key_arrives_in_its_field() {
    let config = parse(FULL).unwrap();
    let expected = VmConfig {
        boot: BootConfig {
            kernel: Some("dir/images/vmlinux".into()),
            initrd: Some("/abs/initrd".into()),
            cmdline: "console=ttyS0 \"quoted\"".into(),
        },
        cpu: CpuConfig {
            count: 2,
            kick: Kick::SignalMask,
            affinity: Some("2:4".parse().unwrap()),
            dedicated: true,
            disable_exits: Some(DisabledExits::HLT | DisabledExits::MWAIT),
            halt_poll_ns: Some(50000),
            realtime_hint: true,
            scheduler: Some(Scheduler::Fifo(10)),
            monopolize_cpus: true,
        },
        memory: MemoryConfig {
            size: MemorySize::MAX,
            backing: MemoryBacking::PrivateFile("dir/images/ram".into()),
            huge_pages: HugePages::Size1G,
            prefault: true,
            lock: true,
            dump: true,
            dirty_log: DirtyLogKind::Ring,
        },
        memory_hotplug: MemoryHotplugConfig {
            size: Some("8G".parse().unwrap()),
            block: Some("1G".parse().unwrap()),
            requested: Some("1G".parse().unwrap()),
        },
        machine: MachineConfig {
            on_reset: OnReset::Restart,
            on_triple_fault: OnTripleFault::Reset,
            grace_time: Duration::from_millis(250),
            irqchip: Irqchip::Split,
            pit: true,
            pci: Some(false),
            selftest: Some(false),
        },
        entropy: EntropyConfig { device: true },
        console: ConsoleConfig {
            serial: SerialMode::Unix("dir/sock".into()),
            virtio: Some(SerialMode::File("dir/out".into())),
        },
        vsock: VsockConfig { cid: 7, path: Some("dir/vsock.sock".into()), vhost: false },
        balloon: BalloonConfig {
            device: true,
            size: 64 << 20,
            deflate_on_oom: false,
            free_page_reporting: true,
            statistics_interval: Duration::from_secs(2),
        },
        control: ControlConfig { socket: Some("dir/control.sock".into()) },
        confinement: ConfinementConfig { seccomp: Seccomp::On },
        log: LogConfig {
            level: LogLevel::Trace,
            format: LogFormat::Json,
            file: Some("dir/../vm.log".into()),
        },
        stats: StatsConfig {
            output: Some(StatsOutput::File("dir/stats.txt".into())),
            format: Some(StatsFormat::Table),
        },
        disk: Vec::new(),
        net: Vec::new(),
        fs: Vec::new(),
    };
    assert_eq!(config, expected);
    let default = VmConfig::default();
    assert_ne!((config.boot, config.machine, config.log), (default.boot, default.machine, default.log));
    assert_ne!(config.stats, default.stats);
}

/// A flag for each key that one sets, with another value than [`FULL`] has.
const FLAGS: [&str; 39] = [
    "--kernel=Cargo.toml",
    "--initrd=src/lib.rs",
    "--cmdline=",
    "--cpus=3",
    "--kick=immediate-exit",
    "--affinity=0-2",
    "--dedicated=false",
    "--disable-exits=none",
    "--halt-poll-ns=0",
    "--realtime-hint=false",
    "--scheduler=other",
    "--monopolize-cpus=false",
    "--memory=1G",
    "--memory-backing=memfd",
    "--huge-pages=2M",
    "--prefault=false",
    "--lock-memory=false",
    "--dump-memory=false",
    "--dirty-log=bitmap",
    "--memory-hotplug=size=4G",
    "--on-reset=exit",
    "--on-triple-fault=crash",
    "--grace-time=2m",
    "--irqchip=kernel",
    "--pit",
    "--pci",
    "--selftest",
    "--entropy=false",
    "--serial=file=out",
    "--virtio-console=pty",
    "--vsock=cid=5,path=vs",
    "--balloon=size=1M",
    "--api-sock=ctl",
    "--seccomp=off",
    "--log-level=off",
    "--log-format=text",
    "--log-file=log",
    "--stats=stats",
    "--stats-format=json",
];

#[test]
fn flags_go_over_the_file_and_paths_start_where_they_were_written() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("images")).unwrap();
    scratch.file("images/vmlinux", "");
    let text = FULL.replace("/abs/initrd", "images/vmlinux").replace("pit = true", "pit = false");
    fs::File::create(scratch.path("images/ram"))
        .unwrap()
        .set_len(MemorySize::MAX.bytes() + (8 << 30))
        .unwrap();
    let file = scratch.file("vm.toml", text);
    let config = load([&file]).unwrap();
    assert_eq!(config.boot.kernel, Some(scratch.path("images/vmlinux")));
    assert_eq!(config.memory.backing, MemoryBacking::PrivateFile(scratch.path("images/ram")));
    assert_eq!(config.log.file, Some(scratch.path("../vm.log")));
    assert_eq!(config.stats.output, Some(StatsOutput::File(scratch.path("stats.txt"))));
    assert_eq!(config.console.serial, SerialMode::Unix(scratch.path("sock")));
    assert_eq!(config.control.socket, Some(scratch.path("control.sock")));

    let config = load(FLAGS.map(Path::new).into_iter().chain([&*file])).unwrap();
    let here = std::env::current_dir().unwrap();
    let expected = VmConfig {
        boot: BootConfig {
            kernel: Some(here.join("Cargo.toml")),
            initrd: Some(here.join("src/lib.rs")),
            cmdline: String::new(),
        },
        cpu: CpuConfig {
            count: 3,
            affinity: Some("0-2".parse().unwrap()),
            disable_exits: Some(DisabledExits::NONE),
            halt_poll_ns: Some(0),
            scheduler: Some(Scheduler::Other),
            ..Default::default()
        },
        memory: MemoryConfig {
            size: "1G".parse().unwrap(),
            backing: MemoryBacking::Memfd,
            huge_pages: HugePages::Size2M,
            dirty_log: DirtyLogKind::Bitmap,
            ..MemoryConfig::default()
        },
        memory_hotplug: MemoryHotplugConfig {
            size: Some("4G".parse().unwrap()),
            ..MemoryHotplugConfig::default()
        },
        machine: MachineConfig {
            on_reset: OnReset::Exit,
            on_triple_fault: OnTripleFault::Crash,
            grace_time: Duration::from_secs(120),
            irqchip: Irqchip::Kernel,
            pit: true,
            pci: Some(true),
            selftest: Some(true),
        },
        entropy: EntropyConfig { device: false },
        console: ConsoleConfig { serial: SerialMode::File(here.join("out")), virtio: Some(SerialMode::Pty) },
        vsock: VsockConfig { cid: 5, path: Some(here.join("vs")), vhost: false },
        balloon: BalloonConfig { device: true, size: 1 << 20, ..BalloonConfig::default() },
        control: ControlConfig { socket: Some(here.join("ctl")) },
        confinement: ConfinementConfig { seccomp: Seccomp::Off },
        log: LogConfig { level: LogLevel::Off, format: LogFormat::Text, file: Some(here.join("log")) },
        stats: StatsConfig {
            output: Some(StatsOutput::File(here.join("stats"))),
            format: Some(StatsFormat::Json),
        },
        ..VmConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(parse_toml(&config.to_toml(), Path::new("/elsewhere/vm.toml")).unwrap(), expected);
}

#[test]
fn what_the_split_irqchip_has_and_lacks_is_refused_with_the_remedy() {
    load(["--cpus=1024", "--irqchip=split"]).unwrap();
    load(["--cpus=254", "--pit"]).unwrap();
    let error = message(load(["--cpus=255"]).unwrap_err());
    assert_eq!(
        error,
        "cpu.count (--cpus) = 255: with the interrupt controllers in the kernel there are at most 254 vCPUs; set \
         machine.irqchip (--irqchip) to \"split\""
    );
    let error = message(load(["--pit", "--irqchip=split"]).unwrap_err());
    assert!(
        error.starts_with("machine.pit (--pit) = true: ") && error.contains("machine.irqchip"),
        "{error}"
    );
}

#[test]
fn standard_input_has_one_owner() {
    let error = message(load(["--virtio-console=stdio"]).unwrap_err());
    let expected = "console.virtio (--virtio-console) and console.serial (--serial) are both \"stdio\"";
    assert!(error.starts_with(expected), "{error}");
    load(["--virtio-console=stdio", "--serial=null"]).unwrap();
    load(["--virtio-console=pty", "--serial=pty"]).unwrap();
    let error = message(load(["--virtio-console=file=x", "--serial=file=x"]).unwrap_err());
    assert!(error.contains("console.virtio (--virtio-console): ") && error.contains("is also"), "{error}");
}

#[test]
fn selftest_follows_the_embedded_guest_until_it_is_set() {
    let mut config = VmConfig::default();
    assert!(config.selftest());
    config.boot.kernel = Some("vmlinux".into());
    assert!(!config.selftest());
    config.machine.selftest = Some(true);
    assert!(config.selftest());
}

#[test]
fn there_is_a_pci_bus_where_something_is_on_it_or_may_be_added_until_it_is_set() {
    let has_pci = |flags: &[&str]| load(flags).unwrap().has_pci();
    assert!(!has_pci(&[]));
    let image = tempfile::NamedTempFile::new().unwrap();
    let disk = format!("--disk=path={},format=raw", image.path().display());
    for flag in [
        "--entropy",
        "--virtio-console=null",
        "--vsock=path=/run/vm.vsock",
        "--balloon=size=0",
        "--memory-hotplug=size=1G",
        &disk,
        "--api-sock=/run/vm.sock",
    ] {
        assert!(has_pci(&[flag]), "{flag}");
        assert!(!has_pci(&[flag, "--pci=false"]), "{flag}");
    }
    assert!(has_pci(&["--pci"]));
}

#[test]
fn a_refused_text_names_place_and_remedy() {
    for (text, first_line) in [
        ("[memory]\nsise = 1", "2:1: unknown key `memory.sise`: did you mean `memory.size`?"),
        ("\n cpus = 2", "2:2: unknown key `cpus`: the key is `cpu.count`"),
        ("[memroy]", "1:2: unknown key `memroy`: did you mean `memory`?"),
        ("[cpu]\nz = 1\na = 1", "2:1: unknown key `cpu.z`: the keys of [cpu] are: count, kick, affinity"),
        ("cpu.b.c = 1", "1:5: unknown key `cpu.b`: the keys of [cpu] are: count, kick, affinity"),
        ("memory = '1G'", "1:1: `memory` is a section, not a string: the key is `memory.size`"),
        (
            "boot = ['k', 'i', '']",
            "1:1: `boot` is a section, not an array: the keys of [boot] are: kernel, initrd, cmdline",
        ),
        ("[[cpu]]", "1:3: `cpu` is a section, not an array: did you mean `cpu.count`?"),
        ("[memory]\nsize = '16777216M'", "2:8: memory.size = 16777216M is above the limit of 1 TiB (1024G)"),
        ("memory.size = 1", "1:15: memory.size = 1 is below the minimum of 1 MiB (1M)"),
        ("memory.size = -5", "1:15: memory.size = -5 is negative; expected a size from 1M to 1T"),
        (
            "memory.size = 9223372036854775808",
            "1:15: memory.size = 9223372036854775808 does not fit in 64 bits",
        ),
        ("cpu.count = '2'", "1:13: cpu.count = '2' is a string; expected a whole number from 1 to 1024"),
        ("cpu.affinity = '5-2'", "1:16: cpu.affinity = 5-2 runs backwards: write 2-5"),
        ("cpu.affinity = ['1', '2', '1-1024']", "1:16: cpu.affinity = 1024 is above the limit of CPU 1023"),
        ("cpu.affinity = []", "1:16: cpu.affinity = [] is not host CPUs"),
        (
            "cpu.affinity = ['1', 2]",
            "1:16: cpu.affinity = \"['1', 2]\" is an array of something else than strings",
        ),
        (
            "cpu.disable_exits = ['hlt', 'halt']",
            "1:21: cpu.disable_exits = halt is not one of hlt, pause, cstate, mwait",
        ),
        ("cpu.disable_exits = 'hlt'", "1:21: cpu.disable_exits = 'hlt' is a string; expected names of"),
        (
            "cpu.halt_poll_ns = 4294967296",
            "1:20: cpu.halt_poll_ns = 4294967296 is above the limit of 4294967295",
        ),
        ("cpu.scheduler = 'fifo'", "1:17: cpu.scheduler = fifo is not one of \"other\""),
        ("machine.grace_time = '5'", "1:22: machine.grace_time = 5 has no unit: write \"5s\" for seconds"),
        ("machine.on_reset = 'no'", "1:20: machine.on_reset = no is not one of exit, restart"),
        ("boot.kernel = ''", "1:15: boot.kernel = \"\" is empty; expected a path"),
        ("boot.cmdline = 'ö'", "1:16: boot.cmdline = ö has 'ö' at character 1; expected"),
        ("[cpu]\n[cpu]", "2:2: duplicate key"),
        ("a = ", "1:"),
    ] {
        let error = message(parse(text).unwrap_err());
        assert!(error.starts_with(&format!("dir/vm.toml:{first_line}")), "{error}");
    }
}

#[test]
fn a_refused_text_shows_its_line() {
    let error = message(parse("[memory]\n\tsize = \"1.5G\" # too little\n").unwrap_err());
    let excerpt = "\n  |\n2 |  size = \"1.5G\" # too little\n  |         ^^^^^^";
    assert!(error.ends_with(excerpt), "{error}");
}

#[test]
fn a_value_of_any_other_type_says_what_is_expected() {
    for section in keys::SECTIONS {
        for key in section.keys {
            for value in ["'word'", "7", "1.5", "true", "1979-05-27", "[1]", "{}"] {
                let parsed = toml::de::DeValue::parse(value).unwrap().into_inner();
                if !key.form.takes(&parsed) {
                    let error =
                        message(parse(&format!("{}.{} = {value}", section.name, key.name)).unwrap_err());
                    let start = format!("{}.{} = {value} is a", section.name, key.name);
                    assert!(error.contains(&start) && error.contains(key.expected), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let scratch = Scratch::new();
    let refused = |name: &str| {
        let error = message(load([scratch.path(name)]).unwrap_err());
        error.replace(&format!("{}/", scratch.path("").display()).replace("//", "/"), "")
    };
    assert_eq!(refused("absent"), "cannot read absent: No such file or directory (os error 2)");
    fs::create_dir(scratch.path("directory")).unwrap();
    assert_eq!(refused("directory"), "directory is a directory, not a regular file");
    scratch.file("long", " ".repeat(1 << 20));
    load([scratch.path("long")]).unwrap();
    scratch.file("long", " ".repeat((1 << 20) + 1));
    assert_eq!(refused("long"), "long is larger than 1048576 bytes");
    scratch.file("latin1", b"# gr\n# gr\xf6\xdfe\n");
    assert_eq!(refused("latin1"), "latin1:2:5: the file is not UTF-8");
}

#[test]
fn boot_images_must_be_regular_files_that_can_be_read() {
    for (flag, key) in [("--kernel", "boot.kernel"), ("--initrd", "boot.initrd")] {
        for (path, reason) in [
            ("/nowhere", "cannot read /nowhere: No such file or directory (os error 2)"),
            ("/", "/ is a directory, not a regular file"),
            ("/dev/null", "/dev/null is a character device, not a regular file"),
        ] {
            assert_eq!(message(load([flag, path]).unwrap_err()), format!("{key} ({flag}): {reason}"));
        }
    }
}

#[test]
fn a_path_that_toml_cannot_hold_is_refused() {
    let error = load([OsStr::new("--log-file"), OsStr::from_bytes(b"/tmp/\xff")]).unwrap_err();
    assert_eq!(message(error), r#"log.file (--log-file): the path "/tmp/\xFF" is not UTF-8"#);
}

#[test]
fn fault_c11_a_socket_path_longer_than_the_system_takes_is_refused() {
    let path = format!("/{}", "s".repeat(MAX_SOCKET_PATH - 1));
    for (flag, key) in
        [("--serial=unix=", "console.serial (--serial)"), ("--api-sock=", "control.socket (--api-sock)")]
    {
        assert!(load([format!("{flag}{path}")]).is_ok());
        let error = message(load([format!("{flag}{path}s")]).unwrap_err());
        assert!(error.starts_with(key), "{error}");
        assert!(error.ends_with("s is 108 bytes long, above the limit of 107"), "{error}");
    }
    assert!(load([format!("--serial=file={path}s")]).is_ok());
    // Of one that is connected to the directory may be as deep as it likes.
    let deep = format!("--net=passt=/{}{path}", "d/".repeat(100));
    assert!(load([&deep]).is_ok());
    let error = message(load([format!("{deep}ss")]).unwrap_err());
    assert!(error.starts_with("net.passt (--net): in its directory the name of the socket /d/d"), "{error}");
    assert!(error.ends_with("s is 108 bytes long, above the limit of 107"), "{error}");
}

#[test]
fn processors_that_do_not_go_together_are_refused_by_file_and_flags_alike() {
    let error = message(load(["--dedicated", "--cpus=2"]).unwrap_err());
    assert!(error.starts_with("cpu.dedicated (--dedicated) needs cpu.affinity (--affinity)"), "{error}");
    let scratch = Scratch::new();
    let file = scratch.file("vm.toml", "cpu.affinity = ['1', '2']");
    let error = message(load([&file]).unwrap_err());
    assert!(error.starts_with("cpu.affinity (--affinity): there are 2 lists for 1 vCPUs"), "{error}");
    load([&*file, Path::new("--cpus=2")]).unwrap();
}

#[test]
fn a_control_socket_shares_its_path_with_nothing() {
    let control = "control.socket (--api-sock)";
    for (other, first, second) in [
        ("--serial=unix=s", control, "console.serial (--serial)"),
        ("--serial=file=s", control, "console.serial (--serial)"),
        ("--vsock=path=s", control, "vsock.path (--vsock)"),
        ("--log-file=s", "log.file (--log-file)", control),
        ("--stats=s", "stats.output (--stats)", control),
    ] {
        let error = message(load(["--api-sock=s", other]).unwrap_err());
        assert!(error.starts_with(&format!("{first}: ")), "{error}");
        assert!(error.ends_with(&format!("s is also {second}; choose a path for each")), "{error}");
    }
}

#[test]
fn an_output_that_is_an_image_is_refused_by_whatever_name() {
    let scratch = Scratch::new();
    let kernel = scratch.file("kernel", "precious");
    std::os::unix::fs::symlink(&kernel, scratch.path("other-name")).unwrap();
    let kernel = kernel.display();
    for output in ["--serial=file=", "--log-file=", "--stats="] {
        let output = format!("{output}{}", scratch.path("other-name").display());
        let error = message(load([format!("--kernel={kernel}"), output]).unwrap_err());
        assert!(error.ends_with("is also boot.kernel (--kernel), and would be written over"), "{error}");
    }
}

#[test]
fn two_outputs_in_one_file_are_refused_and_two_to_one_device_are_not() {
    let scratch = Scratch::new();
    let path = scratch.file("out", "");
    std::os::unix::fs::symlink(&path, scratch.path("other-name")).unwrap();
    let (path, other) = (path.display(), scratch.path("other-name"));
    for second in [path.to_string(), other.display().to_string()] {
        let error = message(load([format!("--log-file={path}"), format!("--stats={second}")]).unwrap_err());
        assert_eq!(
            error,
            format!("stats.output (--stats): {second} is also log.file (--log-file); choose a path for each")
        );
    }
    let absent = scratch.path("absent");
    let absent = absent.display();
    assert!(load([format!("--serial=file={absent}"), format!("--stats={absent}")]).is_err());
    assert!(load([format!("--serial=file={absent}"), format!("--stats={path}")]).is_ok());
    assert!(load(["--serial=file=/dev/null", "--log-file=/dev/null", "--stats=/dev/null"]).is_ok());
}

#[test]
fn the_form_of_the_statistics_follows_their_place_until_it_is_set() {
    let format = |flags: &[&str]| load(flags).unwrap().stats.format();
    assert_eq!(format(&["--stats=-"]), StatsFormat::Table);
    assert_eq!(format(&["--stats=stats.txt"]), StatsFormat::Json);
    assert_eq!(format(&["--stats=-", "--stats-format=json"]), StatsFormat::Json);
    assert_eq!(format(&["--stats=stats.txt", "--stats-format=table"]), StatsFormat::Table);
}

#[test]
fn every_setting_has_its_flag_and_every_flag_its_setting() {
    let command = Args::command();
    // The commands that take a configuration.
    for command in ["run", "check"].map(|name| command.find_subcommand(name).unwrap()) {
        let mut flags: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long().map(|name| format!("--{name}")))
            .collect();
        let sections = keys::SECTIONS.iter().chain(keys::REPEATED);
        let mut known: Vec<&str> =
            sections.flat_map(|section| section.keys.iter().map(|key| key.flag)).collect();
        flags.sort_unstable();
        known.sort_unstable();
        // One flag is a whole table.
        known.dedup();
        assert_eq!(flags, known);
    }
}

#[test]
fn the_help_states_the_defaults() {
    let command = Args::command();
    let run = command.find_subcommand("run").unwrap();
    for section in keys::SECTIONS {
        for key in section.keys {
            let flag = run.get_arguments().find(|arg| arg.get_long() == Some(&key.flag[2..])).unwrap();
            let help = flag.get_help().unwrap().to_string();
            let is_table = section.keys.iter().filter(|other| other.flag == key.flag).count() > 2;
            let default = match default_of(section.name, key.name) {
                // Without the flag there is nothing of it, whatever the table has.
                _ if is_table => "none".to_owned(),
                Some(toml::Value::String(text)) if text.is_empty() => "empty".to_owned(),
                Some(toml::Value::String(text)) => text,
                Some(value) => value.to_string(),
                None => String::new(),
            };
            assert!(help.contains(&format!("[default: {default}")), "{help}");
        }
    }
}

#[test]
fn the_reference_page_has_every_key_with_flag_type_and_default() {
    let rows: Vec<Vec<&str>> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").collect())
        .filter(|row: &Vec<&str>| row.len() == 5 && row[0].starts_with('`'))
        .collect();
    let mut rows = rows.iter();
    let shown =
        |default: Option<toml::Value>| default.map_or("not set: ".to_owned(), |value| format!("`{value}`"));
    for section in keys::SECTIONS.iter().chain(keys::REPEATED) {
        for key in section.keys {
            let row = rows.next().unwrap();
            let form = match key.form {
                keys::Form::Text => "string",
                keys::Form::Integer => "integer",
                keys::Form::TextOrInteger => "string or integer",
                keys::Form::Words => "array of strings",
                keys::Form::TextOrWords => "string or array of strings",
                keys::Form::Switch => "boolean",
            };
            let is_required = |key: &str| least(section.name).contains(&format!("\n{key} ="));
            let of_repeated = |value| match value {
                Some(_) if is_required(key.name) => "required".to_owned(),
                value => shown(value),
            };
            let default = match keys::repeated(section.name) {
                Some(_) => of_repeated(default_of_repeated(section.name, key.name)),
                None => shown(default_of(section.name, key.name)),
            };
            assert_eq!(row[0], format!("`{}.{}`", section.name, key.name));
            assert_eq!(row[1], format!("`{}`", key.flag), "{}", row[0]);
            assert_eq!(row[2], form, "{}", row[0]);
            assert!(row[3].starts_with(&default), "{}: {}", row[0], row[3]);
        }
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn the_example_of_the_reference_page_is_accepted() {
    let blocks: Vec<&str> =
        PAGE.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parse(block).unwrap();
    }
}

#[test]
fn every_example_is_accepted() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("toml")) {
            parse_toml(&fs::read_to_string(&path).unwrap(), &path).unwrap();
            names.push(path.file_name().unwrap().to_owned());
        }
    }
    for name in ["dedicated.toml", "huge-pages.toml", "linux-elf.toml", "minimal.toml", "smp.toml"] {
        assert!(names.iter().any(|found| found == name), "{name} is missing");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,60}") {
        let _ = parse(&text);
    }

    /// Lines that are nearly right go deeper than random characters do.
    #[test]
    fn no_text_that_is_nearly_right_panics(
        lines in prop::collection::vec(
            r#"\[(boot|cpu|memory|log|stats)\]|(kernel|count|size|level|output|x) = ("|'|)[0-9a-zM\n.-]{0,4}("|'|)"#,
            0..6,
        ),
    ) {
        match parse(&lines.join("\n")) {
            Ok(config) => prop_assert!(config.cpu.count >= 1 && config.memory.size >= MemorySize::MIN),
            Err(error) => prop_assert!(message(error).starts_with("dir/vm.toml")),
        }
    }
}
