//! Arguments: the command line of `vmm-cli` and its help.

mod ctl;
mod jail;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vmm_core::DisabledExits;
use vmm_vcpu::Scheduler;

use crate::config::Seccomp;
use crate::config::{
    Affinity, BalloonConfig, DirtyLogKind, DiskConfig, FsConfig, HugePages, Irqchip, Kick, LogFormat,
    LogLevel, MemoryBacking, MemoryHotplugConfig, MemorySize, NetConfig, OnReset, OnTripleFault, SerialMode,
    StatsFormat, StatsOutput, VsockConfig, cpu, duration, scheduler, value,
};
pub use ctl::{CtlArgs, CtlVerb};
pub use jail::JailArgs;

const RUN_HELP: &str = "\
Exit codes:
  0         the guest shut down or reset, or the user stopped it
  1         internal failure
  2         bad arguments, configuration or image
  3         the host cannot: no KVM, missing capability, permission, memory, descriptors
  4         the guest crashed
  5         a thread of the monitor asked the host's kernel for what it never does (docs/confinement.md)
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

const FILTERS_HELP: &str = "\
A line for each rule: kind of thread, system call, conditions. What is in no table of its kind ends the machine; see
docs/confinement.md.

Exit codes:
  0  always";

const JAIL_HELP: &str = "\
What is in the jail, and what it does not do, is described in docs/jail.md.

Exit codes: those of `run`; 128 and the number of the signal, if one has ended the machine; and
  2  a file is missing, a symbolic link, or has another hard link
  3  the host does not allow it: namespaces, /dev/kvm, control groups";

pub(crate) const CTL_HELP: &str = "\
Requests, answers and error codes are described in docs/control.md.

Exit codes:
  0  done
  1  the machine has refused, or a device cannot be opened; the message says why
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
    /// Print which system calls each kind of thread of a machine may make
    #[command(after_help = FILTERS_HELP)]
    Filters(FiltersArgs),
    /// Ask a machine that runs, by its control socket (`run --api-sock PATH`)
    #[command(after_help = CTL_HELP)]
    Ctl(CtlArgs),
    /// Run a virtual machine where only what its configuration names can be seen: `jail -- run CONFIG.toml`
    #[command(after_help = JAIL_HELP)]
    Jail(JailArgs),
}

/// How the command `doctor` reports.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// How the command `filters` prints.
#[derive(Debug, Clone, clap::Args)]
pub struct FiltersArgs {
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

    /// Network device, as tap=NAME, passt=SOCKET or vhost_user=SOCKET and more settings; may be repeated, and goes over those of the file [default: none]
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

    /// What becomes of a thread that asks the kernel for what is not in its table: on (the process ends with 5), log or off [default: on]
    #[arg(long, value_name = "MODE", help_heading = "Confinement")]
    #[arg(allow_hyphen_values = true, hide_possible_values = true)]
    pub seccomp: Option<Seccomp>,

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
            Command::Doctor(_) | Command::Filters(_) | Command::Ctl(_) | Command::Jail(_) => {
                panic!("not run")
            }
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
    fn the_help_of_run_lists_every_exit_code() {
        for code in ["  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  130, 143 ", "64 + (v & 63)"] {
            assert!(RUN_HELP.contains(code), "{code}");
        }
    }
}
