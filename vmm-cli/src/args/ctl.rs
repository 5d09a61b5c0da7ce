//! Arguments of `ctl`: whom to ask, and what.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::config::{DeviceId, DiskConfig, NetConfig, StatsFormat, balloon, duration, parse_bytes};
use crate::control::balloon::{Action, BalloonRequest, BalloonSetting};
use crate::control::devices::{NewDevice, Removal};
use crate::control::disks::{DiskChange, DiskRequest, NewSize};
use crate::control::limits::{NewLimit, NewLimits};
use crate::control::nets::NetRequest;
use crate::control::operations::Operation;
use crate::control::wire;

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
        disk: DeviceId,
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
        disk: DeviceId,
        /// Bytes that may pass, such as 100M/1s or 100M/1s+1G, or none
        #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_bytes)]
        bandwidth: Option<NewLimit>,
        /// Requests that may pass, such as 1000/1s, or none
        #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_operations)]
        operations: Option<NewLimit>,
    },
    /// Change the limits of a network device, also of frames that wait, and say what they are; what is left out stays
    NetLimits(Box<NetLimitsArgs>),
    /// Ask the guest to plug or unplug memory, if a size is given, and say how much is plugged
    Memory {
        /// Bytes that the guest is to have plugged, beside its RAM: whole blocks, such as 2G, or 0
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_bytes)]
        requested: Option<u64>,
    },
    /// List the devices
    Devices,
    /// Add a disk or a network device; the guest is told
    DeviceAdd(Box<DeviceAddArgs>),
    /// Remove a disk or a network device, when the guest gives it back
    DeviceRemove {
        /// What the device is called, as `devices` lists it
        #[arg(value_name = "DEVICE")]
        id: DeviceId,
        /// Do not ask the guest: it loses the disk or the network, and then is told
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
    /// Say how the socket device is, and what it has counted
    Vsock,
}

/// What becomes of the limits of a network device.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct NetLimitsArgs {
    /// What the device is called: `net.id` of the configuration, or net0, net1 and so on
    #[arg(value_name = "NET")]
    pub net: DeviceId,
    /// Bytes that may reach the guest, such as 100M/1s or 100M/1s+1G, or none
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_bytes)]
    pub receive_bandwidth: Option<NewLimit>,
    /// Frames that may reach the guest, such as 1000/1s, or none
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_operations)]
    pub receive_frames: Option<NewLimit>,
    /// Bytes that the guest may send, or none
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_bytes)]
    pub transmit_bandwidth: Option<NewLimit>,
    /// Frames that the guest may send, or none
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = NewLimit::of_operations)]
    pub transmit_frames: Option<NewLimit>,
}

/// A device that is to be added, one of them.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct DeviceAddArgs {
    /// Settings of a disk with commas between, as for `run`: path=PATH,format=raw and more
    #[arg(long, value_name = "SETTINGS", required_unless_present = "net", conflicts_with = "net")]
    pub disk: Option<DiskConfig>,
    /// Settings of a network device with commas between, as for `run`: tap=NAME and more
    #[arg(long, value_name = "SETTINGS")]
    pub net: Option<NetConfig>,
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
            Self::NetLimits(args) => Operation::Net((*args).into()),
            Self::Vsock => Operation::Vsock,
            Self::DeviceAdd(args) => Operation::DeviceAdd(NewDevice::from(*args).into()),
            Self::Balloon => Operation::Balloon(BalloonRequest::Show),
            Self::BalloonSet { size, statistics_interval } => {
                Operation::Balloon(BalloonRequest::Set(BalloonSetting { size, statistics_interval }))
            }
            Self::BalloonHinting { action } => Operation::Balloon(action.into()),
            Self::DeviceRemove { id, force, limit } => Operation::DeviceRemove(Removal { id, limit, force }),
        }
    }
}

impl From<NetLimitsArgs> for NetRequest {
    fn from(args: NetLimitsArgs) -> Self {
        let limits = |bandwidth: Option<NewLimit>, frames: Option<NewLimit>| NewLimits {
            bandwidth: bandwidth.unwrap_or_default(),
            operations: frames.unwrap_or_default(),
        };
        let receive = limits(args.receive_bandwidth, args.receive_frames);
        let transmit = limits(args.transmit_bandwidth, args.transmit_frames);
        Self { net: args.net, receive, transmit }
    }
}

/// A path starts from the current directory.
impl From<DeviceAddArgs> for NewDevice {
    fn from(DeviceAddArgs { disk, net }: DeviceAddArgs) -> Self {
        let Some(mut disk) = disk else { return Self::Net(Box::new(net.unwrap_or_default())) };
        for (_, path) in disk.paths_mut() {
            // Where there is no current directory, the monitor refuses it.
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        Self::Disk(Box::new(disk))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Args, Command};
    use super::*;
    use crate::control::devices::Addition;

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
        let Operation::DeviceAdd(Addition { device: NewDevice::Disk(disk), .. }) =
            parse(&["s", "device-add", settings]).unwrap().verb.operation(false)
        else {
            panic!()
        };
        assert_eq!((disk.path, disk.backing), (Some(here.join("x")), Some(here.join("y"))));
        let net = parse(&["s", "device-add", "--net=tap=a,create"]).unwrap().verb.operation(false);
        assert_eq!(
            net,
            Operation::DeviceAdd(NewDevice::Net(Box::new("tap=a,create".parse().unwrap())).into())
        );
        let limits = parse(&["s", "net-limits", "net1", "--transmit-frames=none"]).unwrap();
        let lifted = NewLimits { bandwidth: NewLimit::Same, operations: NewLimit::Lifted };
        let request =
            NetRequest { net: DeviceId::of_net(1), receive: NewLimits::default(), transmit: lifted };
        assert_eq!(limits.verb.operation(false), Operation::Net(request));
        let removal = Removal { id: DeviceId::of_disk(3), limit: wire::DEFAULT_LIMIT, force: true };
        assert_eq!(
            parse(&["s", "device-remove", "disk3", "--force"]).unwrap().verb.operation(false),
            Operation::DeviceRemove(removal)
        );
        for wrong in [
            &["s", "device-add"][..],
            &["s", "device-add", "--disk=x"],
            &["s", "device-add", "--net=x"],
            &["s", "device-add", "--net=tap=a", settings],
            &["s", "device-remove"],
            &["s", "net-limits"],
            &["s", "net-limits", "net0", "--receive-frames=1"],
        ] {
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
}
