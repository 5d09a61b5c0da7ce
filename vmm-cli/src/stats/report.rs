//! `Report`: everything a machine has counted, as one structure. Its JSON is described in `docs/stats.md`.

use serde::{Serialize, Serializer};
use serde_json::Value;
use vmm_core::stats::{Base, Kind, Sample, Schema, Statistic, Unit};
use vmm_devices::virtio::balloon::BalloonCounts;
use vmm_devices::virtio::block::BlockCounts;
use vmm_devices::virtio::mem::MemCounts;
use vmm_devices::virtio::net::NetCounts;
use vmm_devices::virtio::vsock::VsockCounts;
use vmm_vcpu::Counters;

use super::kernel::{KernelStats, Samples};
use super::table;
use crate::config::DeviceId;
use crate::vhost_user::BackEndReport;

/// Rises when a field changes its meaning or goes, not when one is added.
const SCHEMA: u32 = 1;

/// What a machine has counted up to one moment.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// What belongs to no single vCPU.
    pub(super) machine: MachineCounts,
    /// By index.
    pub(super) vcpus: Vec<VcpuCounts>,
    /// In the order in which the guest has them.
    pub(super) disks: Vec<DiskCounts>,
    /// In the order in which the guest has them.
    pub(super) nets: Vec<NetReport>,
    /// Of those that serve devices in the place of this program.
    pub(super) vhost_user: Vec<BackEndReport>,
    /// Of the socket device; `None`: there is none.
    pub(super) vsock: Option<DeviceCounts<VsockCounts>>,
    /// Of the memory device; `None`: there is none.
    pub(super) memory: Option<DeviceCounts<MemCounts>>,
    /// Of the balloon; `None`: there is none.
    pub(super) balloon: Option<DeviceCounts<BalloonCounts>>,
    /// What the kernel's statistics are; `None` if this host's kernel has none.
    kernel: Option<Definitions>,
}

/// The counts of the machine as a whole.
#[derive(Debug, Serialize)]
pub(super) struct MachineCounts {
    pub(super) monitor: MachineCounters,
    pub(super) kernel: Option<Values>,
}

/// What this program counts of a machine as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MachineCounters {
    /// Accesses to ports where no device is.
    pub unclaimed_ports: u64,
    /// Accesses to memory addresses where neither RAM nor a device is.
    pub unclaimed_mmio: u64,
}

/// The counts of one vCPU.
#[derive(Debug, Serialize)]
pub(super) struct VcpuCounts {
    index: usize,
    pub(super) monitor: VcpuCounters,
    pub(super) kernel: Option<Values>,
}

/// What this program counts of one vCPU.
#[derive(Debug, Serialize)]
pub(super) struct VcpuCounters {
    returns: u64,
    #[serde(flatten)]
    pub(super) counters: Counters,
}

/// The counts of one disk.
#[derive(Debug, Serialize)]
pub struct DiskCounts {
    /// What it is called.
    pub id: DeviceId,
    /// What this program has counted.
    pub monitor: BlockCounts,
}

/// The counts of one network device.
#[derive(Debug, Serialize)]
pub struct NetReport {
    /// What it is called.
    pub id: DeviceId,
    /// What this program has counted.
    pub monitor: NetCounts,
}

/// The counts of a device of which there is one.
#[derive(Debug, Serialize)]
pub(super) struct DeviceCounts<T> {
    /// What this program has counted.
    pub(super) monitor: T,
}

/// Values by name: a number, or the buckets of a histogram.
#[derive(Debug)]
pub(super) struct Values(pub(super) Sample);

/// What is known of each of the kernel's statistics, by name.
#[derive(Debug)]
struct Described(Schema);

/// What the kernel's statistics are.
#[derive(Debug, Serialize)]
struct Definitions {
    machine: Described,
    vcpu: Option<Described>,
}

/// One of the kernel's statistics: a value v stands for v × base^exponent units.
#[derive(Serialize)]
struct Definition {
    kind: String,
    unit: String,
    base: Option<u32>,
    exponent: i16,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket_size: Option<u32>,
}

impl Report {
    /// Puts a report together: `counters` by index of the vCPU, and what the kernel has counted, if it does.
    pub(crate) fn take(
        machine: MachineCounters,
        counters: Vec<Counters>,
        kernel: Option<&KernelStats>,
    ) -> Self {
        let samples = kernel.and_then(|stats| {
            stats
                .sample()
                .inspect_err(|error| tracing::warn!(%error, "the kernel's statistics cannot be read"))
                .ok()
        });
        Self::new(machine, counters, samples)
    }

    pub(super) fn new(machine: MachineCounters, counters: Vec<Counters>, kernel: Option<Samples>) -> Self {
        let definitions = kernel.as_ref().map(|samples| Definitions {
            machine: Described(samples.machine.schema().clone()),
            vcpu: samples.vcpus.first().map(|sample| Described(sample.schema().clone())),
        });
        let (of_machine, of_vcpus) = match kernel {
            Some(Samples { machine, vcpus }) => (Some(Values(machine)), vcpus),
            None => (None, Vec::new()),
        };
        let mut of_vcpus = of_vcpus.into_iter();
        let vcpus = counters.into_iter().enumerate().map(|(index, counters)| VcpuCounts {
            index,
            monitor: VcpuCounters { returns: counters.returns(), counters },
            kernel: of_vcpus.next().map(Values),
        });
        Self {
            schema: SCHEMA,
            vcpus: vcpus.collect(),
            machine: MachineCounts { monitor: machine, kernel: of_machine },
            disks: Vec::new(),
            nets: Vec::new(),
            vhost_user: Vec::new(),
            vsock: None,
            memory: None,
            balloon: None,
            kernel: definitions,
        }
    }

    /// The same report, with what was counted of disks.
    pub(crate) fn with_disks(mut self, disks: Vec<DiskCounts>) -> Self {
        self.disks = disks;
        self
    }

    /// The same report, with what was counted of network devices.
    pub(crate) fn with_nets(mut self, nets: Vec<NetReport>) -> Self {
        self.nets = nets;
        self
    }

    /// The same report, with what was counted of vhost-user back ends.
    pub(crate) fn with_back_ends(mut self, back_ends: Vec<BackEndReport>) -> Self {
        self.vhost_user = back_ends;
        self
    }

    /// The same report, with what was counted of the socket device.
    pub(crate) fn with_vsock(mut self, counts: Option<VsockCounts>) -> Self {
        self.vsock = counts.map(|monitor| DeviceCounts { monitor });
        self
    }

    /// The same report, with what was counted of the memory device.
    pub(crate) fn with_memory(mut self, counts: Option<MemCounts>) -> Self {
        self.memory = counts.map(|monitor| DeviceCounts { monitor });
        self
    }

    /// The same report, with what was counted of the balloon.
    pub(crate) fn with_balloon(mut self, counts: Option<BalloonCounts>) -> Self {
        self.balloon = counts.map(|monitor| DeviceCounts { monitor });
        self
    }

    /// The report as one JSON object on one line with a closing newline.
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }

    /// The same object as a value. Only a value that is no JSON cannot be put so, and there is none here.
    pub(crate) fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The report as text for people, with a closing newline.
    pub(crate) fn to_table(&self) -> String {
        table::text(self)
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// A lone value is a number, unless it is a bucket.
        #[derive(Serialize)]
        #[serde(untagged)]
        enum OneOrMore<'a> {
            One(u64),
            More(&'a [u64]),
        }
        serializer.collect_map(self.0.iter().map(|(statistic, values)| {
            let value = match values {
                &[value] if !statistic.is_histogram() => OneOrMore::One(value),
                values => OneOrMore::More(values),
            };
            (&*statistic.name, value)
        }))
    }
}

impl Serialize for Described {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let definitions = self.0.statistics().iter();
        serializer.collect_map(definitions.map(|statistic| (&*statistic.name, Definition::of(statistic))))
    }
}

impl Definition {
    fn of(statistic: &Statistic) -> Self {
        let (kind, bucket_size) = match statistic.kind {
            Kind::Cumulative => ("cumulative".into(), None),
            Kind::Instant => ("instant".into(), None),
            Kind::Peak => ("peak".into(), None),
            Kind::LinearHistogram { bucket_size } => ("linear_histogram".into(), Some(bucket_size)),
            Kind::LogHistogram => ("log_histogram".into(), None),
            Kind::Unknown(number) => (format!("kind_{number}"), None),
        };
        let unit = match statistic.unit {
            Unit::Count => "count".into(),
            Unit::Bytes => "bytes".into(),
            Unit::Seconds => "seconds".into(),
            Unit::Cycles => "cycles".into(),
            Unit::Boolean => "boolean".into(),
            Unit::Unknown(number) => format!("unit_{number}"),
        };
        let base = match statistic.base {
            Base::Ten => Some(10),
            Base::Two => Some(2),
            Base::Unknown(_) => None,
        };
        Self { kind, unit, base, exponent: statistic.exponent, bucket_size }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmm_core::stats::{Blob, Described};
    use vmm_devices::virtio::vhost_user::VhostUserCounts;

    use super::*;

    /// A linear histogram of two buckets, 10 KiB wide.
    fn histogram() -> Described {
        Described { name: "sizes", flags: 0x113, exponent: 10, values: vec![3, 4], bucket: 10 }
    }

    fn json(report: &Report) -> Value {
        serde_json::from_str(&report.to_json().unwrap()).unwrap()
    }

    #[test]
    fn each_number_has_its_place_and_each_statistic_is_defined_once() {
        let mut counters = [Counters::default(); 2];
        (counters[0].port_writes, counters[0].kicked, counters[1].mmio_reads) = (5, 2, 9);
        let vcpu = |exits| Blob::default().count("exits", exits).with(histogram()).sample().unwrap();
        let samples = Samples {
            machine: Blob::default().count("pages_4k", 40).sample().unwrap(),
            vcpus: vec![vcpu(100), vcpu(200)],
        };
        let machine = MachineCounters { unclaimed_ports: 1, unclaimed_mmio: 2 };
        let json = json(&Report::new(machine, counters.to_vec(), Some(samples)));
        assert_eq!(json["schema"], 1);
        assert_eq!(json["machine"]["monitor"], json!({"unclaimed_ports": 1, "unclaimed_mmio": 2}));
        assert_eq!(json["machine"]["kernel"], json!({"pages_4k": 40}));
        let first = &json["vcpus"][0];
        assert_eq!((&first["index"], &first["monitor"]["returns"]), (&json!(0), &json!(7)));
        assert_eq!(first["monitor"]["port_writes"], 5);
        assert_eq!(json["vcpus"][1]["monitor"]["mmio_reads"], 9);
        assert_eq!(json["vcpus"][1]["kernel"], json!({"exits": 200, "sizes": [3, 4]}));
        assert_eq!(
            json["kernel"]["machine"]["pages_4k"],
            json!({"kind": "cumulative", "unit": "count", "base": 10, "exponent": 0})
        );
        assert_eq!(
            json["kernel"]["vcpu"]["sizes"],
            json!({"kind": "linear_histogram", "unit": "bytes", "base": 2, "exponent": 10, "bucket_size": 10})
        );
    }

    #[test]
    fn a_kernel_without_statistics_leaves_nulls() {
        let json = json(&Report::new(MachineCounters::default(), vec![Counters::default()], None));
        assert!(json["kernel"].is_null() && json["machine"]["kernel"].is_null());
        assert!(json["vcpus"][0]["kernel"].is_null());
        assert_eq!(json["vcpus"][0]["monitor"]["returns"], 0);
    }

    #[test]
    fn each_disk_has_its_name_and_its_counts() {
        let mut monitor = BlockCounts::default();
        (monitor.reads, monitor.read_latency_hist[3]) = (2, 2);
        let disk = DiskCounts { id: "root".parse().unwrap(), monitor };
        let report = Report::new(MachineCounters::default(), Vec::new(), None).with_disks(vec![disk]);
        let json = json(&report);
        let disk = &json["disks"][0];
        assert_eq!((&disk["id"], &disk["monitor"]["reads"]), (&json!("root"), &json!(2)));
        assert_eq!(disk["monitor"]["read_latency_hist"][3], 2);
        assert_eq!(disk["monitor"]["write_latency_hist"], json!(vec![0; 32]));
    }

    #[test]
    fn the_page_describes_every_count_of_this_program() {
        let disk = DiskCounts { id: DeviceId::of_disk(0), monitor: BlockCounts::default() };
        let report = Report::new(MachineCounters::default(), vec![Counters::default()], None);
        let net = NetReport { id: DeviceId::of_net(0), monitor: NetCounts::default() };
        let back_end = BackEndReport { id: DeviceId::of_fs(0), monitor: VhostUserCounts::default() };
        let report = report.with_disks(vec![disk]).with_nets(vec![net]).with_back_ends(vec![back_end]);
        let report =
            report.with_memory(Some(MemCounts::default())).with_balloon(Some(BalloonCounts::default()));
        let json = json(&report.with_vsock(Some(VsockCounts::default())));
        let page = include_str!("../../../docs/stats.md");
        let of = |list: &str| &json[list][0]["monitor"];
        let one = |device: &str| &json[device]["monitor"];
        let ones = ["machine", "vsock", "memory", "balloon"].map(one);
        for counts in ["vcpus", "disks", "nets", "vhost_user"].map(of).into_iter().chain(ones) {
            for name in counts.as_object().unwrap().keys() {
                assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/stats.md");
            }
        }
    }
}
