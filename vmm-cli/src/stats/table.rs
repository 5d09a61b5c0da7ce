//! Table: a report as text for people. What is 0 everywhere is left out.

use std::fmt::Write;

use vmm_core::stats::{Base, Kind, Sample, Statistic, Unit};
use vmm_devices::virtio::balloon::BalloonCounts;
use vmm_devices::virtio::block::{BlockCounts, LATENCY_CLASSES, Latency};
use vmm_devices::virtio::mem::MemCounts;
use vmm_devices::virtio::net::NetCounts;
use vmm_devices::virtio::vhost_user::VhostUserCounts;
use vmm_devices::virtio::vsock::VsockCounts;
use vmm_vcpu::Counters;

use super::report::{DiskCounts, MachineCounters, NetReport, Report, Values, VcpuCounts};
use crate::vhost_user::BackEndReport;

/// Most vCPUs, disks or network devices that have a column each; of more there are the least and the greatest value.
const MOST_COLUMNS: usize = 4;

/// A value of this program's counters, by its name.
type Counter<T> = (&'static str, fn(&T) -> u64);

const VCPU_COUNTERS: [Counter<Counters>; 15] = [
    ("returns", Counters::returns),
    ("port_reads", |counters| counters.port_reads),
    ("port_writes", |counters| counters.port_writes),
    ("mmio_reads", |counters| counters.mmio_reads),
    ("mmio_writes", |counters| counters.mmio_writes),
    ("other_exits", |counters| counters.other_exits),
    ("kicked", |counters| counters.kicked),
    ("spurious", |counters| counters.spurious),
    ("woken_for_startup", |counters| counters.woken_for_startup),
    ("kicks_signalled", |counters| counters.kicks_signalled),
    ("kicks_elided", |counters| counters.kicks_elided),
    ("kicks_woken", |counters| counters.kicks_woken),
    ("pauses", |counters| counters.pauses),
    ("paused_ns", |counters| counters.paused_ns),
    ("deferred", |counters| counters.deferred),
];

const BACK_END_COUNTERS: [Counter<VhostUserCounts>; 4] = [
    ("connected", |counts| counts.connected),
    ("connections", |counts| counts.connections),
    ("losses", |counts| counts.losses),
    ("failed_requests", |counts| counts.failed_requests),
];

const VSOCK_COUNTERS: [Counter<VsockCounts>; 12] = [
    ("connections", |counts| counts.connections),
    ("opened_by_guest", |counts| counts.opened_by_guest),
    ("opened_by_host", |counts| counts.opened_by_host),
    ("refused_by_guest", |counts| counts.refused_by_guest),
    ("refused_by_host", |counts| counts.refused_by_host),
    ("dismissed", |counts| counts.dismissed),
    ("broken", |counts| counts.broken),
    ("resets", |counts| counts.resets),
    ("packets_to_guest", |counts| counts.packets_to_guest),
    ("packets_to_host", |counts| counts.packets_to_host),
    ("bytes_to_guest", |counts| counts.bytes_to_guest),
    ("bytes_to_host", |counts| counts.bytes_to_host),
];

const MEMORY_COUNTERS: [Counter<MemCounts>; 10] = [
    ("block_bytes", |counts| counts.block_bytes),
    ("region_bytes", |counts| counts.region_bytes),
    ("requested_bytes", |counts| counts.requested_bytes),
    ("plugged_bytes", |counts| counts.plugged_bytes),
    ("plugs", |counts| counts.plugs),
    ("unplugs", |counts| counts.unplugs),
    ("states", |counts| counts.states),
    ("beyond_requested", |counts| counts.beyond_requested),
    ("busy", |counts| counts.busy),
    ("broken", |counts| counts.broken),
];

const BALLOON_COUNTERS: [Counter<BalloonCounts>; 11] = [
    ("inflated_pages", |counts| counts.inflated_pages),
    ("deflated_pages", |counts| counts.deflated_pages),
    ("refused_pages", |counts| counts.refused_pages),
    ("reported_bytes", |counts| counts.reported_bytes),
    ("hinted_bytes", |counts| counts.hinted_bytes),
    ("returned_bytes", |counts| counts.returned_bytes),
    ("kept_bytes", |counts| counts.kept_bytes),
    ("partial_bytes", |counts| counts.partial_bytes),
    ("failed_bytes", |counts| counts.failed_bytes),
    ("statistics", |counts| counts.statistics),
    ("broken", |counts| counts.broken),
];

const MACHINE_COUNTERS: [Counter<MachineCounters>; 2] = [
    ("unclaimed_ports", |counters| counters.unclaimed_ports),
    ("unclaimed_mmio", |counters| counters.unclaimed_mmio),
];

const DISK_COUNTERS: [Counter<BlockCounts>; 15] = [
    ("reads", |counts| counts.reads),
    ("writes", |counts| counts.writes),
    ("flushes", |counts| counts.flushes),
    ("discards", |counts| counts.discards),
    ("write_zeroes", |counts| counts.write_zeroes),
    ("bytes_read", |counts| counts.bytes_read),
    ("bytes_written", |counts| counts.bytes_written),
    ("bytes_discarded", |counts| counts.bytes_discarded),
    ("bytes_zeroed", |counts| counts.bytes_zeroed),
    ("failed", |counts| counts.failed),
    ("refused", |counts| counts.refused),
    ("throttled", |counts| counts.throttled),
    ("notifications", |counts| counts.notifications),
    ("interrupts", |counts| counts.interrupts),
    ("host_calls", |counts| counts.host_calls),
];

const NET_COUNTERS: [Counter<NetCounts>; 18] = [
    ("received_frames", |counts| counts.received_frames),
    ("received_bytes", |counts| counts.received_bytes),
    ("received_too_long", |counts| counts.received_too_long),
    ("received_malformed", |counts| counts.received_malformed),
    ("received_no_buffers", |counts| counts.received_no_buffers),
    ("received_throttled", |counts| counts.received_throttled),
    ("refused_buffers", |counts| counts.refused_buffers),
    ("transmitted_frames", |counts| counts.transmitted_frames),
    ("transmitted_bytes", |counts| counts.transmitted_bytes),
    ("transmitted_failed", |counts| counts.transmitted_failed),
    ("transmitted_throttled", |counts| counts.transmitted_throttled),
    ("refused_frames", |counts| counts.refused_frames),
    ("refused_commands", |counts| counts.refused_commands),
    ("notifications", |counts| counts.notifications),
    ("interrupts", |counts| counts.interrupts),
    ("host_errors", |counts| counts.host_errors),
    ("link_losses", |counts| counts.link_losses),
    ("link_returns", |counts| counts.link_returns),
];

/// A histogram of durations, by its name.
type LatencyOf = (&'static str, fn(&BlockCounts) -> &Latency);

const DISK_LATENCIES: [LatencyOf; 5] = [
    ("read_latency_hist", |counts| &counts.read_latency_hist),
    ("write_latency_hist", |counts| &counts.write_latency_hist),
    ("flush_latency_hist", |counts| &counts.flush_latency_hist),
    ("discard_latency_hist", |counts| &counts.discard_latency_hist),
    ("write_zeroes_latency_hist", |counts| &counts.write_zeroes_latency_hist),
];

/// Rows under a title.
struct Section {
    title: &'static str,
    /// Names of the columns of numbers.
    columns: Vec<String>,
    rows: Vec<Row>,
    /// Statistics that are 0 and have no row.
    zeros: usize,
}

struct Row {
    name: String,
    unit: String,
    numbers: Vec<u64>,
}

/// The report as text with a closing newline.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut append = |section: &Section| {
        if !text.is_empty() {
            text.push('\n');
        }
        section.render(&mut text);
    };
    append(&vcpus_by_monitor(&report.vcpus));
    let samples: Option<Vec<&Sample>> =
        report.vcpus.iter().map(|vcpu| vcpu.kernel.as_ref().map(|Values(sample)| sample)).collect();
    if let Some(samples) = samples {
        append(&by_kernel("vCPUs, counted by KVM", columns(samples.len()), &samples));
    }
    if !report.disks.is_empty() {
        append(&disks_by_monitor(&report.disks));
    }
    if !report.nets.is_empty() {
        append(&nets_by_monitor(&report.nets));
    }
    if !report.vhost_user.is_empty() {
        append(&back_ends_by_monitor(&report.vhost_user));
    }
    if let Some(vsock) = &report.vsock {
        append(&vsock_by_monitor(&vsock.monitor));
    }
    if let Some(memory) = &report.memory {
        append(&memory_by_monitor(&memory.monitor));
    }
    if let Some(balloon) = &report.balloon {
        append(&balloon_by_monitor(&balloon.monitor));
    }
    append(&machine_by_monitor(&report.machine.monitor));
    match &report.machine.kernel {
        Some(Values(sample)) => append(&by_kernel("machine, counted by KVM", vec![String::new()], &[sample])),
        None => text.push_str("\nThis host's KVM has no statistics (KVM_CAP_BINARY_STATS_FD, Linux 5.14).\n"),
    }
    text
}

fn vcpus_by_monitor(vcpus: &[VcpuCounts]) -> Section {
    let mut section = Section::new("vCPUs, counted by vmm-cli", columns(vcpus.len()));
    for (name, value) in VCPU_COUNTERS {
        let values: Vec<u64> = vcpus.iter().map(|vcpu| value(&vcpu.monitor.counters)).collect();
        section.add(name.into(), String::new(), spread(&values, total));
    }
    section
}

fn disks_by_monitor(disks: &[DiskCounts]) -> Section {
    let names = disks.iter().map(|disk| disk.id.to_string()).collect();
    let mut section = Section::new("disks, counted by vmm-cli", columns_of(names));
    let counts: Vec<&BlockCounts> = disks.iter().map(|disk| &disk.monitor).collect();
    let row = |value: &dyn Fn(&BlockCounts) -> u64| {
        let values: Vec<u64> = counts.iter().map(|counts| value(counts)).collect();
        spread(&values, total)
    };
    for (name, value) in DISK_COUNTERS {
        section.add(name.into(), String::new(), row(&value));
    }
    for (name, latency) in DISK_LATENCIES {
        if !section.add(name.into(), "us".into(), row(&|counts| total(latency(counts)))) {
            continue;
        }
        for class in 0..LATENCY_CLASSES {
            let end = 1_u64 << class;
            let name = if class + 1 < LATENCY_CLASSES {
                format!("  under {end}")
            } else {
                format!("  {} or more", end / 2)
            };
            section.add_bucket(name, row(&|counts| latency(counts).get(class).copied().unwrap_or_default()));
        }
    }
    section
}

fn nets_by_monitor(nets: &[NetReport]) -> Section {
    let names = nets.iter().map(|net| net.id.to_string()).collect();
    let mut section = Section::new("network devices, counted by vmm-cli", columns_of(names));
    for (name, value) in NET_COUNTERS {
        let values: Vec<u64> = nets.iter().map(|net| value(&net.monitor)).collect();
        section.add(name.into(), String::new(), spread(&values, total));
    }
    section
}

fn back_ends_by_monitor(back_ends: &[BackEndReport]) -> Section {
    let names = back_ends.iter().map(|back_end| back_end.id.to_string()).collect();
    let mut section = Section::new("vhost-user back ends, counted by vmm-cli", columns_of(names));
    for (name, value) in BACK_END_COUNTERS {
        let values: Vec<u64> = back_ends.iter().map(|back_end| value(&back_end.monitor)).collect();
        section.add(name.into(), String::new(), spread(&values, total));
    }
    section
}

fn vsock_by_monitor(counts: &VsockCounts) -> Section {
    let mut section = Section::new("sockets, counted by vmm-cli", vec![String::new()]);
    for (name, value) in VSOCK_COUNTERS {
        section.add(name.into(), String::new(), vec![value(counts)]);
    }
    section
}

fn memory_by_monitor(counts: &MemCounts) -> Section {
    let mut section = Section::new("plugged memory, counted by vmm-cli", vec![String::new()]);
    for (name, value) in MEMORY_COUNTERS {
        section.add(name.into(), String::new(), vec![value(counts)]);
    }
    section
}

fn balloon_by_monitor(counts: &BalloonCounts) -> Section {
    let mut section = Section::new("balloon, counted by vmm-cli", vec![String::new()]);
    for (name, value) in BALLOON_COUNTERS {
        section.add(name.into(), String::new(), vec![value(counts)]);
    }
    section
}

fn machine_by_monitor(counters: &MachineCounters) -> Section {
    let mut section = Section::new("machine, counted by vmm-cli", vec![String::new()]);
    for (name, value) in MACHINE_COUNTERS {
        section.add(name.into(), String::new(), vec![value(counters)]);
    }
    section
}

/// The statistics of `samples`, which are alike: the VM's, or one for each vCPU.
fn by_kernel(title: &'static str, columns: Vec<String>, samples: &[&Sample]) -> Section {
    let mut section = Section::new(title, columns);
    for (statistic, first) in samples.first().into_iter().flat_map(|sample| sample.iter()) {
        let values: Vec<&[u64]> =
            samples.iter().map(|sample| sample.values(&statistic.name).unwrap_or_default()).collect();
        let whole = if statistic.kind == Kind::Peak { greatest } else { total };
        let sums: Vec<u64> = values.iter().map(|values| total(values)).collect();
        if !section.add(statistic.name.to_string(), unit(statistic), spread(&sums, whole))
            || !statistic.is_histogram()
        {
            continue;
        }
        for bucket in 0..first.len() {
            let counts: Vec<u64> =
                values.iter().map(|values| values.get(bucket).copied().unwrap_or_default()).collect();
            section.add_bucket(bucket_name(statistic, bucket), spread(&counts, total));
        }
    }
    section
}

/// The columns for `vcpus` vCPUs, as [`spread`] fills them.
fn columns(vcpus: usize) -> Vec<String> {
    columns_of((0..vcpus).map(|index| format!("vcpu{index}")).collect())
}

/// The columns for what is called `names`.
fn columns_of(names: Vec<String>) -> Vec<String> {
    match names.len() {
        ..=1 => names,
        2..=MOST_COLUMNS => std::iter::once("total".to_owned()).chain(names).collect(),
        _ => ["total", "least", "greatest"].map(str::to_owned).into(),
    }
}

/// The numbers of a row for the `values` of the vCPUs, disks or network devices; `whole` makes one of all.
fn spread(values: &[u64], whole: fn(&[u64]) -> u64) -> Vec<u64> {
    match values.len() {
        ..=1 => values.to_vec(),
        2..=MOST_COLUMNS => std::iter::once(whole(values)).chain(values.iter().copied()).collect(),
        _ => vec![whole(values), values.iter().copied().min().unwrap_or_default(), greatest(values)],
    }
}

fn total(values: &[u64]) -> u64 {
    values.iter().fold(0, |sum, value| sum.saturating_add(*value))
}

fn greatest(values: &[u64]) -> u64 {
    values.iter().copied().max().unwrap_or_default()
}

/// What one step of a statistic's values stands for; empty for plain counts.
fn unit(statistic: &Statistic) -> String {
    let name = match statistic.unit {
        Unit::Count => "",
        Unit::Bytes => "bytes",
        Unit::Seconds => "s",
        Unit::Cycles => "cycles",
        Unit::Boolean => "0 or 1",
        Unit::Unknown(_) => "?",
    };
    match (statistic.unit, statistic.base, statistic.exponent) {
        (_, _, 0) => name.into(),
        (Unit::Seconds, Base::Ten, -3) => "ms".into(),
        (Unit::Seconds, Base::Ten, -6) => "us".into(),
        (Unit::Seconds, Base::Ten, -9) => "ns".into(),
        (Unit::Bytes, Base::Two, 10) => "KiB".into(),
        (Unit::Bytes, Base::Two, 20) => "MiB".into(),
        (_, Base::Ten, exponent) => format!("10^{exponent} {name}").trim_end().into(),
        (_, Base::Two, exponent) => format!("2^{exponent} {name}").trim_end().into(),
        (_, Base::Unknown(_), exponent) => format!("?^{exponent} {name}").trim_end().into(),
    }
}

/// Which values fall into bucket `index`.
fn bucket_name(statistic: &Statistic, index: usize) -> String {
    let start = index.checked_sub(1).and_then(|before| statistic.bucket_end(before));
    match (statistic.bucket_end(index), start) {
        (Some(end), _) => format!("  under {end}"),
        (None, Some(start)) => format!("  {start} or more"),
        (None, None) => format!("  bucket {index}"),
    }
}

impl Section {
    fn new(title: &'static str, columns: Vec<String>) -> Self {
        Self { title, columns, rows: Vec::new(), zeros: 0 }
    }

    /// Adds a statistic, unless it is 0 everywhere; returns whether it did.
    fn add(&mut self, name: String, unit: String, numbers: Vec<u64>) -> bool {
        let has_value = numbers.iter().any(|number| *number != 0);
        if has_value {
            self.rows.push(Row { name, unit, numbers });
        } else {
            self.zeros += 1;
        }
        has_value
    }

    /// Adds a bucket of the statistic above, unless it is empty everywhere.
    fn add_bucket(&mut self, name: String, numbers: Vec<u64>) {
        if numbers.iter().any(|number| *number != 0) {
            self.rows.push(Row { name, unit: String::new(), numbers });
        }
    }

    fn render(&self, text: &mut String) {
        let names = self.rows.iter().map(|row| row.name.len() + 2);
        let first = names.chain([self.title.len()]).max().unwrap_or_default();
        let unit = self.rows.iter().map(|row| row.unit.len()).max().unwrap_or_default();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let numbers = self.rows.iter().filter_map(|row| row.numbers.get(index));
                numbers.map(|number| number.to_string().len()).chain([column.len()]).max().unwrap_or_default()
            })
            .collect();
        let mut line = |name: &str, of: &str, cells: &mut dyn Iterator<Item = String>| {
            let mut line = format!("{name:first$}  {of:unit$}");
            for (cell, width) in cells.zip(&widths) {
                // Writing to a text cannot fail.
                let _ = write!(line, "  {cell:>width$}");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(self.title, "", &mut self.columns.iter().cloned());
        for row in &self.rows {
            line(&format!("  {}", row.name), &row.unit, &mut row.numbers.iter().map(u64::to_string));
        }
        match (self.zeros, self.rows.len()) {
            (0, _) => {}
            (_, 0) => line("  all are 0", "", &mut std::iter::empty()),
            (1, _) => line("  1 more is 0", "", &mut std::iter::empty()),
            (zeros, _) => line(&format!("  {zeros} more are 0"), "", &mut std::iter::empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vmm_core::stats::{Blob, Described};

    use super::super::kernel::Samples;
    use super::*;
    use crate::config::DeviceId;

    /// A histogram of nanoseconds.
    fn waits(values: &[u64]) -> Described {
        Described { name: "halt_wait_hist", flags: 0x24, exponent: -9, values: values.to_vec(), bucket: 0 }
    }

    fn peak(value: u64) -> Described {
        Described { name: "peak", flags: 2, values: vec![value], ..Described::default() }
    }

    fn report(vcpus: &[u64]) -> Report {
        let counters = vcpus.iter().map(|exits| {
            let mut counters = Counters::default();
            counters.port_writes = *exits;
            counters
        });
        let sample = |exits: &u64| {
            let blob = Blob::default().count("exits", *exits).count("nothing", 0);
            blob.with(waits(&[0, 0, *exits, 1])).with(peak(*exits)).sample().unwrap()
        };
        let samples = Samples {
            machine: Blob::default().count("pages_4k", 40).sample().unwrap(),
            vcpus: vcpus.iter().map(sample).collect(),
        };
        Report::new(MachineCounters::default(), counters.collect(), Some(samples))
    }

    #[test]
    fn few_vcpus_have_a_column_each_beside_the_total() {
        let expected = "\
vCPUs, counted by vmm-cli    total  vcpu0  vcpu1
  returns                       30     10     20
  port_writes                   30     10     20
  13 more are 0

vCPUs, counted by KVM      total  vcpu0  vcpu1
  exits                       30     10     20
  halt_wait_hist       ns     32     11     21
    under 4                   30     10     20
    4 or more                  2      1      1
  peak                        20     10     20
  1 more is 0

machine, counted by vmm-cli
  all are 0

machine, counted by KVM
  pages_4k                 40
";
        let text = text(&report(&[10, 20]));
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&text), squeezed(expected), "{text}");
        let ends = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().len();
        assert_eq!(ends("vCPUs, counted by KVM"), ends("    under 4"));
        assert_eq!(ends("vCPUs, counted by KVM"), ends("  exits"));
    }

    #[test]
    fn disks_have_a_column_each_and_their_latencies_are_in_microseconds() {
        let disk = |id: &str, reads: u64| {
            let mut monitor = BlockCounts::default();
            (monitor.reads, monitor.read_latency_hist[7], monitor.read_latency_hist[31]) = (reads, reads, 1);
            DiskCounts { id: id.parse().unwrap(), monitor }
        };
        let report = Report::new(MachineCounters::default(), vec![Counters::default()], None);
        let text = text(&report.with_disks(vec![disk("root", 4), disk("data", 0)]));
        let section = text.split("\n\n").find(|section| section.starts_with("disks")).unwrap();
        let rows: Vec<_> =
            section.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "disks, counted by vmm-cli total root data",
            "reads 4 4 0",
            "read_latency_hist us 6 5 1",
            "under 128 4 4 0",
            "1073741824 or more 2 1 1",
            "18 more are 0",
        ];
        assert_eq!(rows, expected, "{text}");
    }

    #[test]
    fn one_vcpu_has_one_column_and_many_have_their_extremes() {
        let one = text(&report(&[7]));
        assert!(one.lines().next().unwrap().ends_with("vcpu0") && !one.contains("total"), "{one}");
        let many = text(&report(&[3, 1, 4, 1, 5]));
        let exits = many.lines().find(|line| line.starts_with("  exits")).unwrap();
        let cells: Vec<&str> = exits.split_whitespace().collect();
        assert_eq!(cells, ["exits", "14", "1", "5"], "{many}");
        let peak = many.lines().find(|line| line.starts_with("  peak")).unwrap();
        assert_eq!(peak.split_whitespace().collect::<Vec<_>>(), ["peak", "5", "1", "5"], "{many}");
    }

    #[test]
    fn a_kernel_without_statistics_is_said_to_have_none() {
        let report = Report::new(MachineCounters::default(), vec![Counters::default()], None);
        assert!(text(&report).contains("KVM_CAP_BINARY_STATS_FD"));
    }

    #[test]
    fn units_are_those_that_people_use() {
        for (flags, exponent, expected) in [
            (0x0, 0, ""),
            (0x20, -9, "ns"),
            (0x20, -6, "us"),
            (0x20, 0, "s"),
            (0x110, 10, "KiB"),
            (0x30, 0, "cycles"),
            (0x0, 3, "10^3"),
            (0x20, -7, "10^-7 s"),
            (0xff0, 1, "?^1 ?"),
        ] {
            let described = Described { name: "a", flags, exponent, ..Described::default() };
            let sample = Blob::default().with(described).sample().unwrap();
            assert_eq!(unit(sample.iter().next().unwrap().0), expected, "{flags:#x} {exponent}");
        }
    }

    #[test]
    fn every_count_of_this_program_has_a_row() {
        let report = Report::new(MachineCounters::default(), vec![Counters::default()], None);
        let disk = DiskCounts { id: DeviceId::of_disk(0), monitor: BlockCounts::default() };
        let net = NetReport { id: DeviceId::of_net(0), monitor: NetCounts::default() };
        let back_end = BackEndReport { id: DeviceId::of_fs(0), monitor: VhostUserCounts::default() };
        let report = report.with_disks(vec![disk]).with_nets(vec![net]).with_back_ends(vec![back_end]);
        let report = report.with_vsock(Some(VsockCounts::default())).with_memory(Some(MemCounts::default()));
        let report = report.with_balloon(Some(BalloonCounts::default()));
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let names = VCPU_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["vcpus"][0]["monitor"]), names.into());
        let names = MACHINE_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["machine"]["monitor"]), names.into());
        let names = VSOCK_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["vsock"]["monitor"]), names.into());
        let names = MEMORY_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["memory"]["monitor"]), names.into());
        let names = BALLOON_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["balloon"]["monitor"]), names.into());
        let latencies = DISK_LATENCIES.map(|(name, _)| name.to_owned());
        let names = DISK_COUNTERS.map(|(name, _)| name.to_owned()).into_iter().chain(latencies);
        assert_eq!(keys(&json["disks"][0]["monitor"]), names.collect());
        let names = NET_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["nets"][0]["monitor"]), names.into());
        let names = BACK_END_COUNTERS.map(|(name, _)| name.to_owned());
        assert_eq!(keys(&json["vhost_user"][0]["monitor"]), names.into());
    }
}
