//! Arguments: the command line of `vmm-cli` and its help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use vmm_core::DisabledExits;
use vmm_vcpu::Scheduler;

use crate::config::{
    Affinity, BalloonConfig, DirtyLogKind, DiskConfig, DiskId, FsConfig, HugePages, Irqchip, Kick, LogFormat,
    LogLevel, MemoryBacking, MemoryHotplugConfig, MemorySize, NetConfig, OnReset, OnTripleFault, SerialMode,
    StatsFormat, StatsOutput, VsockConfig, balloon, cpu, duration, parse_bytes, scheduler, value,
};
use crate::control::balloon::{Action, BalloonRequest, BalloonSetting};
use crate::control::devices::Removal;
use crate::control::disks::{DiskChange, DiskRequest, NewLimit, NewLimits, NewSize};
use crate::control::operations::Operation;
use crate::control::wire;

const RUN_HELP: &str = "\
Exit codes:
  0         the guest shut down or reset, or the user stopped it
  1         internal failure
  2         bad arguments, configuration or image
  3         the host cannot: no KVM, missing capability, permission, memory, descriptors
  4         the guest crashed
  130, 143  stop forced by a second SIGINT or SIGTERM, or by the end of the grace time
  64..127   the guest wrote v to the debug exit port: 64 + (v & 63), but 0 for v = 0";

const CHECK_HELP: &str = "\
The printed configuration has absolute paths and shows every default; `run` accepts it.

Exit codes:
  0  the configuration is valid
  2  it is not; the message says what, where and how to mend it";

const DOCTOR_HELP: &str = "\
Problems come first, each with what mends it. Nothing on the host is changed. The JSON form is described in
docs/doctor.md.

Exit codes:
  0  `vmm-cli run` works here
  3  it cannot work here";

pub(crate) const CTL_HELP: &str = "\
Requests, answers and error codes are described in docs/control.md.

Exit codes:
  0  done
  1  the machine has refused; the message says why
  2  bad arguments
  3  no answer: no such socket, nobody listens, no permission, or not in time";

/// A virtual machine monitor for KVM.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmm-cli", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run a virtual machine until it ends; without configuration and flags, the embedded guest
    #[command(after_help = RUN_HELP)]
    Run(VmArgs),
    /// Check a configuration and print it with every default, as TOML
    #[command(after_help = CHECK_HELP)]
    Check(VmArgs),
    /// Look whether this host can run machines, and how well
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Ask a machine that runs, by its control socket (`run --api-sock PATH`)
    #[command(after_help = CTL_HELP)]
    Ctl(CtlArgs),
}

/// Whom to ask, and what.
#[derive(Debug, Clone, clap::Args)]
pub struct CtlArgs {
    /// The control socket
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// What to ask for.
    #[command(subcommand)]
    pub verb: CtlVerb,

    /// Print the answer as it came, one line of JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// How long to wait for the answer: 0s to 60m [default: 10s, and for what waits its time in addition]
    #[arg(long, global = true, value_name = "DURATION", allow_hyphen_values = true)]
    #[arg(value_parser = duration::parse)]
    pub timeout: Option<Duration>,
}

/// The verbs of `vmm-cli ctl`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum CtlVerb {
    /// Say how the machine is
    Status,
    /// Stop every vCPU where it is; a machine that is paused stays so
    Pause {
        /// How long the slowest vCPU may take: 0s to 1m
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
        #[arg(default_value = "5s", value_parser = wire::parse_limit)]
        limit: Duration,
    },
    /// Let every vCPU go on; a machine that runs does so
    Resume,
    /// Press the guest's power button; a guest that listens shuts down
    PowerButton,
    /// Reset the machine; `machine.on_reset` decides what follows
    Reset,
    /// End the machine and its monitor, with exit code 0
    Quit,
    /// Say what has been counted
    Stats,
    /// Count the pages of RAM that the guest and its devices write to, while they go on
    DirtyRate {
        /// For how long: 0s to 1m
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
        #[arg(default_value = "1s", value_parser = wire::parse_time)]
        time: Duration,
    },
    /// Give a disk the size that its file or device has now, or the file another one, and tell the guest
    DiskResize {
        /// What the disk is called: `disk.id` of the configuration, or disk0, disk1 and so on
        #[arg(value_name = "DISK")]
        disk: DiskId,
        /// The size that a raw file is to have, such as 20G
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_bytes)]
        size: Option<u64>,
        /// The size may be less than before; what is behind it is lost
        #[arg(long, requires = "size")]
        shrink: bool,
    },
    /// Change the limits of a disk, also of requests that wait, and say what they are; what is left out stays
    DiskLimits {
        /// What the disk is called: `disk.id` of the configuration, or disk0, disk1 and so on
        #[arg(value_name = "DISK")]
        disk: DiskId,
        /// Bytes that may pass, such as 100M/1s or 100M/1s+1G, or none
        #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_bytes)]
        bandwidth: Option<NewLimit>,
        /// Requests that may pass, such as 1000/1s, or none
        #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_operations)]
        operations: Option<NewLimit>,
    },
    /// Ask the guest to plug or unplug memory, if a size is given, and say how much is plugged
    Memory {
        /// Bytes that the guest is to have plugged, beside its RAM: whole blocks, such as 2G, or 0
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_bytes)]
        requested: Option<u64>,
    },
    /// List the devices
    Devices,
    /// Add a disk; its guest is told
    DeviceAdd {
        /// Settings with commas between, as for `run`: path=PATH,format=raw and more
        #[arg(long, value_name = "SETTINGS")]
        disk: DiskConfig,
    },
    /// Remove a disk, when its guest gives it back
    DeviceRemove {
        /// What the disk is called: `disk.id` of the configuration, or disk0, disk1 and so on
        #[arg(value_name = "DISK")]
        id: DiskId,
        /// Do not ask the guest: it loses the disk, and then is told
        #[arg(long)]
        force: bool,
        /// How long the guest may take: 0s to 1m
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
        #[arg(default_value = "5s", value_parser = wire::parse_limit)]
        limit: Duration,
    },
    /// Say how the balloon is, and what the guest says of its memory
    Balloon,
    /// Change the balloon, in the guest's own time, and say how it is; what is left out stays
    BalloonSet {
        /// How much of its memory the guest is to give, such as 512M
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = balloon::parse_size)]
        size: Option<u64>,
        /// How often the guest is asked for statistics: 0s (never) to 60m
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration::parse)]
        statistics_interval: Option<Duration>,
    },
    /// Have the guest say which of its pages are free, and hold them; or let it have them again
    BalloonHinting {
        /// start or stop
        #[arg(value_name = "ACTION", hide_possible_values = true)]
        action: Action,
    },
}

impl CtlVerb {
    /// What it asks for; statistics `for_programs` or for people.
    #[must_use]
    pub fn operation(self, for_programs: bool) -> Operation {
        match self {
            Self::Status => Operation::Status,
            Self::Pause { limit } => Operation::Pause { limit },
            Self::Resume => Operation::Resume,
            Self::PowerButton => Operation::PowerButton,
            Self::Reset => Operation::Reset,
            Self::Quit => Operation::Quit,
            Self::Stats if for_programs => Operation::Stats { format: StatsFormat::Json },
            Self::Stats => Operation::Stats { format: StatsFormat::Table },
            Self::DirtyRate { time } => Operation::DirtyRate { time },
            Self::DiskResize { disk, size, shrink } => {
                let size = size.map(|bytes| NewSize { bytes, may_shrink: shrink });
                Operation::Disk(DiskRequest { disk, change: DiskChange::Resize(size) })
            }
            Self::DiskLimits { disk, bandwidth, operations } => {
                let (bandwidth, operations) = (bandwidth.unwrap_or_default(), operations.unwrap_or_default());
                let limits = NewLimits { bandwidth, operations };
                Operation::Disk(DiskRequest { disk, change: DiskChange::Limits(limits) })
            }
            Self::Memory { requested } => Operation::Memory { requested },
            Self::Devices => Operation::Devices,
            Self::DeviceAdd { mut disk } => {
                for (_, path) in disk.paths_mut() {
                    // Where there is no current directory, the monitor refuses it.
                    if let Ok(absolute) = std::path::absolute(&*path) {
                        *path = absolute;
                    }
                }
                Operation::DeviceAdd { disk: Box::new(disk) }
            }
            Self::Balloon => Operation::Balloon(BalloonRequest::Show),
            Self::BalloonSet { size, statistics_interval } => {
                Operation::Balloon(BalloonRequest::Set(BalloonSetting { size, statistics_interval }))
            }
            Self::BalloonHinting { action } => Operation::Balloon(action.into()),
            Self::DeviceRemove { id, force, limit } => Operation::DeviceRemove(Removal { id, limit, force }),
        }
    }
}

/// How the command `doctor` reports.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// The configuration file and the flags that go over it. A flag's path is relative to the current directory.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VmArgs {
    /// Configuration file (TOML); a flag goes over the same setting in it
    #[arg(value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,

    /// Guest image [default: the embedded guest]
    #[arg(long, value_name = "PATH", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk [default: none]
    #[arg(long, value_name = "PATH", help_heading = "Boot")]
    pub initrd: Option<PathBuf>,

    /// Guest command line: printable ASCII, at most 2047 bytes [default: empty]
    #[arg(long, value_name = "TEXT", help_heading = "Boot")]
    #[arg(allow_hyphen_values = true, value_parser = value::parse_cmdline)]
    pub cmdline: Option<String>,

    /// Number of vCPUs: 1 to 254, with the split irqchip to 1024 [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, value_parser = value::parse_cpus)]
    pub cpus: Option<u16>,

    /// How a vCPU in the guest is interrupted: immediate-exit or signal-mask [default: immediate-exit]
    #[arg(long, value_name = "MECHANISM", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub kick: Option<Kick>,

    /// Host CPUs of the vCPUs: one list such as 2-5,8, or one for each vCPU, 2:3 [default: the monitor's]
    #[arg(long, value_name = "LIST", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true)]
    pub affinity: Option<Affinity>,

    /// Host CPUs of --affinity for the vCPUs alone: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dedicated: Option<bool>,

    /// What does not leave the guest: hlt, pause, cstate, mwait or none [default: hlt,pause if dedicated]
    #[arg(long, value_name = "NAMES", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, value_parser = cpu::parse_exits)]
    pub disable_exits: Option<DisabledExits>,

    /// Nanoseconds that KVM polls when a vCPU halts [default: 0 if dedicated, else the host's limit]
    #[arg(long, value_name = "COUNT", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, value_parser = cpu::parse_halt_poll)]
    pub halt_poll_ns: Option<u32>,

    /// Tell the guest that its vCPUs are never preempted: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub realtime_hint: Option<bool>,

    /// Scheduling of the vCPUs: other, batch, idle, fifo:1 to fifo:99, rr:1 to rr:99 [default: the monitor's]
    #[arg(long, value_name = "POLICY", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, value_parser = scheduler::parse)]
    pub scheduler: Option<Scheduler>,

    /// Allow fifo and rr although halts do not leave the guest: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub monopolize_cpus: Option<bool>,

    /// Guest RAM: 1M to 1T in steps of 4K, such as 512M or 4GiB [default: 128M]
    ///
    /// K, M, G and T are powers of 1024, also written KB or KiB; without a unit the number counts bytes.
    #[arg(long, value_name = "SIZE", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true)]
    pub memory: Option<MemorySize>,

    /// Guest RAM on the host: anonymous, memfd, shared-file=PATH or private-file=PATH [default: anonymous]
    ///
    /// The guest writes to a shared file; of a private one the monitor keeps copies of what the guest writes.
    #[arg(long, value_name = "BACKING", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true)]
    pub memory_backing: Option<MemoryBacking>,

    /// Pages of guest RAM: none (what the host makes of it), transparent, 2M or 1G [default: none]
    #[arg(long, value_name = "SIZE", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub huge_pages: Option<HugePages>,

    /// Make all pages of guest RAM before it starts: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub prefault: Option<bool>,

    /// Keep guest RAM from being swapped out: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub lock_memory: Option<bool>,

    /// Guest RAM in core dumps: true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Processors and memory", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dump_memory: Option<bool>,

    /// How KVM logs the pages that the guest writes to, when that is asked for: auto, bitmap or ring [default: auto]
    #[arg(long, value_name = "KIND", help_heading = "Processors and memory")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub dirty_log: Option<DirtyLogKind>,

    /// RAM to plug while the guest runs, as size=SIZE and more settings: block=SIZE, requested=SIZE [default: none]
    ///
    /// `vmm-cli ctl PATH memory --requested SIZE` asks for another size.
    #[arg(long, value_name = "SETTINGS", help_heading = "Processors and memory")]
    pub memory_hotplug: Option<MemoryHotplugConfig>,

    /// When the guest resets: exit (end with 0) or restart (in this process) [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "Machine")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub on_reset: Option<OnReset>,

    /// When the guest triple-faults: crash (end with 4) or reset [default: crash]
    #[arg(long, value_name = "ACTION", help_heading = "Machine")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub on_triple_fault: Option<OnTripleFault>,

    /// Time an orderly stop may take before it is forced: 0s to 60m [default: 5s]
    ///
    /// A whole number with the unit ms, s or m (minutes).
    #[arg(long, value_name = "DURATION", help_heading = "Machine")]
    #[arg(allow_hyphen_values = true, value_parser = duration::parse)]
    pub grace_time: Option<Duration>,

    /// Who emulates the interrupt controllers: kernel, or split (the monitor the I/O APIC) [default: kernel]
    #[arg(long, value_name = "WHO", help_heading = "Machine")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub irqchip: Option<Irqchip>,

    /// Interval timer (i8254): true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Machine", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pit: Option<bool>,

    /// PCI bus: true or false; alone it means true [default: with a virtio device or a control socket]
    #[arg(long, value_name = "BOOL", help_heading = "Machine", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub pci: Option<bool>,

    /// Devices of the self-test: true or false; alone it means true [default: with the embedded guest]
    #[arg(long, value_name = "BOOL", help_heading = "Machine", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub selftest: Option<bool>,

    /// Disk, as path=PATH,format=raw (or qcow2), or vhost_user=SOCKET, and more settings; may be repeated, and goes over those of the file [default: none]
    #[arg(long, value_name = "SETTINGS", help_heading = "Devices")]
    pub disk: Vec<DiskConfig>,

    /// Network device, as tap=NAME or vhost_user=SOCKET and more settings; may be repeated, and goes over those of the file [default: none]
    #[arg(long, value_name = "SETTINGS", help_heading = "Devices")]
    pub net: Vec<NetConfig>,

    /// File system of a vhost-user back end, as tag=NAME,socket=SOCKET; may be repeated, and goes over those of the file [default: none]
    #[arg(long, value_name = "SETTINGS", help_heading = "Devices")]
    pub fs: Vec<FsConfig>,

    /// Entropy device (virtio-rng): true or false; alone it means true [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Devices", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub entropy: Option<bool>,

    /// Socket device, as cid=CID,path=PATH, or with vhost for the path; without cid it has 3 [default: none]
    #[arg(long, value_name = "SETTINGS", help_heading = "Devices")]
    pub vsock: Option<VsockConfig>,

    /// Balloon, as size=SIZE and more settings: deflate_on_oom, free_page_reporting, statistics_interval [default: none]
    #[arg(long, value_name = "SETTINGS", help_heading = "Devices")]
    pub balloon: Option<BalloonConfig>,

    /// Serial port: stdio, null, pty, file=PATH or unix=PATH [default: stdio]
    #[arg(long, value_name = "MODE", help_heading = "Console", allow_hyphen_values = true)]
    pub serial: Option<SerialMode>,

    /// Virtio console, hvc0 in Linux, as --serial [default: none]
    #[arg(long, value_name = "MODE", help_heading = "Console", allow_hyphen_values = true)]
    pub virtio_console: Option<SerialMode>,

    /// Control socket, for `vmm-cli ctl PATH` [default: none]
    #[arg(long, value_name = "PATH", help_heading = "Control")]
    pub api_sock: Option<PathBuf>,

    /// Least important messages to log: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", help_heading = "Log")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub log_level: Option<LogLevel>,

    /// Form of the log: text or json (one object a line) [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub log_format: Option<LogFormat>,

    /// File to append the log to [default: standard error]
    #[arg(long, value_name = "PATH", help_heading = "Log")]
    pub log_file: Option<PathBuf>,

    /// File for what the machine has counted, written at its end; - is standard output [default: none]
    #[arg(long, value_name = "PATH", help_heading = "Statistics")]
    pub stats: Option<StatsOutput>,

    /// Form of the statistics: table or json [default: table on standard output, json in a file]
    #[arg(long, value_name = "FORMAT", help_heading = "Statistics")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub stats_format: Option<StatsFormat>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(args: &[&str]) -> Result<VmArgs, clap::Error> {
        let args = ["vmm-cli", "run"].iter().chain(args);
        Args::try_parse_from(args).map(|args| match args.command {
            Command::Run(args) | Command::Check(args) => args,
            Command::Doctor(_) | Command::Ctl(_) => panic!("not run"),
        })
    }

    fn refusal(args: &[&str]) -> String {
        let error = parse(args).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{error}");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn fault_c2_memory_outside_the_range_names_flag_value_and_limit() {
        for (value, reason) in [
            ("0", "below the minimum of 1 MiB (1M)"),
            ("1", "below the minimum of 1 MiB (1M)"),
            ("16777216M", "above the limit of 1 TiB (1024G)"),
            ("17592186044416M", "above the limit of 1 TiB (1024G)"),
            ("9223372036854775808", "above the limit of 1 TiB (1024G)"),
            ("-5", "negative; expected a size from 1M to 1T"),
        ] {
            let error = refusal(&["--memory", value]);
            assert!(error.contains("--memory") && error.contains(&format!("{value} is {reason}")), "{error}");
        }
    }

    #[test]
    fn fault_c2_cpus_outside_the_range_name_the_limit() {
        assert!(refusal(&["--cpus", "0"]).contains("0 is below the minimum of 1"));
        assert!(refusal(&["--cpus", "1025"]).contains("1025 is above the limit of 1024"));
        assert!(
            refusal(&["--cpus", "-1"]).contains("-1 is negative; expected a whole number from 1 to 1024")
        );
    }

    #[test]
    fn a_value_with_a_hyphen_is_not_taken_for_a_flag() {
        for flag in ["--grace-time", "--serial", "--memory-backing"] {
            assert!(refusal(&[flag, "-5"]).contains(&format!("invalid value '-5' for '{flag}")));
        }
        let words = ["--on-triple-fault", "--log-level", "--log-format", "--stats-format"];
        for flag in ["--kick", "--irqchip", "--on-reset", "--huge-pages"].into_iter().chain(words) {
            let error = parse(&[flag, "-5"]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
            assert!(error.to_string().contains("possible values: "), "{error}");
        }
        assert_eq!(parse(&["--cmdline", "-- single"]).unwrap().cmdline.as_deref(), Some("-- single"));
    }

    #[test]
    fn a_switch_takes_no_word_that_is_not_joined_to_it() {
        let args = parse(&["--pit", "vm.toml"]).unwrap();
        assert_eq!((args.pit, args.config), (Some(true), Some("vm.toml".into())));
        assert_eq!(parse(&["--selftest=false"]).unwrap().selftest, Some(false));
        assert_eq!(parse(&["--pit=yes"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn an_empty_path_is_refused() {
        for flag in ["--kernel=", "--initrd=", "--api-sock=", "--log-file=", "--stats=", ""] {
            assert_eq!(parse(&[flag]).unwrap_err().exit_code(), 2, "{flag}");
        }
    }

    #[test]
    fn doctor_takes_no_configuration() {
        let parse = |args: &[&str]| Args::try_parse_from(["vmm-cli", "doctor"].iter().chain(args));
        assert!(matches!(parse(&[]).unwrap().command, Command::Doctor(DoctorArgs { json: false })));
        assert!(matches!(parse(&["--json"]).unwrap().command, Command::Doctor(DoctorArgs { json: true })));
        assert_eq!(parse(&["vm.toml"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn ctl_takes_a_path_and_a_verb_and_its_flags_anywhere() {
        let parse = |args: &[&str]| {
            Args::try_parse_from(["vmm-cli", "ctl"].iter().chain(args)).map(|args| match args.command {
                Command::Ctl(args) => args,
                _ => panic!("not ctl"),
            })
        };
        let args = parse(&["s", "--json", "pause", "--limit=250ms", "--timeout=2s"]).unwrap();
        assert_eq!((args.path, args.json), ("s".into(), true));
        assert_eq!(args.verb, CtlVerb::Pause { limit: Duration::from_millis(250) });
        assert_eq!(args.timeout, Some(Duration::from_secs(2)));
        assert_eq!(
            parse(&["s", "pause"]).unwrap().verb.operation(false),
            Operation::Pause { limit: wire::DEFAULT_LIMIT }
        );
        for wrong in [
            &["s"][..],
            &["s", "disk-resize"],
            &["s", "disk-resize", "a", "--shrink"],
            &["status"],
            &["s", "reboot"],
            &["s", "status", "--limit=1s"],
            &["", "status"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        let limits = parse(&["s", "disk-limits", "root", "--bandwidth=none"]).unwrap();
        let request = DiskRequest {
            disk: "root".parse().unwrap(),
            change: DiskChange::Limits(NewLimits { bandwidth: NewLimit::Lifted, operations: NewLimit::Same }),
        };
        assert_eq!(limits.verb.operation(false), Operation::Disk(request));
        assert_eq!(
            parse(&["s", "memory", "--requested=1G"]).unwrap().verb.operation(false),
            Operation::Memory { requested: Some(1 << 30) }
        );
        let error = parse(&["s", "disk-limits", "a/b"]).unwrap_err().to_string();
        assert!(error.contains("a/b is not 1 to 20 of the characters"), "{error}");
        let here = std::env::current_dir().unwrap();
        let settings = "--disk=path=x,format=qcow2,backing=y,backing_format=raw";
        let Operation::DeviceAdd { disk } =
            parse(&["s", "device-add", settings]).unwrap().verb.operation(false)
        else {
            panic!()
        };
        assert_eq!((disk.path, disk.backing), (Some(here.join("x")), Some(here.join("y"))));
        let removal = Removal { id: DiskId::of_place(3), limit: wire::DEFAULT_LIMIT, force: true };
        assert_eq!(
            parse(&["s", "device-remove", "disk3", "--force"]).unwrap().verb.operation(false),
            Operation::DeviceRemove(removal)
        );
        for wrong in [&["s", "device-add"][..], &["s", "device-add", "--disk=x"], &["s", "device-remove"]] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        let verb = parse(&["s", "balloon-set", "--size=64M"]).unwrap().verb;
        let setting = BalloonSetting { size: Some(64 << 20), statistics_interval: None };
        assert_eq!(verb.operation(false), Operation::Balloon(BalloonRequest::Set(setting)));
        let verb = parse(&["s", "balloon-hinting", "start"]).unwrap().verb;
        assert_eq!(verb.operation(false), Operation::Balloon(BalloonRequest::StartHinting));
        for wrong in
            [&["s", "balloon-set", "--size=1"][..], &["s", "balloon-hinting"], &["s", "balloon", "start"]]
        {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        let error = parse(&["s", "pause", "--limit=2m"]).unwrap_err().to_string();
        assert!(error.contains("the limit `2m` is no duration from 0s to 1m"), "{error}");
    }

    #[test]
    fn the_help_of_run_lists_every_exit_code() {
        for code in ["  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  130, 143 ", "64 + (v & 63)"] {
            assert!(RUN_HELP.contains(code), "{code}");
        }
    }
}
