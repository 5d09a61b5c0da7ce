//! Answers as text for people.

use serde::Deserialize;
use serde_json::Value;

use super::balloon::{self, BalloonReport};
use super::devices::{self, Added};
use super::disks::{DiskChange, DiskLimits, DiskRequest, DiskSize};
use super::memory::MemoryStatus;
use super::nets::NetLimits;
use super::operations::{DirtyRate, Operation, State, Status};
use super::vsock::{self, VsockStatus};
use crate::memory::host::Bytes;

/// What `operation` has come to, as whole lines.
pub(super) fn text(operation: &Operation, value: &Value) -> String {
    match operation {
        Operation::Status => serde_json::from_value(value.clone())
            .map_or_else(|_| format!("{value}\n"), |status| self::status(&status)),
        Operation::Stats { .. } => {
            let table = value["table"].as_str().map(|table| table.lines().map(printable));
            table.map_or_else(|| format!("{value}\n"), |lines| lines.map(|line| line + "\n").collect())
        }
        Operation::DirtyRate { .. } => serde_json::from_value(value.clone())
            .map_or_else(|_| format!("{value}\n"), |rate| dirty_rate(&rate)),
        Operation::Disk(request) => disk(request, value),
        Operation::Net(_) => NetLimits::deserialize(value)
            .map_or_else(|_| format!("{value}\n"), |limits| table(18, limits.rows())),
        Operation::Vsock => VsockStatus::deserialize(value)
            .map_or_else(|_| format!("{value}\n"), |status| vsock::table(&status)),
        Operation::Memory { .. } => MemoryStatus::deserialize(value)
            .map_or_else(|_| format!("{value}\n"), |memory| self::memory(&memory)),
        Operation::Devices => Vec::deserialize(&value["devices"])
            .map_or_else(|_| format!("{value}\n"), |devices| devices::table(&devices)),
        Operation::DeviceAdd(_) => {
            Added::deserialize(value).map_or_else(|_| format!("{value}\n"), |added| self::added(&added))
        }
        Operation::Balloon(_) => BalloonReport::deserialize(value)
            .map_or_else(|_| format!("{value}\n"), |report| balloon::table(&report)),
        Operation::DeviceRemove(removal) => format!("{} is removed\n", removal.id),
        Operation::Pause { .. } => "paused\n".into(),
        Operation::Resume => "running\n".into(),
        Operation::PowerButton => "the power button is pressed\n".into(),
        Operation::Reset => "the machine is reset\n".into(),
        Operation::Quit => "the machine ends\n".into(),
    }
}

/// `text` with nothing in it that a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn disk(request: &DiskRequest, value: &Value) -> String {
    let text = match request.change {
        DiskChange::Resize(_) => DiskSize::deserialize(value).map(|size| self::size(&size)),
        DiskChange::Limits(_) => DiskLimits::deserialize(value).map(|limits| self::limits(&limits)),
    };
    text.unwrap_or_else(|_| format!("{value}\n"))
}

fn size(DiskSize { disk, bytes }: &DiskSize) -> String {
    format!("{disk} has {bytes} bytes\n")
}

fn limits(DiskLimits { bandwidth, operations, .. }: &DiskLimits) -> String {
    table(10, [("bandwidth", bandwidth), ("operations", operations)])
}

/// Limits with their names, which are at most so wide.
fn table<const ROWS: usize>(width: usize, rows: [(&str, &Option<String>); ROWS]) -> String {
    let text = |limit: &Option<String>| limit.as_deref().map_or("unlimited".to_owned(), printable);
    rows.iter().map(|(name, limit)| format!("{name:<width$} {}\n", text(limit))).collect()
}

fn memory(MemoryStatus { plugged, requested, size, block }: &MemoryStatus) -> String {
    let rows = [("plugged", plugged), ("requested", requested), ("size", size), ("block", block)];
    rows.iter().map(|(name, bytes)| format!("{name:<9} {}\n", Bytes(**bytes))).collect()
}

fn added(Added { device, notified }: &Added) -> String {
    let slot = device.slot.as_deref().unwrap_or("-");
    let silent =
        if *notified { "" } else { "; the guest does not listen, and finds it when it looks at the bus" };
    printable(&format!("{} is at {slot}{silent}", device.id)) + "\n"
}

/// Milliseconds as seconds.
pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

fn dirty_rate(DirtyRate { pages, ms }: &DirtyRate) -> String {
    let (kib, seconds) = (pages.saturating_mul(4), (*ms).max(1));
    let rate = kib.saturating_mul(1000) / seconds;
    format!("{pages} pages, {kib} KiB in {}.{:03} s: {rate} KiB/s\n", ms / 1000, ms % 1000)
}

fn status(status: &Status) -> String {
    let state = match status.state {
        State::Starting => "starting",
        State::Running => "running",
        State::Pausing => "pausing",
        State::Paused => "paused",
        State::Stopping => "stopping",
    };
    let uptime = match status.uptime_ms {
        Some(ms) => seconds(ms),
        None => "-".into(),
    };
    let rows = [
        ("state", state.to_owned()),
        ("vcpus", status.vcpus.to_string()),
        ("memory", status.memory.to_string()),
        ("uptime", uptime),
        ("pid", status.pid.to_string()),
        ("version", printable(&status.version)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<8} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::config::{DeviceId, StatsFormat};
    use crate::control::devices::{NewDevice, Removal};
    use crate::control::limits::NewLimits;
    use crate::control::nets::NetRequest;

    #[test]
    fn a_status_is_a_small_table() {
        let status = json!({
            "schema": 1, "state": "paused", "vcpus": 2, "memory": "128M", "uptime_ms": 12_034, "pid": 7,
            "version": "0.1.0", "later": true,
        });
        let expected =
            "state    paused\nvcpus    2\nmemory   128M\nuptime   12.034 s\npid      7\nversion  0.1.0\n";
        assert_eq!(text(&Operation::Status, &status), expected);
    }

    #[test]
    fn a_dirty_rate_says_how_much_in_what_time() {
        let operation = Operation::DirtyRate { time: Duration::from_secs(2) };
        let value = json!({ "pages": 3000, "ms": 2001 });
        assert_eq!(text(&operation, &value), "3000 pages, 12000 KiB in 2.001 s: 5997 KiB/s\n");
        assert_eq!(text(&operation, &json!({ "pages": 0, "ms": 0 })), "0 pages, 0 KiB in 0.000 s: 0 KiB/s\n");
    }

    #[test]
    fn statistics_are_the_table_that_was_answered() {
        let table = json!({ "table": "vCPUs\n  exits  1\u{1b}\n" });
        let operation = Operation::Stats { format: StatsFormat::Table };
        assert_eq!(text(&operation, &table), "vCPUs\n  exits  1\u{fffd}\n");
    }

    #[test]
    fn a_disk_says_its_size_and_its_limits() {
        let request = |change| Operation::Disk(DiskRequest { disk: DeviceId::of_disk(0), change });
        let resize = request(DiskChange::Resize(None));
        assert_eq!(text(&resize, &json!({ "disk": "disk0", "bytes": 512 })), "disk0 has 512 bytes\n");
        let limits = request(DiskChange::Limits(NewLimits::default()));
        let value = json!({ "disk": "disk0", "bandwidth": "1024/1s", "operations": null });
        assert_eq!(text(&limits, &value), "bandwidth  1024/1s\noperations unlimited\n");
    }

    #[test]
    fn a_network_device_says_its_limits() {
        let same = NewLimits::default();
        let request = Operation::Net(NetRequest { net: DeviceId::of_net(0), receive: same, transmit: same });
        let value = json!({
            "net": "net0", "receive_bandwidth": "1024/1s", "receive_frames": null, "transmit_bandwidth": null,
            "transmit_frames": "7/1s",
        });
        let expected = "receive_bandwidth  1024/1s\nreceive_frames     unlimited\n\
                        transmit_bandwidth unlimited\ntransmit_frames    7/1s\n";
        assert_eq!(text(&request, &value), expected);
    }

    #[test]
    fn memory_is_told_in_the_largest_units() {
        let value = json!({ "plugged": 0, "requested": 3_u64 << 29, "size": 4_u64 << 30, "block": 2 << 20 });
        let expected = "plugged   0 bytes\nrequested 1536 MiB\nsize      4 GiB\nblock     2 MiB\n";
        assert_eq!(text(&Operation::Memory { requested: None }, &value), expected);
    }

    #[test]
    fn an_answer_of_another_form_is_shown_as_it_came() {
        assert_eq!(text(&Operation::Status, &json!({ "state": "dreaming" })), "{\"state\":\"dreaming\"}\n");
    }

    #[test]
    fn devices_that_come_and_go_are_named() {
        let disk = Box::new("path=/x,format=raw".parse().unwrap());
        let operation = Operation::DeviceAdd(NewDevice::Disk(disk).into());
        let mut value = json!({
            "id": "disk1", "device": "virtio-blk", "slot": "00:02.0", "state": "plugged", "removable": true,
            "path": "/x", "notified": true,
        });
        assert_eq!(text(&operation, &value), "disk1 is at 00:02.0\n");
        value["notified"] = false.into();
        let expected =
            "disk1 is at 00:02.0; the guest does not listen, and finds it when it looks at the bus\n";
        assert_eq!(text(&operation, &value), expected);
        let removal = Removal { id: DeviceId::of_disk(1), limit: Duration::ZERO, force: false };
        assert_eq!(text(&Operation::DeviceRemove(removal), &json!({})), "disk1 is removed\n");
        assert_eq!(
            text(&Operation::Devices, &json!({ "devices": [] })),
            "id  device  slot  state  on the host\n"
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(printable("\u{1b}[31mred\u{9b}\n"), "\u{fffd}[31mred\u{fffd}\u{fffd}");
    }
}
