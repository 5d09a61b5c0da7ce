//! The socket device under control: what is told of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_devices::virtio::vsock::VsockCounts;

/// The socket device, as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStatus {
    /// The guest's address.
    pub cid: u32,
    /// Where programs of the host connect; nothing where the kernel carries the streams.
    pub path: Option<PathBuf>,
    /// Whether the kernel carries the streams.
    pub vhost: bool,
    /// Most connections at a time; nothing where the kernel has them.
    pub most_connections: Option<u64>,
    /// What was counted, the connections of the moment included; nothing where the kernel has them.
    pub counts: Option<VsockCounts>,
}

/// There is nothing to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has no socket device: it has one with vsock.path or vsock.vhost (--vsock)")]
pub struct NoVsock;

/// The device as text for people.
pub(super) fn table(status: &VsockStatus) -> String {
    let VsockStatus { cid, path, vhost, most_connections, counts } = status;
    let path = path.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
    let mut rows = vec![("cid", cid.to_string()), ("path", path), ("vhost", vhost.to_string())];
    if let Some(most) = most_connections {
        rows.push(("most connections", most.to_string()));
    }
    if let Some(counts) = counts {
        let counts = [
            ("connections", counts.connections),
            ("opened by guest", counts.opened_by_guest),
            ("opened by host", counts.opened_by_host),
            ("refused by guest", counts.refused_by_guest),
            ("refused by host", counts.refused_by_host),
            ("dismissed", counts.dismissed),
            ("broken", counts.broken),
            ("resets", counts.resets),
            ("packets to guest", counts.packets_to_guest),
            ("packets to host", counts.packets_to_host),
            ("bytes to guest", counts.bytes_to_guest),
            ("bytes to host", counts.bytes_to_host),
        ];
        rows.extend(counts.map(|(name, count)| (name, count.to_string())));
    }
    rows.iter().map(|(name, value)| super::render::printable(&format!("{name:<16} {value}")) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_device_is_a_small_table() {
        let status = VsockStatus {
            cid: 3,
            path: Some("/run/\u{1b}vm.vsock".into()),
            vhost: false,
            most_connections: Some(4096),
            counts: Some(VsockCounts::default()),
        };
        let text = table(&status);
        assert!(text.starts_with("cid              3\npath             /run/\u{fffd}vm.vsock\n"), "{text}");
        assert!(text.contains("most connections 4096\nconnections      0\n"), "{text}");
        assert_eq!(text.lines().count(), 16);
        let kernel = VsockStatus { path: None, vhost: true, most_connections: None, counts: None, ..status };
        assert_eq!(table(&kernel), "cid              3\npath             -\nvhost            true\n");
    }
}
